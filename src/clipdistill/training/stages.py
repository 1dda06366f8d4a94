"""Several stages in one run file: each starts from the student of the one before, while the teachers stay.

::

    OUT/config.yaml  stage-1/  stage-2/ ...   each stage a whole run folder
    OUT/student/                              the last stage's student
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdistill.algebra.recipe import Recipe
from clipdistill.config import LENGTHS, RunConfig, StageConfig, make_run
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError
from clipdistill.files import write_text
from clipdistill.progress import console
from clipdistill.training import loop, run_folder, trackers
from clipdistill.training.checks import check_bank, check_letters, used_teachers
from clipdistill.training.loop import Run
from clipdistill.training.ranks import Ranks, joined

#: What a stage may say of a student that it does not make, and else takes over from the run.
_KEPT = ("freeze", "matryoshka")


def distill(config: RunConfig, resume: bool = False) -> Run:
    """Train a student as configured, in one run or in stages, and write it to ``out/student``.

    With ``resume``, finished stages are left as they are and the interrupted one goes on; see ``loop.distill``.

    Raises:
        ClipdistillError: anything in the configuration, the data or the models does not fit.
    """
    if not config.stages:
        return loop.distill(config, resume)
    with joined() as ranks:
        return _in_stages(run_folder.resolved(config), resume, ranks)


def _in_stages(config: RunConfig, resume: bool, ranks: Ranks) -> Run:
    runs = stage_runs(config)
    trackers.check(config.track)
    if resume:
        run_folder.check_there(config)  # a stage that has begun is compared when its turn comes; the others may change
    else:
        run_folder.check_new(config)
    _check(runs)
    folder = Path(config.out)
    ranks.wait()  # all have seen what was there
    if ranks.main:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / run_folder.CONFIG, config.to_yaml())
    ranks.wait()
    steps = sum(_train_stage(run, number, len(runs)) for number, run in enumerate(runs, start=1))
    if ranks.main:
        _copy_student(Path(runs[-1].out), folder)
    return Run(folder, folder / run_folder.STUDENT, steps)


def stage_runs(config: RunConfig) -> list[RunConfig]:
    """Return one run for each stage: the run's settings with the stage's changes.

    A stage after the first inherits from the student before it (``student.inherit``), prunes it (``prune``), or else
    trains it on.

    Raises:
        ConfigError: a stage does not make a run; says which.
    """
    return [_stage_run(config, stage, number) for number, stage in enumerate(config.stages, start=1)]


def train_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Put settings of a training over others; a length takes the place of whichever length was there."""
    own_length = any(length in changes for length in LENGTHS)
    return {**{key: value for key, value in base.items() if not (own_length and key in LENGTHS)}, **changes}


def _stage_run(config: RunConfig, stage: StageConfig, number: int) -> RunConfig:
    where = f"stages, number {number}"
    train = train_over(config.train.model_dump(exclude_defaults=True), stage.train)
    prune = {**(config.prune.model_dump() if config.prune else {}), **stage.prune}
    student = {**config.student.model_dump(exclude_defaults=True), **stage.student}
    if number > 1:
        student = _next_student(student, stage, bool(prune), f"{_folder(config, number - 1)}/{run_folder.STUDENT}")
    recipe = Recipe.load(config.recipe if stage.recipe is None else stage.recipe)
    batches = config.batches.model_dump() | stage.batches
    used = used_teachers(recipe, config.teachers, batches)
    changes = {
        "recipe": recipe.to_dict(),
        "teachers": {letter: uri for letter, uri in config.teachers.items() if letter in used},
        "bank": config.bank.model_dump() | stage.bank,
        "batches": batches,
        "train": train,
        "prune": prune or None,
        "student": student,
        "out": _folder(config, number),
    }
    return make_run(config.model_dump(exclude={"stages"}) | changes, where)


def _check(runs: list[RunConfig]) -> None:
    """Find what does not fit in a later stage before the first one is trained."""
    samples = len(pairs(runs[0].data))
    for run in runs:
        recipe = Recipe.load(run.recipe)
        check_letters(recipe, run)
        check_bank(recipe, run, samples)
        run.train.plan(samples)


def _folder(config: RunConfig, number: int) -> str:
    return str(Path(config.out) / f"stage-{number}")


def _next_student(student: dict[str, Any], stage: StageConfig, pruned: bool, previous: str) -> dict[str, Any]:
    """Return the student of a later stage, which starts from ``previous``."""
    if student.get("inherit") and not pruned:
        return {**student, "inherit_from": previous}
    if others := [key for key in stage.student if key not in _KEPT]:
        raise ConfigError(
            "a stage after the first starts from the student before it, but "
            f"student.{', student.'.join(others)} would make another one. Add student.inherit to it, or drop "
            "these keys."
        )
    return {"pretrained": previous, **{key: student[key] for key in _KEPT if key in student}}


def _train_stage(run: RunConfig, number: int, count: int) -> int:
    """Train one stage unless it is finished, from its newest checkpoint if it has begun; returns its steps."""
    folder = Path(run.out)
    console.print(f"stage {number} of {count}: {folder}", markup=False)
    if not (folder / run_folder.STUDENT).is_dir():
        return loop.distill(run, resume=(folder / run_folder.CONFIG).is_file()).steps
    run_folder.check_same(run)
    return max(int(entry.get("step", 0)) for entry in run_folder.read_log(folder / run_folder.LOG))


def _copy_student(last: Path, folder: Path) -> None:
    """Copy the last stage's student into the run's own folder, whole or not at all."""
    target, fresh = folder / run_folder.STUDENT, folder / f".{run_folder.STUDENT}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(last / run_folder.STUDENT, fresh)
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)
