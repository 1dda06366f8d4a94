"""Runs with stored teachers, or with themselves as teacher, are reported and compared like any others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from clipdistill.evidence.compare import compare
from clipdistill.evidence.finish import evaluate_run
from clipdistill.evidence.grid import make_grid
from clipdistill.teachers.embed import embed
from clipdistill.training.loop import distill
from tiny_runs import TINY, tiny_run

DATA, TEST = "scenes:train?n=64", "scenes:test?n=32"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, beside the model it was made with."""
    folder = tmp_path_factory.mktemp("stored")
    distill(tiny_run(folder / "run", student={**TINY, "embed_dim": 24}))
    shutil.copytree(folder / "run" / "student", folder / "model")
    embed(DATA, str(folder / "model"), folder / "store", workers=0)
    return folder / "store"


def models_of(folder: Path) -> set[str]:
    return set(json.loads((folder / "report.json").read_text())["models"])


def test_the_model_behind_a_store_is_evaluated_where_it_is(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(tmp_path / "run", recipe="clip-kd", teachers={"T": str(store)}, evaluate={"retrieval": TEST})
    distill(config)
    evaluate_run(config)
    assert models_of(tmp_path / "run") == {"teacher", "student"}
    away = store.parent / "away"
    (store.parent / "model").rename(away)
    try:
        evaluate_run(config)
    finally:
        away.rename(store.parent / "model")
    assert models_of(tmp_path / "run") == {"student"}
    assert "teacher T is not evaluated" in capsys.readouterr().err


def test_a_student_that_teaches_itself_is_reported_alone(tmp_path: Path) -> None:
    config = tiny_run(
        tmp_path / "run", recipe="self-kd", teachers={"T": "self"}, train={"ema": 0.9}, evaluate={"retrieval": TEST}
    )
    distill(config)
    evaluate_run(config)
    assert models_of(tmp_path / "run") == {"student"}


def test_a_grid_over_a_store_begins_every_student_alike(tmp_path: Path, store: Path) -> None:
    """The baseline has no teacher, yet the width and tokenizer of the stored model, and the same first weights."""
    train = {"steps": 2, "batch_size": 16, "workers": 0, "precision": "float32"}
    base = {"data": DATA, "student": {k: v for k, v in TINY.items() if k != "embed_dim"}, "train": train}
    grid = {
        "base": {**base, "teachers": {"T": str(store)}},
        "cells": {"clip": {"recipe": "clip"}, "kd": {"recipe": "clip-kd"}},
        "seeds": [0],
        "evaluate": {"retrieval": TEST},
    }
    outcome, _ = compare(make_grid(grid), tmp_path / "grid")
    assert set(outcome.trials) == {"clip", "kd"}
    assert outcome.teachers.keys() == {"teacher"}
    widths = {
        json.loads(path.read_text())["projection_dim"] for path in (tmp_path / "grid").rglob("student/config.json")
    }
    assert widths == {24}
