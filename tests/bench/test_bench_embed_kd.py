"""embed-kd on tiny models: real processes, real pictures, the real embedding job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clipdistill.bench import embed_kd, kd_inputs
from clipdistill.bench.kd_inputs import make_pictures, make_teacher
from clipdistill.bench.kd_steps import PARTS, forward, model_bytes
from clipdistill.bench.process import ask
from clipdistill.bench.result import Result
from clipdistill.config import make_run
from clipdistill.data.sources import pairs
from clipdistill.errors import TrainingError
from clipdistill.models.loading import load
from clipdistill.training.preflight import count, first_batch
from clipdistill.training.setup import prepare

SIZES = {"preset": "scenes-student", "width": 16, "layers": 1, "text_layers": 1, "embed_dim": 16}
VOCABULARY = 600
SCOPE = embed_kd.Scope(
    teachers={"small": {**SIZES, "width": 32}},
    precisions=("float32",),
    student=SIZES,
    vocabulary=VOCABULARY,
    pictures=6,
    batch_size=2,
    rounds=1,
    steps={"live": 1, "stored": 2},
)


def inputs_here(module: str, **words: Any) -> dict[str, Any]:
    """Make pictures and models in this process, and measure in others."""
    if not module.endswith("kd_inputs"):
        return ask(module, **words)
    kd_inputs.main(**words)
    return {}


@pytest.fixture(scope="module")
def found() -> Iterator[Result]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed_kd, "ask", inputs_here)
        yield embed_kd.run(SCOPE)


def test_everything_is_measured(found: Result) -> None:
    measured = json.loads(json.dumps(found.measured))
    (case,) = measured["cases"]
    assert (case["teacher"], case["precision"]) == ("small", "float32")
    assert set(case["ratios"]) == {"step_time", "samples_per_second", "model_bytes", "peak_memory"}
    assert [len(case[mode]["steps"]) for mode in ("live", "stored")] == [1, 2]
    for mode in ("live", "stored"):
        assert set(case[mode]["parts"]) == set(PARTS)
        assert case[mode]["peak_bytes"] > case[mode]["model_bytes"] > 0
    assert measured["embedding"]["small"]["rows"] == 12
    assert measured["embedding"]["small"]["store_bytes"] > 12 * 16 * 2


def test_a_stored_teacher_holds_no_weights(found: Result, made: Path) -> None:
    (case,) = found.measured["cases"]
    weights = 4 * count(load(str(made / "teacher")).module)
    assert case["live"]["model_bytes"] - case["stored"]["model_bytes"] == weights
    assert found.ratios["model_bytes"] == case["live"]["model_bytes"] / case["stored"]["model_bytes"]


def test_the_text_has_a_line_for_each_mode_and_says_whether_the_aims_are_reached(found: Result) -> None:
    for words in ("small float32 live", "small float32 stored", "small float32 ratio", "12 rows embedded once"):
        assert words in found.text
    if found.measured["device"] == "cpu":
        assert "aim 10x" in found.text
        assert "aim 9x" in found.text


def test_the_last_teacher_in_the_first_precision_gives_the_headline(found: Result) -> None:
    (case,) = found.measured["cases"]
    names = [("small", "float32"), ("small", "bfloat16"), ("large", "float32"), ("large", "bfloat16")]
    cases = [
        {**case, "teacher": teacher, "precision": precision, "ratios": dict.fromkeys(case["ratios"], 2.0 * number)}
        for number, (teacher, precision) in enumerate(names, start=1)
    ]
    result = embed_kd._result(replace(SCOPE, teachers={"small": SIZES, "large": SIZES}), {}, cases)
    assert set(result.ratios.values()) == {6.0}
    cpu = found.measured["device"] == "cpu"
    assert ("large bfloat16: step_time 8.0x, aim 10x missed; model_bytes 8.0x, aim 9x missed" in result.text) == cpu
    assert "small float32: step_time" not in result.text


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kd")
    make_pictures(folder / "data", 6, VOCABULARY)
    make_teacher(folder / "teacher", {**SIZES, "width": 32}, VOCABULARY)
    return folder


def test_the_pictures_are_distinct_jpegs_with_captions_the_teacher_knows(made: Path) -> None:
    source, teacher = pairs(made / "data"), load(str(made / "teacher"))
    assert len({path.read_bytes() for path in (made / "data").glob("*.jpg")}) == len(source) == 6
    assert teacher.tokenize(["a"])["input_ids"].shape[0] == 1
    assert all(len(source[index].captions[0].split()) == 10 for index in range(6))


def test_a_measured_step_computes_what_training_does(made: Path) -> None:
    run = {
        "recipe": "clip-kd",
        "data": str(made / "data"),
        "teachers": {"T": str(made / "teacher")},
        "student": SIZES,
        "augment": "whole",
        "train": {"epochs": 1, "batch_size": 4, "precision": "float32", "device": "cpu"},
        "out": str(made / "run"),
    }
    setup = prepare(make_run(run))
    batch, laps = first_batch(setup), []
    assert torch.equal(forward(setup, batch, laps.append).total, setup.losses(batch).total)
    assert laps == ["student", "teacher", "graph"]
    teacher = load(str(made / "teacher"))
    assert model_bytes(setup) == 4 * sum(map(count, (setup.student.module, setup.graph, teacher.module)))


def test_a_process_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(TrainingError, match=r"(?s)kd_steps.*the key 'train' is missing"):
        ask("clipdistill.bench.kd_steps", run={"data": "photos"}, steps=1)
