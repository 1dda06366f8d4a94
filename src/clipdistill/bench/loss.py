"""Claim: a loss in strips needs memory linear in the batch, and no more time than with its matrices stored.

The recipes ``clip`` and ``clip-kd``, as this program computes them, are measured beside the same with every matrix
stored, and beside the computation of CLIP-KD's published code. Every case is a process of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from clipdistill.bench.loss_forms import FORMS
from clipdistill.bench.process import ask
from clipdistill.bench.result import Result, columns
from clipdistill.errors import TrainingError
from clipdistill.progress import progress

OURS, REFERENCE = FORMS[0], FORMS[-1]
#: Further apart than this, relatively and in double precision, two forms would be two losses.
_APART = 1e-6
#: A process starts in about so many seconds.
_START = 5.0


@dataclass(frozen=True)
class Scope:
    """Which batches are measured, in so many seconds together; the forms are compared at the first ``batch``."""

    batches: Sequence[int] = (4096, 8192, 16384, 32768, 65536)
    width: int = 512
    recipes: Sequence[str] = ("clip", "clip-kd")
    seconds: float = 600.0


@dataclass(frozen=True)
class Case:
    """One recipe in one form on one batch: what was ``found``, or else why it was ``left_out``."""

    recipe: str
    form: str
    batch: int
    found: dict[str, Any] = field(default_factory=dict)
    left_out: str = ""


def run(scope: Scope | None = None) -> Result:
    """Measure every case that memory and time allow, the small batches first; see :class:`Scope`.

    Raises:
        TrainingError: one of the processes failed, or the forms are not the same loss.
    """
    scope = scope or Scope()
    began = time.monotonic()
    wanted = [(b, recipe, form) for b in scope.batches for recipe in scope.recipes for form in FORMS]
    apart, cases = {}, list[Case]()
    with progress("bench loss", len(scope.recipes) + len(wanted), "cases") as advance:
        for recipe in scope.recipes:
            apart[recipe] = _agree(recipe, scope)
            advance(len(apart), f"{recipe} compared")
        for batch, recipe, form in wanted:
            left = scope.seconds - (time.monotonic() - began)
            cases.append(_case(recipe, form, batch, scope, cases, left))
            advance(len(apart) + len(cases), f"{recipe} {form} {batch}")
    return _result(scope, apart, cases)


def _agree(recipe: str, scope: Scope) -> dict[str, float]:
    """How far the other forms are from ours, relatively."""
    module = "clipdistill.bench.loss_forms"
    found: dict[str, float] = ask(module, recipe=recipe, batch=scope.batches[0], width=scope.width)
    for form, distance in found.items():
        if not distance <= _APART:
            raise TrainingError(
                f"bench loss: recipe {recipe} in {OURS} and in form {form} differ by {distance:.1e} at "
                f"{scope.batches[0]} rows, more than {_APART:g}; comparing their speed would mean nothing. "
                "This is a defect of clipdistill: please report it."
            )
    return found


def _case(recipe: str, form: str, batch: int, scope: Scope, before: Sequence[Case], left: float) -> Case:
    """Measure a case, unless what smaller batches took says that it would not fit."""
    same = [case for case in before if (case.recipe, case.form) == (recipe, form)]
    if same and same[-1].left_out:
        return Case(recipe, form, batch, left_out=same[-1].left_out)
    seconds, size = _START, 0.0
    if same:
        last, times = same[-1], batch / same[-1].batch
        seconds += last.found["seconds"] * times**2
        size = last.found["bytes"] * (times if form == OURS else times**2)
    if size > 0.9 * _available():
        return Case(recipe, form, batch, left_out="memory")
    if seconds > left:
        return Case(recipe, form, batch, left_out="time")
    found = ask("clipdistill.bench.loss_forms", recipe=recipe, batch=batch, width=scope.width, form=form)
    return Case(recipe, form, batch, found)


def _available() -> float:
    """Bytes that a process can still have, on the GPU if there is one."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    listing = Path("/proc/meminfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    free = [1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return free[0] if free else float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _result(scope: Scope, apart: dict[str, dict[str, float]], cases: Sequence[Case]) -> Result:
    measured = {
        "width": scope.width,
        "apart": apart,
        "cases": [{**vars(case), "ratios": _ratios(case, cases)} for case in cases],
    }
    device = next((case.found["device"] for case in cases if case.found), "cpu")
    heads = ["", "rows", "seconds", "MB added", f"time / {OURS}", f"memory / {OURS}"]
    title = f"forward and backward of a loss on {device}, embeddings of width {scope.width}, float32"
    told = [
        f"{recipe}: {OURS} and {form} differ by {distance:.0e} at {scope.batches[0]} rows in double precision"
        for recipe, found in apart.items()
        for form, distance in found.items()
    ]
    table = columns([heads, *(_line(case, cases) for case in cases)])
    return Result(_headline(cases), measured, "\n".join([title, table, *told]))


def _ratios(case: Case, cases: Sequence[Case]) -> dict[str, float]:
    """Time and memory of a case as multiples of ours on the same batch."""
    ours = next((c for c in cases if (c.recipe, c.batch, c.form) == (case.recipe, case.batch, OURS)), case)
    if not case.found or not ours.found:
        return {}
    return {
        "time": case.found["seconds"] / ours.found["seconds"],
        "memory": case.found["bytes"] / max(1, ours.found["bytes"]),
    }


def _headline(cases: Sequence[Case]) -> dict[str, float]:
    """The published way as multiples of ours, at the largest batch that both could do."""
    found: dict[str, float] = {}
    for case in cases:
        if case.form == REFERENCE:
            name = case.recipe.replace("-", "_")
            found |= {f"{name}_loss_{kind}": ratio for kind, ratio in _ratios(case, cases).items()}
    return found


def _line(case: Case, cases: Sequence[Case]) -> list[str]:
    name = [f"{case.recipe} {case.form}", f"{case.batch:,}"]
    if case.left_out:
        return [*name, "left out:", f"no {case.left_out}", "", ""]
    figures = [f"{case.found['seconds']:.2f}", f"{case.found['bytes'] / 1e6:,.0f}"]
    return [*name, *figures, *(f"{ratio:.2f}x" for ratio in _ratios(case, cases).values())]
