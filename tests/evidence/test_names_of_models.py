"""What models are called in tables and reports, and where the folder of a benchmark is."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipdistill.evidence.finish import short_names
from clipdistill.evidence.suites import parse


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["x/final", "y/final/", "z/final"], ["final", "final 2", "final 3"]),
        (["a/final 2", "x/final", "y/final", "z/final"], ["final 2", "final", "final 3", "final 4"]),
        (["x/final", "y/final", "a/final 2"], ["final", "final 2", "final 2 2"]),
        (
            ["open_clip:ViT-B-32/openai", "open_clip:ViT-B-16/openai", "open_clip:RN50/weights/own.pt"],
            ["ViT-B-32 openai", "ViT-B-16 openai", "RN50 own.pt"],
        ),
        (["hf:org/name", "hf-hub:org/other"], ["name", "other"]),
    ],
)
def test_every_model_has_a_name_of_its_own(uris: list[str], names: list[str]) -> None:
    assert short_names(uris) == names


def test_a_runs_student_is_called_as_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in ("one", "two"):
        (tmp_path / run / "student").mkdir(parents=True)
        (tmp_path / run / "run.json").touch()
    assert short_names([str(tmp_path / run / "student") for run in ("one", "two")]) == ["one", "two"]
    monkeypatch.chdir(tmp_path / "one" / "student")
    assert short_names([".", ".."]) == [tmp_path.joinpath("one").name, "one 2"]


def test_a_suite_may_be_in_the_home_folder() -> None:
    assert parse(["muge=~/MUGE"]) == {"muge": Path.home() / "MUGE"}
