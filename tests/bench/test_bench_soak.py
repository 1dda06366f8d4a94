"""The soak: a real run that is killed and goes on, and checks that find what they are made for."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from clipdistill.bench import soak, soak_lives, suite
from clipdistill.bench.result import Result
from clipdistill.bench.soak_checks import Found, compare, last_words, look, read_batches
from clipdistill.cli import main
from clipdistill.training.loop import distill
from tiny_runs import tiny_run

SAMPLES, BATCH, STEPS = 12, 4, 6
BATCHES = {at: ([f"{at % 3}{letter}" for letter in "abcd"], True) for at in range(STEPS)}
LOSSES = [(step, 1 / step) for step in range(1, STEPS + 1)]
WHOLE = Found(LOSSES, "abc", ["log.jsonl"], 1000, 1000, [BATCHES])


def wrong(found: Found, alike: bool = True) -> str:
    return "; ".join(compare(found, WHOLE, alike, SAMPLES, BATCH))


def test_what_agrees_is_not_told_of() -> None:
    first = {at: BATCHES[at] for at in range(4)} | {4: (["1a", "1c"], False)}  # killed before all had noted it
    second = {at: BATCHES[at] for at in range(2, STEPS)}
    assert wrong(replace(WHOLE, lives=[first, second])) == ""
    near = [(step, loss * (1 + 1e-5)) for step, loss in LOSSES]
    assert wrong(replace(WHOLE, losses=near, student="other"), alike=False) == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"losses": LOSSES[:3] + LOSSES[4:]}, r'the log has steps {"missing": [4], "twice": []}'),
        ({"losses": [*LOSSES[:3], *LOSSES[2:]]}, r'the log has steps {"missing": [], "twice": [3]}'),
        ({"losses": [*LOSSES[:3], (4, 0.25000001), *LOSSES[4:]]}, "from step 4 losses differ: 0.25000001"),
        ({"student": "abd"}, "the student's weights are others"),
        ({"lives": [BATCHES | {2: (["2a", "2b", "2c", "2c"], True)}]}, "epoch 0 has 12 samples, 11 of 12"),
        ({"lives": [BATCHES | {5: ([], True)}]}, "epoch 1 has 8 samples, 8 of 12"),
        ({"lives": [BATCHES | {1: BATCHES[2]}, BATCHES]}, "batch 1 was made of other samples in life 1"),
        ({"lives": [{0: (["2a"], False)}, BATCHES]}, "batch 0 was made of other samples in life 1"),
        ({"files": ["log.jsonl", ".x.tmp"]}, "files differ: .x.tmp"),
        ({"size": 1100}, "1,100 bytes on disk instead of 1,000"),
        ({"peak": 1600}, "1,600 bytes of memory instead of 1,000"),
    ],
)
def test_every_difference_is_told(change: dict[str, object], told: str) -> None:
    assert wrong(replace(WHOLE, **change)).startswith(told)  # type: ignore[arg-type]


def test_losses_of_other_numbers_of_processes_may_differ_by_rounding_alone() -> None:
    far = [(step, loss * 1.01) for step, loss in LOSSES]
    assert "losses differ" in wrong(replace(WHOLE, losses=far), alike=False)


def test_a_batch_is_what_all_processes_have_noted(tmp_path: Path) -> None:
    lines = {"0-7": [(0, ["a"]), (0, ["a"]), (1, ["c"])], "1-8": [(0, ["b"])]}
    for name, noted in lines.items():
        text = "".join(json.dumps({"batch": at, "ids": ids}) + "\n" for at, ids in noted)
        (tmp_path / f"{name}.jsonl").write_text(text + '{"batch": 2, "i')
    assert read_batches(tmp_path) == {0: (["a", "b"], True), 1: (["c"], False)}


def test_a_killed_life_leaves_nothing_and_the_next_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(tmp_path / "whole", train={"steps": 60, "checkpoint_every": 5, "workers": 1})
    distill(config)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    monkeypatch.setattr(soak_lives, "WAYS", {"kill": 1})
    out, notes = tmp_path / "killed", tmp_path / "notes"
    life = soak_lives.start(tmp_path / "run.yaml", out, notes / "0", 1)
    assert soak_lives.wait(life, lambda: any((out / "checkpoints").glob("step-*")))
    assert len(soak_lives.marked(life.notes)) >= 1
    assert soak_lives.end(life, random.Random(0)) == "kill"
    assert soak_lives.left(life) == 0
    assert not soak_lives.marked(life.notes)
    assert not (out / "student").exists()
    life = soak_lives.start(tmp_path / "run.yaml", out, notes / "1", 1)
    assert not soak_lives.wait(life, lambda: False)
    assert life.started.returncode == 0, last_words(life.notes)
    assert life.peak > 1e8
    expected = look(tmp_path / "whole", notes, life.peak)
    assert compare(look(out, notes, life.peak), expected, True, 64, 16) == []


def test_a_soak_that_finds_something_is_an_error_and_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[float] = []

    def found(minutes: float) -> Result:
        asked.append(minutes)
        story = soak.Story("live", True, [2, 2], ["kill", ""], violations=["the log has gaps"])
        return soak._result(minutes, [story])

    monkeypatch.setattr(soak, "run", found)
    file = tmp_path / "soak.json"
    assert main(["bench", "soak", "--minutes", "3", "--json", str(file)]) == 1
    told = capsys.readouterr()
    assert "1 resumes" in told.out
    assert "1 times kill, 0 times kill torchrun, 0 times stop; violations: 1" in told.out
    assert "1 violations, the first: run 1: the log has gaps" in told.err
    assert json.loads(file.read_text())["benchmarks"]["soak"]["violations"] == ["run 1: the log has gaps"]
    assert asked == [3]
    assert suite.NAMES[-1] == "soak"
