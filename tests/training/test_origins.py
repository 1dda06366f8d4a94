"""What a run's student inherits of licences, and whose rows it learns to give: of live teachers, and of stores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from clipdistill.algebra.recipe import Recipe
from clipdistill.models.licences import as_card
from clipdistill.models.loading import load
from clipdistill.teachers.embed import embed
from clipdistill.teachers.teacher import Retired
from clipdistill.training.loop import distill
from clipdistill.training.origins import space_of, tell_licences
from tiny_runs import TINY, tiny_run


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
    assert tell_licences(stored) == links, "the store is given away without its model"


def test_a_store_that_does_not_know_its_licence_asks_the_model(teacher: Path, tmp_path: Path) -> None:
    bare = licensed(teacher, tmp_path / "bare", "other")
    (bare / "README.md").unlink()
    embed("scenes:train?n=8", str(bare), tmp_path / "store", workers=0)
    config = tiny_run(tmp_path / "run", recipe="clip-kd-fd", teachers={"T": str(tmp_path / "store")})
    (told,) = tell_licences(config, quiet=True)
    assert told.licence == "unknown"
    (bare / "README.md").write_text("---\nlicense: apple-amlr\n---\n")
    (told,) = tell_licences(config, quiet=True)
    assert (told.licence, told.use) == ("apple-amlr", "research only")


WIDE = {**TINY, "embed_dim": 24}


@pytest.mark.parametrize(
    ("recipe", "width", "sides"),
    [
        ("clip-kd-fd", 24, "IT"),
        ("clip-kd-icl", 24, "IT"),
        ("motis-2", 24, "IT"),
        ("chinese-clip-kd", 24, "I"),
        ("clip-kd-fd", 16, None),  # an adapter stands between them
        ("clip-kd-crd", 24, None),  # similarities alone are made alike
        ("clip-kd-afd", 24, None),
        ("clip-kd-gd", 24, None),
        ("teacher-kd", 24, None),  # the teacher's rows are mapped
        ("vanilla-kd", 24, None),
        ("clip", 24, None),
    ],
)
def test_rows_are_of_a_teachers_space_where_they_are_held_against_its_own(
    recipe: str, width: int, sides: str | None
) -> None:
    teacher = Retired("T", 100.0, None, 24, "its-mark")
    found = space_of(Recipe.load(recipe), width, [teacher], {"T": "some/model"})
    assert found == (sides and {"fingerprint": "its-mark", "sides": sides})
    assert space_of(Recipe.load(recipe), width, [teacher], {"T": "self"}) is None


def test_rows_that_two_teachers_pull_at_are_of_neithers_space() -> None:
    terms = [{"feature": "SI>TI"}, {"feature": "ST>TT"}, {"relation": "SI-ST", "like": "UI-UT"}]
    teachers = [Retired("T", 100.0, None, 8, "one"), Retired("U", 100.0, None, 8, "other")]
    uris = {"T": "one", "U": "other"}
    assert space_of(Recipe.load(terms), 8, teachers, uris) == {"fingerprint": "one", "sides": "IT"}
    assert space_of(Recipe.load([*terms, {"feature": "SI>UI"}]), 8, teachers, uris) is None


@pytest.mark.parametrize("stored", [False, True])
def test_a_student_names_the_model_whose_rows_it_learnt(teacher: Path, tmp_path: Path, stored: bool) -> None:
    given = str(teacher)
    if stored:
        given = str(tmp_path / "store")
        embed("scenes:train?n=16", str(teacher), tmp_path / "store", workers=0)
    settings = {"recipe": "clip-kd-fd", "student": WIDE, "data": "scenes:train?n=16", "teachers": {"T": given}}
    run = distill(tiny_run(tmp_path / "run", **settings, train={"steps": 1}))
    record = json.loads((run.student / "clipdistill.json").read_text())
    assert record["space"] == {"fingerprint": load(str(teacher)).fingerprint, "sides": "IT"}
