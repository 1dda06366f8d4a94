"""The demonstration: drawn pictures, a teacher, a student without and with distillation, and the difference.

The teacher sees plenty of clean data, the student little and careless data. Both students are the same model with the
same data, the same number of steps and the same optimiser; the recipe differs, and what comes with a teacher: its rows,
stored before, and layers that start as the identity.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from clipdistill.algebra.recipe import Recipe
from clipdistill.config import RunConfig, make_run
from clipdistill.data.views import Augmentation
from clipdistill.errors import ConfigError
from clipdistill.evaluation.evaluate import Tasks
from clipdistill.evidence.finish import report_on
from clipdistill.evidence.report import table
from clipdistill.progress import console
from clipdistill.teachers.embed import embed
from clipdistill.training.loop import distill

_TEACHER: dict[str, Any] = {"batch_size": 128, "steps": 420, "muon_lr": 0.02, "lr": 2e-3}
_STUDENT: dict[str, Any] = {"batch_size": 64, "steps": 700, "muon_lr": 0.028, "lr": 4.2e-3, "weight_decay": 0.1}
_DATA = "scenes:train"
_AUGMENT: dict[str, Any] = {"crop": (0.9, 1.0), "colour": 0.25}
#: Of each picture, of which a target is the mean.
_VIEWS = 8
#: Captioned pictures, pairs of the same scene, and labelled ones.
_TESTS = ("scenes:test", "scenes:test?n=500&copies=2", "scenes:zeroshot")


def run(out: Path) -> Path:
    """Train the three models into ``out`` and write report.html and report.json there.

    Raises:
        ConfigError: ``out`` is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is not empty. Name a folder that does not exist yet, or remove it.")
    started, runs = time.monotonic(), _runs(out)
    for number, (name, config) in enumerate(runs.items(), 1):
        console.print(f"\n{number}/3 {name}: recipe {Recipe.load(config.recipe).name} on {config.data}", markup=False)
        if config.teachers:
            teacher = str(out / "teacher" / "student")
            embed(_DATA, teacher, out / "store", views=_VIEWS, augmentation=Augmentation(**_AUGMENT))
        distill(config)
    console.print("\nevaluating")
    tasks = Tasks.open(None, *_TESTS)
    models = {name: config.out for name, config in runs.items()}
    evaluations, report = report_on(models, tasks, out, "clipdistill demo: what distillation keeps")
    console.print(table(evaluations))
    console.print(f"report: {report} ({time.monotonic() - started:.0f} s in all)", markup=False)
    return report


def _runs(out: Path) -> dict[str, RunConfig]:
    teacher = {
        "recipe": "clip",
        "data": "scenes:teacher",
        "student": {"preset": "scenes-teacher", "vocab_size": 1024},
        "augment": {"crop": [0.9, 1.0], "colour": 0.5},
        "train": _TEACHER,
        "out": str(out / "teacher"),
    }
    student = {
        "data": _DATA,
        "student": {"preset": "scenes-student", "tokenizer": str(out / "teacher" / "student")},
        "augment": _AUGMENT,
        "train": _STUDENT,
    }
    distilled = {"recipe": "best", "teachers": {"T": f"{out / 'store'}?views=mean"}}
    return {
        "teacher": make_run(teacher),
        "baseline": make_run({**student, "recipe": "clip", "out": str(out / "baseline")}),
        "distilled": make_run({**student, **distilled, "out": str(out / "distilled")}),
    }
