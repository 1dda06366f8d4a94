"""A grid that trains several teachers: how they are named, and who learns from whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipdistill.errors import ClipdistillError
from clipdistill.evidence.cells import Known, jobs, teacher_jobs
from clipdistill.evidence.grid import Grid, make_grid
from clipdistill.training.loop import distill
from tiny_runs import TINY

TRAIN = {"steps": 2, "batch_size": 16, "workers": 0, "precision": "float32"}
TEACHER: dict[str, Any] = {"recipe": "clip", "data": "scenes:train?n=32", "student": TINY, "train": TRAIN}
TWO = {"mobileclip": {"recipe": "mobileclip", "teachers": {"T": "large", "U": "teacher"}}}


def grid(*words: str, **changes: Any) -> Grid:
    cells = {
        "clip": {"recipe": "clip"},
        "first": {"recipe": "feature"},
        "other": {"recipe": "feature", "teacher": "large"},
    }
    data: dict[str, Any] = {
        "teacher": TEACHER,
        "teachers": {"large": {**TEACHER, "student": {**TINY, "embed_dim": 24}}},
        "base": {"data": "scenes:train?n=32", "student": {"preset": "scenes-student", "layers": 1}, "train": TRAIN},
        "cells": cells | TWO,
        "evaluate": {"retrieval": "scenes:test?n=20"},
        "seeds": [0],
    }
    return make_grid(data | changes, words)


def test_cells_learn_from_the_teacher_they_name_or_the_first(tmp_path: Path) -> None:
    found, known = grid(), Known()
    firsts = teacher_jobs(found, tmp_path, known)
    assert [(job.cell, job.folder.parent) for job in firsts] == [
        ("teacher", tmp_path / "teacher"),
        ("large", tmp_path / "teachers" / "large"),
    ]
    for job in firsts:
        distill(job.config)
    trained = {job.cell: str(job.student) for job in firsts}
    runs = {job.cell: job.config for job in jobs(found, tmp_path, known, trained)}
    assert {cell: run.teachers for cell, run in runs.items()} == {
        "clip": {},
        "first": {"T": trained["teacher"]},
        "other": {"T": trained["large"]},
        "mobileclip": {"T": trained["large"], "U": trained["teacher"]},
    }
    assert {cell: run.student.embed_dim for cell, run in runs.items()} == {
        "clip": 16,
        "first": 16,
        "other": 24,
        "mobileclip": 24,
    }
    assert [found.taught_by(cell) for cell in runs] == ["teacher", "teacher", "large", "large"]


def test_overrides_reach_a_teacher_by_its_name_and_runs_by_letter() -> None:
    assert grid("teachers.large.train.steps=7").teachers["large"].train.steps == 7
    given = grid("teachers.U=models/other", teacher=None, teachers=None, cells={"a": {"recipe": "clip"}})
    assert given.cells["a"].teachers == {"U": "models/other"}
    assert given.teacher is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": {"a": {"recipe": "feature", "teacher": "larg"}}}, "Found larg. Did you mean 'large'"),
        ({"cells": {"a": {"teacher": "large", "teachers": {"T": "large"}}}}, "teacher and teachers.T are given"),
        ({"cells": {"a": {"recipe": "mobileclip"}}}, "needs a teacher 'U', and the grid names none"),
        ({"cells": {"large": {"recipe": "clip"}}}, "teachers, large: a teacher's name is also a folder's"),
        ({"teachers": {"teacher": TEACHER}}, "and not 'teacher'"),
        ({"teachers": {"self": TEACHER}}, "or 'self'"),
        ({"teachers": {"../x": TEACHER}}, "a teacher's name is also a folder's"),
        ({"teachers": {"large": {**TEACHER, "out": "x"}}}, "teachers, large: a grid sets 'out' for its teacher"),
        ({"teachers": [TEACHER]}, "teachers: expected keys and values"),
        ({"cells": {"a": {"recipe": "clip", "stored": True}}}, "a cell can only say stored: false, found True"),
    ],
)
def test_mistakes_are_found_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipdistillError) as found:
        grid(**changes)
    assert message in str(found.value)


def test_a_cell_may_keep_its_teacher_live(tmp_path: Path) -> None:
    cells = {"stored": {"recipe": "feature"}, "live": {"recipe": "feature", "stored": False}}
    found, known = grid(stored=True, cells=cells, teachers=None), Known()
    (first,) = teacher_jobs(found, tmp_path, known)
    distill(first.config)
    runs = {job.cell: job.config for job in jobs(found, tmp_path, known, {"teacher": str(first.student)})}
    assert runs["live"].teachers == {"T": str(first.student)}
    assert runs["stored"].teachers.keys() == {"T"}
    assert runs["stored"].teachers["T"].startswith(str(tmp_path / "stores"))
