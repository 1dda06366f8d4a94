"""Forecasts: intervals that hold the truth as often as they say, families of runs, and a grid from end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_compare import STUDENT, TRAIN, refuse
from test_report_page import Tree

from clipdistill.cli import main
from clipdistill.errors import ConfigError
from clipdistill.evidence import running
from clipdistill.evidence.compare import compare
from clipdistill.evidence.forecast import DRAWS, forecasts, groups
from clipdistill.evidence.grid import Grid, make_grid
from clipdistill.evidence.grid_runs import Draw
from clipdistill.evidence.laws import WORTH, Expected, Forecast, Group, fit
from clipdistill.evidence.measure import Measured
from clipdistill.evidence.outcome import Outcome, Trial
from clipdistill.evidence.report.forecast_page import told


def grid(*overrides: str, **changes: Any) -> Grid:
    base = {"data": "scenes:train?n=64", "student": {**STUDENT, "vocab_size": 520}, "train": TRAIN}
    data = {
        "base": base,
        "cells": {"clip": {"recipe": "clip"}},
        "seeds": [0],
        "evaluate": {"retrieval": "scenes:test?n=20"},
    }
    return make_grid({**data, **changes}, overrides)


def law(random: np.random.Generator, least: float) -> Any:
    """A law with sizes up to 1 that no size of ``least`` or more takes below zero."""
    ceiling, c, d = random.uniform(40, 95), random.choice([0, 0.1, 0.5]), random.uniform(0.3, 1.5)
    q = ceiling * random.uniform(0.4, 0.95)
    while ceiling - (ceiling - q) * ((least + c) / (1 + c)) ** -d < 0:
        d *= 0.9
    return lambda size: ceiling - (ceiling - q) * ((size + c) / (1 + c)) ** -d


@pytest.mark.parametrize(
    ("sizes", "seeds", "noise"),
    [
        ((0.25, 0.5, 1.0), 3, 1.0),
        ((0.125, 0.25, 0.5, 1.0), 1, 0.5),
        (tuple(np.linspace(0.1, 1, 10).tolist()), 5, 0.5),
        ((0.03, 0.06, 0.12, 0.25, 0.5, 1.0), 3, 0.3),
    ],
)
def test_intervals_hold_the_truth_about_as_often_as_they_say(
    sizes: tuple[float, ...], seeds: int, noise: float
) -> None:
    random = np.random.default_rng(5)
    held: dict[int, list[bool]] = {2: [], 4: [], 10: []}
    for _ in range(60):
        truth = law(random, min(sizes))
        points = [(s, float(np.clip(truth(s) + random.normal(0, noise), 0, 100))) for s in sizes for _ in range(seeds)]
        laws = fit(points, 400, random)
        for times, found in held.items():
            expected = laws.expected(times)
            found.append(expected.low <= truth(times) <= expected.high)
    for found in held.values():
        assert 0.8 <= np.mean(found) <= 1.0


def test_a_clear_law_is_told_closely_and_is_bounded() -> None:
    sizes = np.array([1, 2, 4, 8, 16, 32, 64]) * 1000.0
    laws = fit([(size, 80 - 40 * (size / 1000) ** -0.5) for size in sizes], DRAWS, np.random.default_rng(0))
    truth = 80 - 40 * 640**-0.5
    found = laws.expected(640_000)
    assert found.low <= truth <= found.high
    assert found.high - found.low < 5
    assert found.mean == pytest.approx(truth, abs=1.5)
    assert laws.at(64_000.0).mean() == pytest.approx(75, abs=0.5)
    steep = fit([(1, 90.0), (2, 95.0), (4, 99.5)], DRAWS, np.random.default_rng(0))
    assert steep.at(1e9).max() <= 100
    falling = fit([(1, 50.0), (2, 40.0), (4, 30.0)], DRAWS, np.random.default_rng(0))
    assert np.all(falling.at(8) >= falling.at(4)), "more never forecasts less"


def test_fewer_than_three_sizes_are_refused() -> None:
    for points in ([], [(1.0, 2.0)], [(1.0, 2.0), (2.0, 3.0), (2.0, 4.0)]):
        with pytest.raises(ConfigError, match="a forecast needs 3 sizes or more"):
            fit(points, 10, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("low", "high", "said"), [(WORTH, 9, "yes"), (-1, WORTH / 2, "no"), (0, 9, "unclear"), (0, WORTH, "unclear")]
)
def test_whether_more_pays(low: float, high: float, said: str) -> None:
    group = Group("length", {"a": 1.0})
    assert Forecast(group, "mean_recall", [(1.0, 2.0)], {}, Expected(1, low, high)).pays == said


def test_families_are_cells_that_differ_in_their_length_or_in_their_data_alone() -> None:
    cells: dict[str, Any] = {
        "a": {"recipe": "clip", "train": {"steps": 2}},
        "b": {"recipe": "clip", "train": {"steps": 4}},
        "c": {"recipe": "clip", "train": {"steps": None, "samples": 128}},
        "other rate": {"recipe": "clip", "train": {"steps": 16, "lr": 0.5}},
        "n32": {"recipe": "clip", "data": "scenes:train?n=32&seed=1"},
        "n48": {"recipe": "clip", "data": "scenes:train?seed=1&n=48"},
        "n128": {"recipe": "clip", "data": "scenes:train?seed=1&n=128"},
        "other seed": {"recipe": "clip", "data": "scenes:train?n=256&seed=2"},
    }
    found = groups(grid(cells=cells))
    assert found == [
        Group("length", {"a": 32.0, "b": 64.0, "c": 128.0}),
        Group("data", {"n32": 32.0, "n48": 48.0, "n128": 128.0}),
    ]
    live = {**cells, "b": {**cells["b"], "stored": True}}
    assert [group.kind for group in groups(grid(cells=live))] == ["data"], (
        "stored and live teachers have laws of their own"
    )
    watched = groups(grid("evaluate.every=2", cells=cells))
    assert watched[:2] == found
    # Cells a to c have ends of runs to go by; of the others, those evaluated three times or more.
    assert [group.sizes for group in watched[2:]] == [
        {name: 16.0} for name in ("other rate", "n32", "n48", "n128", "other seed")
    ]


def test_too_little_to_go_by_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "distill", refuse)
    for every in ("evaluate.every=null", "evaluate.every=50%"):
        with pytest.raises(ConfigError, match=r"Add evaluate\.every=10%.*alone\.$"):
            compare(grid(every), tmp_path / "out", forecast=True)
    staged = {"clip": {"recipe": "clip", "stages": [{"train": {"steps": 10}}, {"train": {"steps": 10}}]}}
    with pytest.raises(ConfigError, match=r"Cells of several stages are not forecast\.$"):
        compare(grid("evaluate.every=10%", cells=staged), tmp_path / "out", forecast=True)
    assert not (tmp_path / "out").exists()
    assert main(["compare", "runs/a", "runs/b", "--forecast", "--out", str(tmp_path)]) == 1
    assert "--forecast belongs to a grid" in capsys.readouterr().err


def test_seeds_of_curves_lie_above_or_below_together() -> None:
    """Three curves five points apart say less of the mean than each of them seems to say of itself."""
    steps = range(1, 11)

    def outcome(offsets: Sequence[float]) -> Outcome:
        curves = [{s: {"mean_recall": 60 + o - 30 * (s / 2) ** -0.7} for s in steps} for o in offsets]
        measured = Measured("x", 1, 1, 0, {"mean_recall": 50.0}, {})
        return Outcome({"a": {Draw(n): Trial(measured, None, c) for n, c in enumerate(curves)}}, "a", ("mean_recall",))

    group = [Group("curve", {"a": 16.0})]
    (together,), (apart,) = (forecasts(group, outcome(offsets)) for offsets in ([0, 0, 0], [-5, 0, 5]))
    width = {name: one.ahead[1].high - one.ahead[1].low for name, one in (("together", together), ("apart", apart))}
    assert width["apart"] > max(8.0, 3 * width["together"])
    assert together.points[:2] == [(16.0, pytest.approx(60 - 30 * 0.5**-0.7)), (32.0, pytest.approx(30.0))]


def test_few_seeds_that_lie_apart_say_so() -> None:
    """Seeds share an offset at every length; what three of them say of their mean holds it as often as they say."""
    random, group = np.random.default_rng(3), [Group("curve", {"a": 16.0})]
    held = []
    for _ in range(16):
        curves = [
            {s: {"mean_recall": 80 - 40 * s**-0.5 + off + random.normal(0, 0.3)} for s in (1, 2, 4, 8)}
            for off in random.normal(0, 2, 3)
        ]
        measured = Measured("x", 1, 1, 0, {"mean_recall": 50.0}, {})
        trials = {Draw(seed): Trial(measured, None, curve) for seed, curve in enumerate(curves)}
        (found,) = forecasts(group, Outcome({"a": trials}, "a", ("mean_recall",)))
        held.append(found.ahead[1].low <= 80 - 40 * 8**-0.5 <= found.ahead[1].high)
    assert np.mean(held) >= 0.75


def test_a_grid_is_forecast_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = "{one: {recipe: clip, train: {steps: 1}}, two: {recipe: clip, train: {steps: 2}}, "
    cells += "four: {recipe: clip, train: {steps: 4}}, rate: {recipe: clip, train: {lr: 0.01, steps: 3}}}"
    file = tmp_path / "grid.yaml"
    base = json.dumps({"data": "scenes:train?n=64", "student": {**STUDENT, "vocab_size": 520}, "train": TRAIN})
    file.write_text(
        f"base: {base}\ncells: {cells}\nseeds: [0]\nevaluate: {{retrieval: 'scenes:test?n=20', every: 1}}\n"
    )
    assert main(["compare", str(file), "--forecast", "--jobs", "1", "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    family, curve = report["forecast"]
    assert (family["cells"], family["largest"], family["from"]) == (["one", "two", "four"], 64, "lengths")
    assert (curve["cells"], curve["largest"], curve["from"]) == (["rate"], 48, "its curve")
    ends = [
        [16 * n, report["models"][cell]["metrics"]["mean_recall"]] for cell, n in (("one", 1), ("two", 2), ("four", 4))
    ]
    assert family["points"] == ends
    assert [size for size, _ in curve["points"]] == [16, 32, 48]
    for one in (family, curve):
        assert list(one["ahead"]) == ["1", "2", "4", "10"]
        assert all(0 <= found["low"] <= found["mean"] <= found["high"] <= 100 for found in one["ahead"].values())
        assert one["more_pays"] in ("yes", "no", "unclear")
    printed = capsys.readouterr().out
    assert "Forecast of Both directions, mean recall, with 90% intervals" in printed
    assert told(Expected(**family["ahead"]["10"])) in printed
    page = (tmp_path / "out" / "report.html").read_text()
    Tree(page)
    assert "<h2>Forecast</h2>" in page
    assert page.count("<figcaption>one, two, four: ") == 1
