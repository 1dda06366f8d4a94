"""What a run's student inherits of licences: from live teachers, from stores, from what it starts from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from clipdistill.models.licences import as_card
from clipdistill.teachers.embed import embed
from clipdistill.training.loop import distill
from clipdistill.training.origins import tell_licences
from tiny_runs import tiny_run


def licensed(model: Path, folder: Path, licence: str) -> Path:
    """A copy of a model under a licence, and without a record of ours."""
    shutil.copytree(model, folder)
    (folder / "clipdistill.json").unlink()
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return folder


def test_a_research_teacher_binds_the_student_and_is_told_at_the_start(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apple = licensed(teacher, tmp_path / "apple", "apple-amlr")
    run = distill(tiny_run(tmp_path / "run", recipe="clip-kd-fd", teachers={"T": str(apple)}, train={"steps": 1}))
    assert f"licence: teacher T {apple}: apple-amlr, research only" in capsys.readouterr().err
    record = json.loads((run.student / "clipdistill.json").read_text())
    assert record["licence"] == "apple-amlr"
    assert [link["model"] for link in record["licence_chain"]] == [str(apple)]
    card = (run.student / "README.md").read_text()
    assert "license: apple-amlr" in card
    assert "**For research only**" in card


def test_a_store_has_the_licence_of_its_model_and_self_has_none(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free = licensed(teacher, tmp_path / "free", "mit")
    embed("scenes:train?n=8", str(free), tmp_path / "store", workers=0)
    config = tiny_run(tmp_path / "run", recipe="self-kd", teachers={"T": "self"}, train={"ema": 0.9})
    assert tell_licences(config) == []
    stored = config.model_copy(update={"teachers": {"T": str(tmp_path / "store"), "U": "self"}})
    capsys.readouterr()
    links = tell_licences(stored)
    assert [(link.role, link.model, link.licence) for link in links] == [("teacher T", str(free), "mit")]
    assert as_card(links)["licence"] == "mit"
    assert capsys.readouterr().err == ""
    shutil.rmtree(free)
    (gone,) = tell_licences(stored, quiet=True)
    assert gone.licence == "unknown"
    assert capsys.readouterr().err == ""
