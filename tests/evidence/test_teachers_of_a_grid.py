"""A grid that trains several teachers: how they are named, and who learns from whom."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from clipdistill.config import make_run
from clipdistill.errors import ClipdistillError
from clipdistill.evaluation.evaluate import Tasks, evaluate
from clipdistill.evidence import measure, running
from clipdistill.evidence.cells import Known, jobs, teacher_jobs
from clipdistill.evidence.compare import compare, tables
from clipdistill.evidence.grid import Grid, make_grid
from clipdistill.evidence.grid_runs import Draw
from clipdistill.evidence.measure import cosines
from clipdistill.models.loading import load
from clipdistill.teachers.embed import embed
from clipdistill.training.loop import distill
from tiny_runs import TINY, tiny_run

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
    firsts = list(teacher_jobs(found, tmp_path, known)[None].values())
    assert [(job.cell, job.folder.parent) for job in firsts] == [
        ("teacher", tmp_path / "teacher"),
        ("large", tmp_path / "teachers" / "large"),
    ]
    for job in firsts:
        distill(job.config)
    trained = {job.cell: str(job.student) for job in firsts}
    runs = {job.cell: job.config for job in jobs(found, tmp_path, known, {None: trained})}
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
    assert grid("teachers.large.train.steps=7").teachers["large"][0].train.steps == 7
    given = grid("teachers.U=models/other", teacher=None, teachers=None, cells={"a": {"recipe": "clip"}})
    assert given.cells["a"].teachers == {"U": "models/other"}
    assert given.teachers == {}


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
        ({"teacher": {**TEACHER, "seed": [1, 1]}}, "teacher, seed: expected a number or a list of different ones"),
        ({"teacher": {**TEACHER, "seed": []}}, "teacher, seed: expected a number or a list of different ones"),
        ({"teacher": {**TEACHER, "seed": [1, "x"]}}, "teacher: seed"),
        (
            {"teacher": {**TEACHER, "seed": [1, 2]}, "teachers": {"large": {**TEACHER, "seed": [1, 2, 3]}}},
            "teachers of different numbers of seeds: teacher has 2, large has 3",
        ),
        (
            {"cells": {"a": {"recipe": "clip", "stored": 1}}},
            "cell a, stored: expected true, false or a number of views",
        ),
    ],
)
def test_mistakes_are_found_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipdistillError) as found:
        grid(**changes)
    assert message in str(found.value)


def test_a_cell_may_keep_its_teacher_live(tmp_path: Path) -> None:
    cells = {"stored": {"recipe": "feature"}, "live": {"recipe": "feature", "stored": False}}
    found, known = grid(stored=True, cells=cells, teachers=None), Known()
    first = teacher_jobs(found, tmp_path, known)[None]["teacher"]
    distill(first.config)
    runs = {job.cell: job.config for job in jobs(found, tmp_path, known, {None: {"teacher": str(first.student)}})}
    assert runs["live"].teachers == {"T": str(first.student)}
    assert runs["stored"].teachers.keys() == {"T"}
    assert runs["stored"].teachers["T"].startswith(str(tmp_path / "stores"))


def test_cells_are_set_beside_the_teacher_they_were_given(tmp_path: Path) -> None:
    for number, name in enumerate(("small", "large"), 1):
        distill(tiny_run(tmp_path / name, seed=number, train={"steps": number}))
    models = {name: str(tmp_path / name / "student") for name in ("small", "large")}
    cells = {
        "clip": {"recipe": "clip"},
        **{name: {"recipe": "feature", "teachers": {"T": model}} for name, model in models.items()},
    }
    found = grid(cells=cells, teacher=None, teachers=None)
    outcome, _ = compare(found, tmp_path / "out")
    assert set(outcome.teachers) == {f"teacher: {model}" for model in models.values()}
    tasks = Tasks.open(**found.evaluate.uris())
    for name, model in models.items():
        teacher = evaluate({name: load(model)}, tasks)[0]
        measured = outcome.trials[name][Draw(0)].measured
        student = evaluate({name: load(measured.uri)}, tasks)[0]
        assert outcome.top(name, "mean_recall") == pytest.approx(teacher.metrics["mean_recall"])
        assert measured.cosines == pytest.approx(cosines(student, teacher))
    one = [grid(cells={name: cells[name]}, teacher=None, teachers=None) for name in models]
    again = [compare(part, tmp_path / "one")[0] for part in one]
    alone = [its.top(name, "mean_recall") for its, name in zip(again, models, strict=True)]
    assert alone == [outcome.top(name, "mean_recall") for name in models], "the teacher measured before was another"
    report = (tmp_path / "out" / "report.json").read_text(encoding="utf-8")
    assert all(f"teacher: {model}" in report for model in models.values())


def test_a_run_is_another_when_what_it_names_has_changed(tmp_path: Path) -> None:
    for name, size in (("run", 520), ("other", 540)):
        distill(tiny_run(tmp_path / name, student={**TINY, "vocab_size": size}, train={"steps": 1}))
    model, store, texts = tmp_path / "run" / "student", tmp_path / "store", tmp_path / "more.txt"
    embed("scenes:train?n=32", str(model), store, workers=0)
    texts.write_text("a dog\na cat\n")

    def content(**changes: Any) -> str:
        plain = {"recipe": "feature", "data": "scenes:train?n=32", "train": TRAIN, "out": "x"}
        return Known().content(make_run({**plain, "teachers": {"T": str(store)}, "unpaired": [str(texts)], **changes}))

    runs: list[dict[str, Any]] = [
        {},
        {"student": {"config": str(model)}},
        {"student": {"preset": "scenes-student", "vision": str(model)}},
        {"student": {"preset": "scenes-student", "tokenizer": str(model)}},
        {"stages": [{}, {"student": {"inherit": "even", "inherit_from": str(model)}}]},
    ]
    first = [content(**run) for run in runs]
    assert first == [content(**run) for run in runs]
    for choice in ("views=any", "missing=skip"):
        assert content(teachers={"T": f"{store}?{choice}"}) != first[0]
    texts.write_text("a dog\na red cat\n")
    second = [content(**run) for run in runs]
    assert not set(first) & set(second)
    shutil.copytree(tmp_path / "other" / "student", model, dirs_exist_ok=True)
    third = [content(**run) for run in runs]
    assert third[0] == second[0], "the store is what it was"
    assert not set(third[1:]) & set(second[1:])


def test_a_teacher_of_several_seeds(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Every teacher teaches every run that learns from one; differences are paired by the seeds both sides have."""
    cells = {"clip": {"recipe": "clip"}, "first": {"recipe": "feature"}, "other": TWO["mobileclip"]}
    claims = [
        {
            "claim": "more",
            "says": "It helps.",
            "source": "us",
            "expect": ["first > clip", "first ~ teacher", "first > other"],
        }
    ]
    found = grid("teacher.seed=[4, 7]", cells=cells, seeds=[0, 1], claims=claims)
    outcome, page = compare(found, tmp_path)
    rows = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    recall = {
        (r["cell"], r["teacher_seed"], r["seed"]): float(r["value"]) for r in rows if r["metric"] == "mean_recall"
    }
    draws = [(teacher, seed) for teacher in "47" for seed in "01"]
    assert set(recall) == {
        *((cell, *draw) for cell in ("first", "other") for draw in draws),
        *(("clip", "", seed) for seed in "01"),
        *((name, teacher, "") for name in ("teacher", "large") for teacher in "47"),
    }
    assert recall["teacher", "4", ""] != recall["teacher", "7", ""]
    assert recall["large", "4", ""] == recall["large", "7", ""], "one seed is one teacher"
    assert len(list((tmp_path / "teachers" / "large").iterdir())) == 1
    assert len(list((tmp_path / "cells" / "clip").glob("seed-*/student"))) == 2, "it knows no teacher"

    first = np.array([[recall["first", teacher, seed] for seed in "01"] for teacher in "47"])
    other = np.array([[recall["other", teacher, seed] for seed in "01"] for teacher in "47"])
    pairs = {
        "2 seeds": first.mean(axis=0) - [recall["clip", "", seed] for seed in "01"],
        "2 teachers": first.mean(axis=1) - [recall["teacher", teacher, ""] for teacher in "47"],
        "4 of 2 teachers": (first - other).ravel(),
    }
    assert [one.evidence for one in outcome.claims[0].found] == list(pairs)
    for one, apart in zip(outcome.claims[0].found, pairs.values(), strict=True):
        half = {2: 12.706205, 4: 3.182446}[len(apart)] * np.std(apart, ddof=1) / np.sqrt(len(apart))
        wanted = (np.mean(apart), np.mean(apart) - half, np.mean(apart) + half)
        assert astuple(one.difference) == pytest.approx(wanted, abs=2e-3)
    line = next(line for line in outcome.lines("mean_recall") if line.cell == "first")
    assert line.difference == outcome.claims[0].found[0].difference
    tops = np.mean([recall["teacher", teacher, ""] for teacher in "47"])
    assert outcome.top("first", "mean_recall") == pytest.approx(tops, abs=1e-3)
    means = {"first": first.mean(axis=1), "other": other.mean(axis=1)}
    assert outcome.by_teacher("mean_recall")["other"] == pytest.approx(means["other"], abs=1e-3)
    assert len(set(outcome.by_teacher("mean_recall")["clip"])) == 1

    Console(width=160).print(*tables(outcome))
    assert "Both directions, mean recall, by the teacher's seed" in capsys.readouterr().out
    assert f"{means['first'][1]:.1f}" in page.read_text().partition("by the teacher's seed</th>")[2]
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["models"]["first"]["seeds"], report["models"]["first"]["teacher_seeds"]) == ([0, 1], [4, 7])
    assert "teacher_seeds" not in report["models"]["clip"]

    def refuse(*_: Any) -> Any:
        raise AssertionError("this has been done before")

    monkeypatch.setattr(running, "distill", refuse)
    alone, _ = compare(grid("teacher.seed=7", cells=cells, seeds=[0, 1]), tmp_path)
    for cell in cells:
        assert list(alone.figures(cell, "mean_recall")) == [Draw(0), Draw(1)]
        assert alone.figures(cell, "mean_recall") == {
            Draw(draw.seed): value for draw, value in outcome.figures(cell, "mean_recall").items() if draw.teacher != 4
        }
    monkeypatch.setattr(measure, "evaluate", refuse)
    again, _ = compare(found, tmp_path)
    assert again.trials == outcome.trials, "measured before, beside either teacher"


