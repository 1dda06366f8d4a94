"""A grid whose cells train from their teacher's stored rows, as many at a time as the machine has room for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_compare import DATA, STUDENT, TRAIN, refuse, run_of, same_weights

from clipdistill.config import load_run
from clipdistill.errors import ConfigError, InterruptedRunError, TrainingError
from clipdistill.evidence import cells, measure, running
from clipdistill.evidence.cells import Job, Known
from clipdistill.evidence.compare import compare
from clipdistill.evidence.grid import Grid, make_grid
from clipdistill.evidence.grid_runs import Draw
from clipdistill.evidence.outcome import Outcome
from clipdistill.evidence.running import Worker, cores, fitting, free_memory, run_all
from clipdistill.models.loading import load
from clipdistill.teachers.embed import embed
from clipdistill.teachers.store import EmbeddingStore
from clipdistill.teachers.teacher import LiveTeacher
from tiny_runs import tiny_run

CELLS: dict[str, Any] = {"clip": {"recipe": "clip"}, "feature": {"recipe": "feature"}, "kd": {"recipe": "clip-kd"}}


def grid(*overrides: str, **changes: Any) -> Grid:
    evaluate = {"retrieval": "scenes:test?n=20"}
    return make_grid({**DATA, "stored": True, "seeds": [0], "evaluate": evaluate, "cells": CELLS, **changes}, overrides)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A grid trained from a store, by itself two at a time; no teacher may look at anything while students train."""
    out = tmp_path_factory.mktemp("stored grid") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveTeacher, "embed", refuse)
        patch.setattr(running, "cores", lambda: 2)
        outcome, _ = compare(grid(), out, at_once=None)
    return outcome, out


def test_each_teacher_is_embedded_once_and_every_cell_trains_from_it(done: tuple[Outcome, Path]) -> None:
    outcome, out = done
    (store,) = (out / "stores").iterdir()
    teacher = next((out / "teacher").iterdir()) / "student"
    manifest = EmbeddingStore.open(store).manifest
    assert (manifest.model.fingerprint, manifest.views.count) == (load(str(teacher)).fingerprint, 0)
    for cell, teachers in (("clip", {}), ("feature", {"T": f"{store}?views=any"}), ("kd", {"T": f"{store}?views=any"})):
        config = load_run(run_of(out, cell, 0) / "config.yaml")
        assert config.teachers == teachers
        assert config.augment not in ("whole", "stored"), "students see the views that live teachers would share"
        student = load(str(run_of(out, cell, 0) / "student"))
        assert (student.width, student.tokenizer.get_vocab()) == (24, load(str(teacher)).tokenizer.get_vocab())
    assert outcome.teachers["teacher"][None].uri == str(teacher), "gaps and cosines are to the model behind the store"
    assert outcome.trials["feature"][Draw(0)].measured.cosines.keys() == {"image", "text"}


