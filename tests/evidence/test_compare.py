"""A whole comparison on drawn pictures: trained, measured, remembered, gone on with, and told."""

from __future__ import annotations

import csv
import json
import shutil
import statistics as stdlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_fakes import NASTY
from safetensors.torch import load_file
from test_report_page import Tree

from clipdistill.cli import main
from clipdistill.config import load_run
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, InterruptedRunError, TrainingError
from clipdistill.evaluation.evaluate import Tasks, evaluate
from clipdistill.evidence import measure, running
from clipdistill.evidence.cells import Known, jobs, teacher_jobs
from clipdistill.evidence.compare import compare, compare_runs, tables
from clipdistill.evidence.grid import METRICS, Grid, make_grid
from clipdistill.evidence.grid_runs import Draw
from clipdistill.evidence.measure import Measured
from clipdistill.evidence.outcome import Outcome, Trial
from clipdistill.evidence.report.grid_page import grid_page, write_grid_report
from clipdistill.evidence.running import run_all
from clipdistill.models.loading import load
from clipdistill.training.setup import prepare
from tiny_runs import TINY, fail_at_step, tiny_run

TRAIN = {"steps": 6, "batch_size": 16, "workers": 0, "log_every": 1, "checkpoint_every": 2, "precision": "float32"}
STUDENT = {key: value for key, value in TINY.items() if key not in ("embed_dim", "vocab_size")}
DATA: dict[str, Any] = {
    "teacher": {
        "recipe": "clip",
        "data": "scenes:train?n=64",
        "student": {**TINY, "width": 32, "embed_dim": 24},
        "train": TRAIN,
    },
    "base": {"data": "scenes:train?n=64&seed=1", "student": STUDENT, "train": {**TRAIN, "lr": 3e-3}},
    "cells": {"clip": {"recipe": "clip"}, "feature": {"recipe": "feature"}},
    "seeds": [0, 1],
    "evaluate": {
        "retrieval": "scenes:test?n=20&copies=2",
        "image_retrieval": "scenes:test?n=20&copies=2",
        "zeroshot": "scenes:zeroshot?n=40",
    },
}


def grid(*overrides: str, **changes: Any) -> Grid:
    return make_grid({**DATA, **changes}, overrides)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    out = tmp_path_factory.mktemp("compared") / "out"
    outcome, page = compare(grid(), out)
    assert page == out / "report.html"
    return outcome, out


@pytest.fixture
def copy(done: tuple[Outcome, Path], tmp_path: Path) -> Path:
    """The comparison's folder, moved somewhere else."""
    return Path(shutil.copytree(done[1], tmp_path / "moved"))


def run_of(out: Path, cell: str, seed: int) -> Path:
    (folder,) = (path for path in (out / "cells" / cell).glob(f"seed-{seed}-*") if path.is_dir())
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")


def same_weights(left: Path, right: Path) -> bool:
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("this has been done before")


def test_students_start_alike_and_share_the_teachers_width_and_tokenizer(done: tuple[Outcome, Path]) -> None:
    known = Known()
    first = teacher_jobs(grid(), done[1], known)[None]["teacher"]
    work = jobs(grid(), done[1], known, {None: {"teacher": str(first.student)}})
    assert [(job.cell, job.draw.seed) for job in work] == [("clip", 0), ("feature", 0), ("clip", 1), ("feature", 1)]
    assert all(job.is_finished for job in work)
    clip, feature, other_seed = (prepare(job.config).student for job in work[:3])
    ours, theirs, others = (dict(one.module.state_dict()) for one in (clip, feature, other_seed))
    silent = {
        name for name in ours if name.startswith("vision_model.") and name.endswith(("out_proj.weight", "fc2.weight"))
    }
    assert all(torch.equal(ours[name], theirs[name]) != (name in silent) for name in ours)
    assert len(silent) == 2, "of one layer"
    assert not any(theirs[name].any() for name in silent), "with a teacher, layers begin as the identity"
    assert not all(torch.equal(ours[name], others[name]) for name in ours)
    assert clip.width == load(str(first.student)).width
    assert (work[0].config.teachers, work[1].config.teachers) == ({}, {"T": str(first.student)})


