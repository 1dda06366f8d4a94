"""The gate on small towers: what passes, what does not, and what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from clipdistill.errors import ModelError
from clipdistill.export import gate as job
from clipdistill.export.gallery import Batches, Gallery, judged_by, quality
from clipdistill.export.gate import Gate, Timing, centred_cosine, choose, passing, run_gate, time_in_turn
from clipdistill.export.gate_table import as_dict, foot, table, verdict
from clipdistill.export.quantise import CANDIDATES, Candidate
from export.tower_files import WIDTH, matrices, rows_of, write_tower

PAIRS = 40
WEIGHTS = matrices(1, seed=4)
FLOAT32 = CANDIDATES[0]
NOISE = np.random.default_rng(5)
PICTURES = NOISE.standard_normal((PAIRS, WIDTH)).astype(np.float32)
CAPTIONS = (PICTURES + 0.15 * NOISE.standard_normal((PAIRS, WIDTH))).astype(np.float32)
EXACT = {"image": rows_of(WEIGHTS, PICTURES), "text": rows_of(WEIGHTS, CAPTIONS)}


def gallery_in(folder: Path, paired: bool = True) -> Gallery:
    batches, halves = {}, np.array_split(np.arange(PAIRS)[::-1], 3)
    for side, x in (("image", PICTURES), ("text", CAPTIONS)):
        files = [folder / f"{side}{number}.npz" for number in range(3)]
        for file, places in zip(files, halves, strict=True):
            np.savez(file, x=x[places])
        batches[side] = Batches(files, halves)
    captions = [f"caption {number}" for number in range(PAIRS)]
    alone = {side: {"x": PICTURES[:1]} for side in batches}
    return Gallery("data", batches, captions, list(range(PAIRS)) if paired else [], [None] * PAIRS, 0, alone)


def changed(name: str, weights: list[Any], offset: float = 0.0) -> Candidate:
    return Candidate(name, lambda source, target, probes: write_tower(target, weights, offset))


def nearly(amount: float) -> list[Any]:
    noise = np.random.default_rng(6)
    return [(one + amount * noise.standard_normal(one.shape)).astype(np.float32) for one in WEIGHTS]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Gate]:
    """Runs the gate on candidates of which each is faster than float32 by the factor given."""

    def go(speeds: dict[Candidate, float], allowed: float = 0.5, paired: bool = True, **more: Any) -> Gate:
        files = {side: write_tower(tmp_path / "onnx" / f"{side}.onnx", WEIGHTS) for side in ("image", "text")}
        now: dict[str, Candidate] = {}
        made = job.make

        def remembered(candidate: Candidate, *arguments: Any) -> Path:
            now["one"] = candidate
            return made(candidate, *arguments)

        monkeypatch.setattr(job, "make", remembered)
        probes = {side: [{"x": PICTURES[:1]}] * 4 for side in files}
        return run_gate(
            files,
            probes,
            gallery_in(tmp_path, paired),
            allowed,
            candidates=[FLOAT32, *speeds],
            timer=lambda one, other, inputs: Timing(10 / {FLOAT32: 1.0, **speeds}[now["one"]], 10, 0.5),
            **more,
        )

    return go


def of(gate: Gate, name: str, side: str = "image") -> job.Measured:
    return next(one for one in gate.towers[side] if one.name == name)


def test_ruined_towers_lose_however_fast(run: Callable[..., Gate]) -> None:
    zeros = changed("zeros", [0 * one for one in WEIGHTS])
    cone = changed("cone", [*WEIGHTS[:-1], 0.001 * NOISE.standard_normal(WEIGHTS[-1].shape).astype(np.float32)], 5.0)
    nan = changed("nan", [np.nan * one for one in WEIGHTS])
    for paired in (True, False):
        gate = run({zeros: 9.0, cone: 9.0, nan: 9.0, changed("good", nearly(1e-7)): 1.5}, paired=paired)
        assert gate.judged == ("recall" if paired else "neighbours")
        assert {one.name for one in gate.chosen.values()} == {"good"}
        assert verdict(gate, "image", of(gate, "zeros")) == "loses too much"
        assert of(gate, "zeros").loss > 20
        assert of(gate, "cone").loss > 20
        assert of(gate, "nan").loss == 100


def test_a_constant_row_does_not_pass_for_likeness() -> None:
    cone = EXACT["image"] * 0.05 + np.eye(EXACT["image"].shape[1])[0]
    cone = (cone / np.linalg.norm(cone, axis=1, keepdims=True)).astype(np.float32)
    collapsed = np.repeat(cone.mean(axis=0, keepdims=True), PAIRS, axis=0) + 1e-4 * NOISE.standard_normal(cone.shape)
    assert float((cone * collapsed).sum(axis=1).mean()) > 0.99
    mean = cone.mean(axis=0)
    naive = [
        float((one - mean) @ (other - mean) / np.linalg.norm(one - mean) / np.linalg.norm(other - mean))
        for one, other in zip(collapsed, cone, strict=True)
    ]
    assert centred_cosine(collapsed.astype(np.float32), cone) == pytest.approx(np.mean(naive), abs=1e-4)
    assert abs(centred_cosine(collapsed.astype(np.float32), cone)) < 0.4
    assert centred_cosine(cone, cone) == pytest.approx(1)


def test_a_lossy_candidate_ships_only_where_so_much_may_be_lost(run: Callable[..., Gate]) -> None:
    lossy = changed("lossy", nearly(0.1))
    strict = run({lossy: 4.0})
    lost = of(strict, "lossy").loss
    assert 2 < lost < 60
    assert {one.name for one in strict.chosen.values()} == {"float32"}
    assert strict.loss == 0
    wide = run({lossy: 4.0}, allowed=90)
    assert {one.name for one in wide.chosen.values()} == {"lossy"}
    assert verdict(wide, "image", of(wide, "lossy")) == "ships"
    forced = run({lossy: 4.0}, only=lossy)
    assert {one.name for one in forced.chosen.values()} == {"lossy"}
    assert of(forced, "lossy").loss == lost


def test_what_is_faster_by_chance_alone_does_not_ship(run: Callable[..., Gate]) -> None:
    same = changed("same", WEIGHTS)
    assert {one.name for one in run({same: 1.04}).chosen.values()} == {"float32"}  # 0.38 ms of 0.5 ms noise
    assert {one.name for one in run({same: 1.2}).chosen.values()} == {"same"}
    slower = run({same: 0.5})
    assert verdict(slower, "text", of(slower, "same", "text")) == "not faster than float32"


def naive_recalls(images: Any, texts: Any, k: int) -> float:
    """The share of captions whose picture is among the k nearest, equal ones before it."""
    found = 0
    for number, text in enumerate(texts):
        scores = [float(np.dot(text.astype(np.float64), image)) for image in images]
        found += sum(score >= scores[number] for place, score in enumerate(scores) if place != number) < k
    return 100 * found / len(texts)


def test_recall_is_that_of_naive_counting(run: Callable[..., Gate]) -> None:
    weights = nearly(0.3)
    gate = run({changed("lossy", weights): 2.0})
    images, texts = rows_of(weights, PICTURES), EXACT["text"]
    expected = {f"text_to_image_R@{k}": naive_recalls(images, texts, k) for k in (1, 10)}
    expected |= {f"image_to_text_R@{k}": naive_recalls(texts, images, k) for k in (1, 10)}
    assert of(gate, "lossy").quality == pytest.approx(expected)
    before = {f"text_to_image_R@{k}": naive_recalls(EXACT["image"], texts, k) for k in (1, 10)}
    before |= {f"image_to_text_R@{k}": naive_recalls(texts, EXACT["image"], k) for k in (1, 10)}
    assert of(gate, "lossy").loss == pytest.approx(max(before[key] - expected[key] for key in before))


def test_neighbours_are_those_of_naive_counting(tmp_path: Path) -> None:
    rows, gallery = rows_of(nearly(0.3), PICTURES), gallery_in(tmp_path, paired=False)
    kept = []
    for number in range(PAIRS):
        nearest = [
            set(sorted((place for place in range(PAIRS) if place != number), key=lambda p: -one[p] @ one[number])[:10])
            for one in (rows, EXACT["image"])
        ]
        kept.append(10 * len(nearest[0] & nearest[1]))
    found = quality(gallery, {**EXACT, "image": rows}, EXACT, "neighbours")
    assert found == pytest.approx({"image_neighbours": np.mean(kept), "text_neighbours": 100})


def test_recall_that_is_chance_is_not_judged_by(tmp_path: Path) -> None:
    gallery = gallery_in(tmp_path)
    assert judged_by(gallery, EXACT) == "recall"
    chance = {"image": EXACT["image"], "text": np.roll(EXACT["text"], 1, axis=0)}
    assert judged_by(gallery, chance) == "neighbours"
    assert judged_by(replace(gallery, owner=[]), EXACT) == "neighbours"


def test_two_towers_that_lose_too_much_together_fall_back(run: Callable[..., Gate]) -> None:
    gate = run({changed("same", WEIGHTS): 2.0, changed("faster", WEIGHTS): 4.0})
    options = {side: passing(found, 0.5) for side, found in gate.towers.items()}
    assert [one.name for one in options["image"]] == ["faster", "same", "float32"]

    def joint(pair: Any) -> float:
        return 0.3 * sum(one.name == "faster" for one in pair.values())

    assert [one.name for one in choose(options, joint, 0.6).values()] == ["faster", "faster"]
    assert sorted(one.name for one in choose(options, joint, 0.5).values()) == ["faster", "same"]
    assert [one.name for one in choose(options, joint, 0.2).values()] == ["same", "same"]
    assert choose(options, lambda pair: 9.0, 0.5) == {}


def test_what_cannot_be_had_is_a_row_with_its_reason(run: Callable[..., Gate], monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(source: Path, target: Path, probes: Any) -> Path:
        raise ValueError("no such operator")

    broken, garbage = Candidate("broken", cannot), Candidate("garbage", lambda s, t, p: _words(t))
    monkeypatch.setitem(sys.modules, "openvino", None)
    absent = next(one for one in CANDIDATES if one.name == "openvino-float32")
    gate = run({broken: 9.0, garbage: 9.0, absent: 9.0, changed("same", WEIGHTS): 2.0})
    assert {one.name for one in gate.chosen.values()} == {"same"}
    assert verdict(gate, "image", of(gate, "broken")) == "ValueError: no such operator"
    assert "cannot be loaded" in of(gate, "garbage").reason
    assert of(gate, "openvino-float32").reason == "not installed: pip install 'clipdistill[openvino]'"
    assert json.loads(json.dumps(as_dict(gate)))["candidates"]["image"][1]["verdict"] == "ValueError: no such operator"
    of(gate, "garbage").reason = "cannot open [/tmp/x.onnx]"
    console = Console(record=True, width=200)
    console.print(table(gate))
    printed = console.export_text()
    assert "pip install 'clipdistill[openvino]'" in printed
    assert "cannot open [/tmp/x.onnx]" in printed
    with pytest.raises(ModelError, match="broken cannot be had of the image tower: ValueError: no such operator"):
        run({broken: 9.0}, only=broken)


def _words(path: Path) -> Path:
    path.write_text("words")
    return path


def test_the_foot_says_what_the_numbers_are_worth(run: Callable[..., Gate]) -> None:
    gate = run({changed("same", WEIGHTS): 2.0})
    words = " ".join(foot(gate))
    assert "on 40 pairs of data; one picture is 2.5 points" in words
    assert "40 pairs are few" in words
    assert "Ships: image same, text same; together they lose 0.00 points, 0.5 are allowed." in words
    assert "nearest are others than in float32 (there are no pairs), on 40 pictures and 40 captions" in " ".join(
        foot(run({}, paired=False))
    )


def test_time_is_taken_in_turn_and_the_first_run_is_not_counted() -> None:
    now, seen = [0.0], []

    def graph(name: str, seconds: float) -> Any:
        def run(inputs: Any) -> Any:
            first = not seen or seen[-1] != name
            seen.append(name)
            now[0] += 100.0 if first else seconds

        return run

    found = time_in_turn(graph("a", 0.002), graph("b", 0.005), {}, clock=lambda: now[0])
    assert (found.ms, found.float32_ms) == pytest.approx((2, 5), abs=1e-6)
    assert found.faster
    assert seen[:8] == ["a"] * 4 + ["b"] * 4
    assert seen[8] == "a"
