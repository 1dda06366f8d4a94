"""Runs from YAML and overrides: what they mean, what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipdistill.config import Duration, Plan, apply_override, load_run, make_run
from clipdistill.errors import ConfigError

MINIMAL = ["data=photos", "train.steps=200", "out=runs/a"]


def test_the_run_as_flags() -> None:
    run = load_run(
        None,
        [
            "recipe=clip-kd",
            "teachers.T=models/teacher",
            "student.preset=vit-tiny-16",
            "student.image_size=64",
            "student.width=64",
            "data=photos",
            "train.steps=200",
            "train.batch_size=64",
            "train.lr=1e-3",
            "out=runs/a",
        ],
    )
    assert (run.recipe, run.teachers, run.data) == ("clip-kd", {"T": "models/teacher"}, "photos")
    assert (run.student.image_size, run.train.batch_size, run.train.lr) == (64, 64, 1e-3)


def test_overrides_win_over_the_file_and_the_last_one_over_the_others(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: a\nout: b\ntrain: {epochs: 3, lr: 0.5}\n")
    run = load_run(file, ["train.lr=0.1", "train.lr=0.2"])
    assert (run.train.epochs, run.train.lr) == (3, 0.2)


def test_a_resolved_run_reads_back_equal(tmp_path: Path) -> None:
    run = load_run(
        None,
        [
            *MINIMAL,
            "recipe=[{contrast: SI-ST}]",
            "evaluate.every=10%",
            "evaluate.retrieval=photos",
            "augment.crop=[0.5,1]",
        ],
    )
    file = tmp_path / "config.yaml"
    file.write_text(run.to_yaml())
    assert load_run(file) == run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=x", "out=y", "train.step=3"], "unknown key 'train.step'. Did you mean 'steps'?"),
        (["data=x", "out=y", "train.steps=3", "recipes=clip"], "unknown key 'recipes'. Did you mean 'recipe'?"),
        (["data=x", "out=y"], "the key 'train' is missing: say how long to train"),
        (["out=y", "train.steps=3"], "the key 'data' is missing"),
        ([*MINIMAL, "train.epochs=2"], "exactly one of steps, epochs and samples, found steps and epochs"),
        ([*MINIMAL, "train.lr=fast"], "train.lr:"),
        ([*MINIMAL, "train.lr=-1"], "train.lr:"),
        ([*MINIMAL, "train.optimizer=mon"], "train.optimizer:"),
        ([*MINIMAL, "train.warmup=soon"], "expected a duration such as 200, '5%'"),
        ([*MINIMAL, "train.warmup=0.05"], "steps are whole, found 0.05; for a share of the run write '5%'"),
        (
            [*MINIMAL, "student=vit-tiny-16"],
            "student has keys of its own, found 'vit-tiny-16'; write for instance student.",
        ),
        ([*MINIMAL, "teachers.S=x"], "other than S, found teachers.S"),
        ([*MINIMAL, "augment.crop=[0.9,0.5]"], "crop is a range within (0, 1]"),
        ([*MINIMAL, "student.preset=vit-tiny"], "Did you mean 'vit-tiny-16'"),
        ([*MINIMAL, "out.x=3"], "'out' is a value"),
        ([*MINIMAL, "nonsense"], "'nonsense' is no override"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(None, words)
    assert message in str(caught.value)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no run file .*nothing\.yaml"):
        load_run(tmp_path / "nothing.yaml")
    file = tmp_path / "broken.yaml"
    file.write_text("data: [")
    with pytest.raises(ConfigError, match=r"broken\.yaml is not readable YAML"):
        load_run(file)
    file.write_text("- just\n- a list\n")
    with pytest.raises(ConfigError, match="expected keys such as recipe"):
        load_run(file)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("200", 200), (7, 7), ("5%", 50), ("2 epochs", 20), ("1 epoch", 10), ("640 samples", 10), ("0.5 epochs", 5)],
)
def test_durations_in_any_unit(text: object, steps: int) -> None:
    plan = Plan(steps=1000, batch_size=64, samples=640)
    assert Duration.parse(text).steps(plan) == steps
    assert Duration.parse(str(Duration.parse(text))).steps(plan) == steps


@pytest.mark.parametrize(("length", "steps"), [({"steps": 5}, 5), ({"epochs": 2}, 20), ({"samples": 128}, 2)])
def test_plans(length: dict[str, int], steps: int) -> None:
    run = make_run({"data": "x", "out": "y", "train": {**length, "batch_size": 64}})
    assert run.train.plan(640 + 63).steps == steps


def test_a_batch_larger_than_the_data_is_refused() -> None:
    run = make_run({"data": "x", "out": "y", "train": {"steps": 1, "batch_size": 64, "accumulate": 2}})
    with pytest.raises(ConfigError, match=r"one step takes 128 samples .* the data hold 100"):
        run.train.plan(100)


@pytest.mark.parametrize("text", ["1000000 samples", "1234567 samples", "0.5 epochs", "12.5%", "200"])
def test_durations_are_written_as_they_are_read(text: str) -> None:
    duration = Duration.parse(text)
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize(("text", "value"), [("photos #1/train", "photos #1/train"), ("#1", "#1"), ("'a' # b", "a")])
def test_a_command_line_has_no_comments(text: str, value: str) -> None:
    data: dict[str, Any] = {}
    apply_override(data, f"data={text}")
    assert data == {"data": value}