def test_the_csv_holds_what_evaluation_finds(done: tuple[Outcome, Path]) -> None:
    _, out = done
    rows = list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))
    wanted = DATA["evaluate"]
    tasks = Tasks.open(None, *(wanted[task] for task in METRICS))
    student, teacher = evaluate(
        {
            "s": load(str(run_of(out, "feature", 1) / "student")),
            "t": load(str(next((out / "teacher").iterdir()) / "student")),
        },
        tasks,
    )
    found = {row["metric"]: float(row["value"]) for row in rows if (row["cell"], row["seed"]) == ("feature", "1")}
    assert {name: found[name] for name in student.metrics} == pytest.approx(student.metrics, abs=1e-4)
    assert set(student.metrics) == {metric for names in METRICS.values() for metric in names}
    top = {row["metric"]: float(row["value"]) for row in rows if row["cell"] == "teacher"}
    assert top == pytest.approx(teacher.metrics, abs=1e-4)
    pairs = {
        "image": (student.galleries["retrieval"].images, teacher.galleries["retrieval"].images),
        "text": (student.texts, teacher.texts),
    }
    for side, (a, b) in pairs.items():
        assert a is not None
        assert b is not None
        each = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
        assert found[f"feature_cosine_{side}"] == pytest.approx(np.mean(each), abs=1e-4)
    assert found["train_seconds"] > 0


def test_the_report_tells_means_spreads_differences_and_gaps(done: tuple[Outcome, Path]) -> None:
    _, out = done
    rows = list(csv.DictReader((out / "comparison.csv").read_text().splitlines()))

    def values(cell: str, metric: str) -> list[float]:
        return [float(row["value"]) for row in rows if (row["cell"], row["metric"]) == (cell, metric)]

    report = json.loads((out / "report.json").read_text())
    assert list(report["models"]) == ["teacher", "clip", "feature"]
    model = report["models"]["feature"]
    assert model["seeds"] == [0, 1]
    for metric in ("mean_recall", "image_to_image_mAP", "zeroshot_acc1"):
        own, base, (top,) = values("feature", metric), values("clip", metric), values("teacher", metric)
        difference = [a - b for a, b in zip(own, base, strict=True)]
        half = 12.706205 * stdlib.stdev(difference) / 2**0.5
        mean = stdlib.mean(difference)
        assert model["metrics"][metric] == pytest.approx(stdlib.mean(own), abs=1e-3)
        assert model["spread"][metric] == pytest.approx(stdlib.stdev(own), abs=1e-3)
        assert model["differences"][metric] == pytest.approx(
            {"mean": mean, "low": mean - half, "high": mean + half}, abs=5e-3
        )
        gap = top - stdlib.mean(base)
        assert model["gap_closed"].get(metric) == (
            pytest.approx(100 * mean / gap, rel=1e-3, abs=0.1) if gap > 0 else None
        )
    assert "differences" not in report["models"]["teacher"]
    assert report["models"]["clip"]["differences"] == {}
    page = (out / "report.html").read_text()
    Tree(page)
    assert all(words in page for words in ("95% interval", "gap closed", "mean cosine of pictures"))


def test_what_is_finished_is_not_done_again(
    copy: Path, monkeypatch: pytest.MonkeyPatch, done: tuple[Outcome, Path]
) -> None:
    monkeypatch.setattr(running, "distill", refuse)
    monkeypatch.setattr(measure, "evaluate", refuse)
    again, _ = compare(grid(), copy)
    assert again.figures("feature", "mean_recall") == done[0].figures("feature", "mean_recall")
    assert {path.name for path in (copy / "cells").iterdir()} == {"clip", "feature"}
    with pytest.raises(AssertionError, match="done before"):
        compare(grid("train.lr=0.5"), copy)


def test_new_data_are_measured_without_training_and_learning_curves_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"cells": {"clip": {"recipe": "clip"}}, "seeds": [0], "teacher": None}
    base = {**DATA["base"], "train": {**TRAIN, "steps": 2}, "student": {**STUDENT, "vocab_size": 520}}
    first, _ = compare(grid(**small, base=base, evaluate={"retrieval": "scenes:test?n=20"}), tmp_path)
    monkeypatch.setattr(running, "distill", refuse)
    second, _ = compare(grid(**small, base=base, evaluate={"zeroshot": "scenes:zeroshot?n=20"}), tmp_path)
    assert (first.headline, second.headline) == (("mean_recall",), ("zeroshot_acc1",))
    assert second.metrics == list(METRICS["zeroshot"])
    (line,) = second.lines("zeroshot_acc1")
    assert (line.spread.sd, line.difference, line.closed, line.best) == (None, None, None, False)
    page = (tmp_path / "report.html").read_text()
    Tree(page)
    assert "Learning curves" not in page
    monkeypatch.undo()
    third, _ = compare(grid(**small, base=base, evaluate={"retrieval": "scenes:test?n=20", "every": 1}), tmp_path)
    ((steps, values),) = third.curves("mean_recall").values()
    assert steps == [1, 2]
    assert values[-1] == pytest.approx(third.mean("clip", "mean_recall"))
    page = (tmp_path / "report.html").read_text()
    Tree(page)
    assert "Learning curves" in page


