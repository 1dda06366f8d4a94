"""Claim: with the teacher's embeddings stored, a step of distillation takes a fraction of the time and memory.

CLIP-Embed-KD (arXiv 2404.06170) reports 8 times less time and 9 times less memory, the latter of models alone. Here
the same run takes the same steps with its teacher live and stored, each in a process of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from clipdistill.bench.kd_steps import PARTS
from clipdistill.bench.process import ask, run_module
from clipdistill.bench.result import Result, columns
from clipdistill.progress import progress

LARGE = "vit-large-14"
#: CLIP's two published sizes, both towers.
TEACHERS: dict[str, dict[str, Any]] = {
    "vit-base-16": {"preset": "vit-base-16"},
    LARGE: {
        "preset": "vit-base-16",
        **{"patch_size": 14, "width": 1024, "layers": 24, "heads": 16},
        **{"text_width": 768, "text_heads": 12, "embed_dim": 768},
    },
}
#: What the largest teacher is meant to reach on a CPU.
AIMS = {"step_time": 10.0, "model_bytes": 9.0}
MODES = ("live", "stored")


@dataclass(frozen=True)
class Scope:
    """How much is measured: ``rounds`` times one process for each mode, of so many ``steps``.

    The last of the ``teachers``, in the first of the ``precisions``, gives the headline ratios.
    """

    teachers: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: TEACHERS)
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    student: Mapping[str, Any] = field(default_factory=lambda: {"preset": "vit-tiny-16"})
    vocabulary: int = 49408
    pictures: int = 64
    batch_size: int = 16
    rounds: int = 2
    steps: Mapping[str, int] = field(default_factory=lambda: {"live": 2, "stored": 6})


def run(scope: Scope | None = None) -> Result:
    """Measure steps with a live and with a stored teacher in turn; see :class:`Scope`.

    Raises:
        TrainingError: one of the processes failed.
    """
    scope = scope or _default()
    runs = len(scope.teachers) * len(scope.precisions) * scope.rounds * len(MODES)
    with (
        tempfile.TemporaryDirectory(prefix="clipdistill-bench-") as name,
        progress("bench embed-kd", 1 + 2 * len(scope.teachers) + runs, "parts") as advance,
    ):
        folder, done = Path(name), 0

        def told(part: str) -> None:
            nonlocal done
            done += 1
            advance(done, part)

        draw(folder, scope)
        told("pictures")
        embedding, cases = {}, []
        for teacher in scope.teachers:
            embedding[teacher] = embed(folder, teacher, scope, told)
            cases += [_case(folder, teacher, precision, scope, told) for precision in scope.precisions]
    return _result(scope, embedding, cases)


def _default() -> Scope:
    """A GPU needs larger batches to be busy."""
    if not torch.cuda.is_available():
        return Scope()
    return Scope(pictures=1024, batch_size=256, steps={"live": 8, "stored": 16})


def draw(folder: Path, scope: Scope) -> None:
    """Draw the pictures of a run."""
    ask("clipdistill.bench.kd_inputs", folder=f"{folder}/data", vocabulary=scope.vocabulary, pictures=scope.pictures)


def embed(folder: Path, teacher: str, scope: Scope, told: Callable[[str], None]) -> dict[str, float]:
    """Make a teacher, and its store by ``clipdistill embed``; seconds of that command, rows, and bytes of the store."""
    model, store = folder / teacher, folder / f"{teacher}-store"
    spec = dict(scope.teachers[teacher])
    ask("clipdistill.bench.kd_inputs", folder=str(model), vocabulary=scope.vocabulary, teacher=spec)
    told(f"{teacher} made")
    began = time.perf_counter()
    run_module("clipdistill", "embed", str(folder / "data"), "--model", str(model), "--out", str(store))
    seconds = time.perf_counter() - began
    told(f"{teacher} embedded")
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return {"seconds": seconds, "rows": 2 * scope.pictures, "store_bytes": size}


def _case(folder: Path, teacher: str, precision: str, scope: Scope, told: Callable[[str], None]) -> dict[str, Any]:
    """One teacher in one precision: both modes in turn, and their ratios."""
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for _ in range(scope.rounds):
        for mode in MODES:
            uri = folder / (teacher if mode == "live" else f"{teacher}-store")
            config = configure(folder, uri, precision, scope)
            found[mode].append(ask("clipdistill.bench.kd_steps", run=config, steps=scope.steps[mode]))
            told(f"{teacher} {precision} {mode}")
    live, stored = (_summary(found[mode], scope.batch_size) for mode in MODES)
    ratios = {
        "step_time": live["step_seconds"] / stored["step_seconds"],
        "samples_per_second": stored["samples_per_second"] / live["samples_per_second"],
        "model_bytes": live["model_bytes"] / stored["model_bytes"],
        "peak_memory": live["peak_bytes"] / stored["peak_bytes"],
    }
    return {"teacher": teacher, "precision": precision, "live": live, "stored": stored, "ratios": ratios}


def configure(folder: Path, teacher: Path, precision: str, scope: Scope) -> dict[str, Any]:
    """The run that is measured: whole pictures, for those were embedded."""
    return {
        "recipe": "clip-kd",
        "data": str(folder / "data"),
        "teachers": {"T": str(teacher)},
        "student": dict(scope.student),
        "augment": "whole",
        "train": {"epochs": 1, "batch_size": scope.batch_size, "precision": precision},
        "out": str(folder / "run"),
    }


def _summary(found: list[dict[str, Any]], batch_size: int) -> dict[str, Any]:
    """What the processes of one mode have found, as one."""
    steps = [seconds for process in found for seconds in process["steps"]]
    return {
        "step_seconds": median(steps),
        "samples_per_second": batch_size * len(steps) / sum(steps),
        "model_bytes": found[0]["model_bytes"],
        "peak_bytes": median(process["peak_bytes"] for process in found),
        "parts": {part: median(process["parts"][part] for process in found) for part in PARTS},
        "student_parameters": found[0]["student_parameters"],
        "device": found[0]["device"],
        "steps": steps,
    }


def _result(scope: Scope, embedding: dict[str, dict[str, float]], cases: list[dict[str, Any]]) -> Result:
    largest = list(scope.teachers)[-1]
    headline = next(case for case in cases if case["teacher"] == largest)
    measured = {
        "device": headline["live"]["device"],
        "batch_size": scope.batch_size,
        "teachers": {name: dict(spec) for name, spec in scope.teachers.items()},
        "student": dict(scope.student),
        "aims": AIMS,
        "embedding": embedding,
        "cases": cases,
    }
    heads = ["", "step s", "samples/s", "model MB", "peak MB", *PARTS]
    table = columns([heads, *(line for case in cases for line in _lines(case))])
    title = f"distillation with a live and a stored teacher on {measured['device']}, {scope.batch_size} pictures a step"
    told = [_told(name, cost) for name, cost in embedding.items()]
    aims = [_aims(case) for case in cases if case["teacher"] == largest and measured["device"] == "cpu"]
    return Result(headline["ratios"], measured, "\n".join([title, table, *told, *aims]))


def _lines(case: dict[str, Any]) -> list[list[str]]:
    """A case as rows of the table: each mode, and how many times better stored is."""
    name = f"{case['teacher']} {case['precision']}"
    rows = []
    for mode in MODES:
        found = case[mode]
        figures = [f"{found['step_seconds']:.3f}", f"{found['samples_per_second']:.1f}"]
        sizes = [f"{found[key] / 1e6:,.0f}" for key in ("model_bytes", "peak_bytes")]
        rows.append([f"{name} {mode}", *figures, *sizes, *(f"{found['parts'][part]:.3f}" for part in PARTS)])
    ratios = [f"{ratio:.1f}x" for ratio in case["ratios"].values()]
    return [*rows, [f"{name} ratio", *ratios, *("" for _ in PARTS)]]


def _told(name: str, cost: dict[str, float]) -> str:
    """What a store costs, once."""
    return (
        f"{name}: {cost['rows']} rows embedded once in {cost['seconds']:.1f} s, start included, into "
        f"{cost['store_bytes'] / 1e6:.2f} MB"
    )


def _aims(case: dict[str, Any]) -> str:
    told = (
        f"{name} {case['ratios'][name]:.1f}x, aim {aim:g}x {'reached' if case['ratios'][name] >= aim else 'missed'}"
        for name, aim in AIMS.items()
    )
    return f"{case['teacher']} {case['precision']}: {'; '.join(told)}"