def test_a_cell_that_names_another_letter_learns_from_the_first_and_is_set_beside_it() -> None:
    cells = {"feature": {"recipe": "feature", "teachers": {"U": "large"}}, "alone": {"recipe": "clip"}}
    found = grid(cells=cells, seeds=[0])
    assert found.taught_by("feature") == "teacher"


def test_teachers_that_no_chosen_cell_needs_are_not_trained() -> None:
    claims = [{"claim": "less", "says": "It is.", "source": "us", "expect": "clip < large"}]
    found = grid(cells={"clip": {"recipe": "clip"}, "a": {"recipe": "feature", "teacher": "large"}}, claims=[])
    assert set(found.only(["clip"]).teachers) == {"teacher"}
    assert set(found.only(["a"]).teachers) == {"teacher", "large"}
    told = grid(cells={"clip": {"recipe": "clip"}, "a": {"recipe": "clip"}}, claims=claims)
    assert set(told.only(["a"]).teachers) == {"teacher", "large"}, "a claim about the baseline speaks of it"


def test_a_tokenizer_is_known_by_what_it_does_whoever_lends_it(tmp_path: Path) -> None:
    for seed in (1, 2):
        distill(tiny_run(tmp_path / str(seed), seed=seed, train={"steps": 1}))
    lenders = [str(tmp_path / name / "student") for name in "12"]

    def content(known: Known, uri: str) -> str:
        run = {"recipe": "clip", "data": "scenes:train?n=32", "train": TRAIN, "out": "x", "student": TINY}
        return known.content(make_run({**run, "student": {"preset": "scenes-student", "tokenizer": uri}}))

    (loaded := Known()).model(lenders[0])
    assert content(loaded, lenders[0]) == content(Known(), lenders[0]) == content(Known(), lenders[1])


def test_the_length_of_logs_makes_no_other_run_also_in_stages() -> None:
    def content(**train: Any) -> str:
        run = {"recipe": "clip", "data": "scenes:train?n=32", "train": TRAIN, "out": "x", "student": TINY}
        return Known().content(make_run({**run, "stages": [{}, {"train": {"lr": 0.001, **train}}]}))

    assert content() == content(log_every=5) != content(clip_norm=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": {"a": {"recipe": "clip", "data": "no/such"}}}, r"the grid, a: no/such: there is no such file"),
        ({"cells": {"a": {"recipe": "clip", "train": {"batch_size": 99}}}}, r"the grid, a: .*99"),
        ({"evaluate": {"zeroshot": "scenes:zeroshot?n=1"}}, r"evaluate.zeroshot: .* has no two labels at least"),
        ({"metrics": []}, r"metrics: expected at least one of .*; found none"),
    ],
)
def test_data_that_will_not_do_are_told_before_a_teacher_is_trained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ClipdistillError, match=message):
        compare(grid(**changes), tmp_path)
    assert not list(tmp_path.iterdir())