def test_finished_cells_are_known_again_elsewhere_and_without_their_store(
    done: tuple[Outcome, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.copytree(done[1], tmp_path / "moved"))
    shutil.rmtree(moved / "stores")
    for module, name in ((running, "distill"), (measure, "evaluate"), (cells, "embed"), (running, "Worker")):
        monkeypatch.setattr(module, name, refuse)
    again, _ = compare(grid(), moved, at_once=None)
    assert again.figures("kd", "mean_recall") == done[0].figures("kd", "mean_recall")
    with pytest.raises(AssertionError, match="done before"):
        compare(grid("train.lr=0.5"), moved)


def test_a_stored_run_is_another_than_a_live_one_and_a_cell_may_stay_live(
    done: tuple[Outcome, Path], tmp_path: Path
) -> None:
    trained = {"teacher": str(next((done[1] / "teacher").iterdir()) / "student")}

    def folders(one: Grid) -> dict[str, Job]:
        return {job.cell: job for job in cells.jobs(one, tmp_path, Known(), {None: trained})}

    stored, live = folders(grid()), folders(grid("stored=false"))
    mixed = folders(grid(cells={**CELLS, "kd": {"recipe": "clip-kd", "stored": False}}))
    assert stored["clip"].folder == live["clip"].folder
    assert stored["kd"].folder != live["kd"].folder == mixed["kd"].folder
    assert mixed["feature"].folder == stored["feature"].folder
    scores = {"soft": {"recipe": "vanilla-kd"}}
    (job,) = cells.jobs(grid(cells=scores, baseline="soft"), tmp_path, Known(), {None: trained})
    assert job.config.teachers == {"T": trained["teacher"]}, "a store holds no class scores"


def test_targets_may_be_means_of_views_drawn_as_the_student_sees_them(
    done: tuple[Outcome, Path], tmp_path: Path
) -> None:
    teacher = str(next((done[1] / "teacher").iterdir()) / "student")
    cells_ = {"clip": {"recipe": "clip"}, "kd": {"recipe": "feature"}, "whole": {"recipe": "feature", "stored": True}}
    asked = grid(
        "stored=2",
        "augment.crop=[0.6,1]",
        cells=cells_,
        teacher=None,
        base={**DATA["base"], "teachers": {"T": teacher}},
    )
    compare(asked, tmp_path / "out")
    means, whole = (load_run(run_of(tmp_path / "out", cell, 0) / "config.yaml") for cell in ("kd", "whole"))
    (store, query), (other, any_views) = (config.teachers["T"].split("?") for config in (means, whole))
    assert (query, any_views) == ("views=mean", "views=any")
    plan = EmbeddingStore.open(store).manifest.views
    assert (plan.count, plan.augmentation and plan.augmentation.crop) == (2, (0.6, 1.0))
    assert EmbeddingStore.open(other).manifest.views.count == 0
    assert not same_weights(run_of(tmp_path / "out", "kd", 0), run_of(tmp_path / "out", "whole", 0))


def test_an_interrupted_store_is_gone_on_with(
    done: tuple[Outcome, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(done[1], tmp_path / "copy"))
    shutil.rmtree(copy / "cells")
    (store,) = (copy / "stores").iterdir()
    shutil.rmtree(store)

    def stopping(data: str, model: str, out: Path, **more: Any) -> None:
        embed(data, model, out, shard=(1, 2), shard_size=16, **more)
        raise InterruptedRunError("stopped. Run the same command again to go on.")

    small = grid(cells={"feature": CELLS["feature"]}, baseline="feature")
    with monkeypatch.context() as patch:
        patch.setattr(cells, "embed", stopping)
        with pytest.raises(InterruptedRunError, match="Run the same command again"):
            compare(small, copy)
    before = {path.name: path.stat().st_mtime_ns for path in (store / "image").iterdir()}
    assert before
    assert not (copy / "cells" / "feature").exists()
    compare(small, copy)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in (store / "image").iterdir()}.items()
    assert same_weights(run_of(copy, "feature", 0), run_of(done[1], "feature", 0))


def test_what_cannot_be_stored_is_refused_before_anything_is_trained() -> None:
    for odd in ("yes please", "1", "-2"):
        with pytest.raises(ConfigError, match=f"stored: expected true, false or a number of views.* found '?{odd}'?"):
            grid(f"stored={odd}")
    with pytest.raises(ConfigError, match="cell kd, stored: expected true, false or a number of views"):
        grid(cells={**CELLS, "kd": {"recipe": "clip-kd", "stored": "no"}})
    with pytest.raises(ConfigError, match="stored=4 embeds views drawn as augment says, and augment is whole"):
        grid("stored=4", "augment=whole")
    with pytest.raises(ConfigError, match=r"cell kd: with stored=true .* unpaired data"):
        grid(cells={**CELLS, "kd": {"recipe": "clip-kd", "unpaired": ["scenes:teacher?caption=none"]}})


def test_as_many_runs_as_memory_has_room_for(tmp_path: Path) -> None:
    assert fitting(8, 100, None) == 8
    assert [fitting(8, 100, free) for free in (0, 100, 299, 300, 10**6)] == [1, 1, 1, 2, 8]
    assert free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:  500 kB\n")
    assert free_memory(tmp_path) == 500 * 1024
    (tmp_path / "sys" / "fs" / "cgroup").mkdir(parents=True)
    for limit, free in (("max", 500 * 1024), ("4000", 3000), ("10", 0)):
        (tmp_path / "sys" / "fs" / "cgroup" / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "sys" / "fs" / "cgroup" / "memory.current").write_text("1000\n")
        assert free_memory(tmp_path) == free
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_a_worker_measures_trains_and_outlives_a_run_that_fails(tmp_path: Path) -> None:
    good, bad = (tmp_path / f"{name}.yaml" for name in ("good", "bad"))
    config = tiny_run(tmp_path / "good", train={"steps": 2})
    good.write_text(config.to_yaml())
    bad.write_text(
        config.model_copy(update={"data": str(tmp_path / "nowhere"), "out": str(tmp_path / "bad")}).to_yaml()
    )
    log = tmp_path / "log.txt"
    worker = Worker()
    try:
        found = worker.ask(measure=[str(good)], threads=1, log=str(log))
        assert found["peak"] > 50e6
        assert not (tmp_path / "good").exists()
        job = Job("bad", Draw(0), load_run(bad))
        with pytest.raises(TrainingError, match=r"bad, seed 0: the run failed \(status 1\)(.|\n)*nowhere"):
            running._train(worker, job, 1)
        assert worker.ask(file=str(good), resume=False, threads=1, log=str(log)) == {"status": 0}
        assert (tmp_path / "good" / "student").is_dir()
        assert "preflight" in log.read_text()
        worker._process.kill()
        assert worker.ask(file=str(good), resume=False, threads=1, log=str(log))["status"] < 0
    finally:
        worker.close()


def test_a_single_run_needs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "Worker", refuse)
    job = Job(
        "one", Draw(0), tiny_run(tmp_path / "one", student={**STUDENT, "vocab_size": 520}, train={**TRAIN, "steps": 1})
    )
    run_all([job], None)
    assert job.is_finished