def test_an_interrupted_run_goes_on(copy: Path, done: tuple[Outcome, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = run_of(copy, "feature", 0)
    shutil.rmtree(broken)
    trained = str(next((copy / "teacher").iterdir()) / "student")
    work = jobs(grid(), copy, Known(), {None: {"teacher": trained}})
    with monkeypatch.context() as patch:
        fail_at_step(patch, 4)
        with pytest.raises(RuntimeError, match="power cut"):
            run_all(work)
    assert (broken / "config.yaml").is_file()
    assert not (broken / "student").exists()
    monkeypatch.chdir(copy.parent)  # the teacher's tokenizer is named otherwise
    out = Path(copy.name)
    run_all(jobs(grid(), out, Known(), {None: {"teacher": str(Path(trained).relative_to(copy.parent))}}))
    assert same_weights(broken, run_of(done[1], "feature", 0))


def test_a_teacher_stays_where_batches_compare_its_rows_or_a_copy_of_it_is_pruned(
    done: tuple[Outcome, Path],
) -> None:
    trained = {"teacher": str(next((done[1] / "teacher").iterdir()) / "student")}
    cells = {
        "clip": {"recipe": "clip"},
        "chosen": {"recipe": "clip", "batches": {"select": "learnability", "super_batch": 2}},
        "staged": {"recipe": "clip", "stages": [{"batches": {"neighbours": 2}}, {}]},
    }
    work = {job.cell: job.config for job in jobs(grid(cells=cells, seeds=[0]), done[1], Known(), {None: trained})}
    assert {cell: config.teachers for cell, config in work.items()} == {
        "clip": {},
        "chosen": {"T": trained["teacher"]},
        "staged": {"T": trained["teacher"]},
    }
    base = {"data": "scenes:train?n=64&seed=1", "train": TRAIN}
    cell = {"recipe": "clip", "teacher": "teacher", "prune": {"sparsity": 0.5}}
    pruned = grid(base=base, cells={"pruned": cell}, seeds=[0])
    (job,) = jobs(pruned, done[1], Known(), {None: trained})
    assert (job.config.teachers, job.config.student.pretrained) == ({}, trained["teacher"])


def test_learning_curves_belong_to_the_pictures_not_to_their_address(
    done: tuple[Outcome, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {"teacher": str(next((done[1] / "teacher").iterdir()) / "student")}
    tried, source = tmp_path / "test", pairs("scenes:test?n=4")
    tried.mkdir()
    for index in range(4):
        Image.fromarray(source[index].image).save(tried / f"{index}.png")
        (tried / f"{index}.txt").write_text(source[index].captions[0])

    def names(uri: str) -> list[str]:
        found = grid("evaluate.every=2", evaluate={"retrieval": uri})
        return [job.folder.name for job in jobs(found, done[1], Known(), {None: trained})]

    before = names(str(tried))
    monkeypatch.chdir(tmp_path)
    assert names("test") == before
    (tried / "0.txt").write_text("another caption")
    assert not set(names("test")) & set(before)


def test_a_stopped_run_says_how_to_go_on(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise InterruptedRunError("stopped after step 2 of 6. Go on with the same command and --resume.")

    monkeypatch.setattr(running, "distill", stopped)
    with pytest.raises(InterruptedRunError, match=r"^clip, seed 0: stopped.*Go on with the same command\.$"):
        compare(grid("train.lr=0.5"), copy)


def test_a_run_in_a_process_of_its_own_is_the_same(copy: Path, done: tuple[Outcome, Path]) -> None:
    shutil.rmtree(run_of(copy, "clip", 1))
    compare(grid(), copy, at_once=2)
    assert same_weights(run_of(copy, "clip", 1), run_of(done[1], "clip", 1))


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (
            1,
            TrainingError,
            r"clip, seed 0: the run failed \(status 1\), see .*\.txt:\nerror: no room\n.* --cells A,B\.$",
        ),
        (130, InterruptedRunError, r"clip, seed 0: stopped.*Go on with the same command\.$"),
    ],
)
def test_a_process_that_fails_is_named_and_starts_no_other(
    status: int, kind: type[Exception], message: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    class Failing:
        def ask(self, **request: Any) -> dict[str, Any]:
            asked.append(request)
            Path(request["log"]).write_text("error: no room")
            return {"status": status}

        def close(self) -> None:
            pass

    work = jobs(grid("train.lr=0.5", "teacher=null", cells={"clip": {"recipe": "clip"}}), copy, Known(), {None: {}})
    monkeypatch.setattr(running, "Worker", Failing)
    monkeypatch.setattr(running, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
    with pytest.raises(kind, match=message):
        run_all(work, at_once=2)
    assert len(asked) == 1
    assert load_run(asked[0]["file"]) == work[0].config


def test_finished_runs_side_by_side(
    done: tuple[Outcome, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(run_of(done[1], cell, 0)) for cell in ("clip", "feature")]
    assert main(["compare", *runs, "evaluate.zeroshot=scenes:zeroshot?n=20", "--out", str(tmp_path / "one")]) == 0
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert [set(model["metrics"]) for model in report["models"].values()] == [set(METRICS["zeroshot"])] * 2
    for words, message in [
        ([runs[0], runs[1], "train.lr=3"], "these are finished"),
        (runs, "the runs name no data to evaluate on"),
        ([], "name a grid"),
        (["--recipes", "clip", "data=x", "train.steps=1"], "name data to evaluate on"),
        (["nothing.yaml"], "unknown grid 'nothing.yaml'"),
    ]:
        capsys.readouterr()
        assert main(["compare", *words, "--out", str(tmp_path / "three")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


def test_finished_runs_say_what_they_were_evaluated_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"a": {"retrieval": "x"}, "b": {"retrieval": "x", "zeroshot": "y"}, "c": {"retrieval": "z"}, "d": {}}
    for name, data in wanted.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(tiny_run(tmp_path / name, evaluate=data).to_yaml())
    a, b, c, d = (str(tmp_path / name) for name in wanted)
    monkeypatch.setattr("clipdistill.evidence.compare.compare_models", lambda runs, *uris: [*uris])
    assert compare_runs([a, b, d, "hub/model"], [], tmp_path) == [None, "x", None, "y", tmp_path]
    assert compare_runs([a, c], ["evaluate.zeroshot=w"], tmp_path) == [None, None, None, "w", tmp_path]
    with pytest.raises(ConfigError, match="different data: x and z"):
        compare_runs([a, c], [], tmp_path)


def trial(value: float, **more: Any) -> Trial:
    return Trial(Measured("a/b", 10, 6, 4, {"mean_recall": value}, {"image_ms": 1.0}, **more))


def test_the_best_is_marked_and_names_are_safe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = Draw(0), Draw(1)
    trials = {
        "clip": {one: trial(40.0), two: trial(41.0)},
        NASTY: {one: trial(50.0), two: trial(51.5)},
        "x": {one: trial(50.8)},
    }
    teachers = {"teacher": {None: trial(60.5).measured}}
    outcome = Outcome(trials, "clip", ("mean_recall",), teachers, dict.fromkeys(trials, "teacher"))
    lines = outcome.lines("mean_recall")
    assert [line.best for line in lines] == [False, True, True], "50.75 and 50.8 read the same"
    assert [line.closed for line in lines] == [None, pytest.approx(51.25), pytest.approx(51.5)]
    assert lines[2].difference is not None
    assert lines[2].difference.low is None
    page = grid_page(outcome, NASTY, {"data": NASTY})
    Tree(page)
    assert "<script" not in page
    assert (
        write_grid_report(outcome, tmp_path, "t", {}).read_text()
        == write_grid_report(outcome, tmp_path, "t", {}).read_text()
    )
    from rich.console import Console

    Console(width=160).print(*tables(outcome))
    printed = capsys.readouterr().out
    assert "gap closed" in printed
    assert printed.isascii() or "─" in printed


def test_teachers_may_lie_in_folders_with_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    given = {"teacher: [/v1]/[b]": {None: trial(60.5).measured}}
    outcome = Outcome({"clip": {Draw(0): trial(40.0)}}, "clip", ("mean_recall",), given)
    Console(width=160).print(*tables(outcome))
    assert "teacher: [/v1]/[b]" in capsys.readouterr().out


def test_a_number_of_jobs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--jobs is 0"):
        compare(grid(), tmp_path, at_once=0)
    run_all([])
