"""Where the time of a training step goes, in one process and in two, and what compiling and another memory format save.

The same measured step as in :mod:`clipdistill.bench.embed_kd`, for a small student and for CLIP-KD's.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from clipdistill.bench import embed_kd
from clipdistill.bench.kd_steps import COMMUNICATION, PARTS
from clipdistill.bench.process import ask, ask_several
from clipdistill.bench.result import Result, columns
from clipdistill.models.device import choose_device, choose_precision
from clipdistill.progress import progress

MODULE = "clipdistill.bench.kd_steps"
PROCESSES = 2
ALL_PARTS = (*PARTS, COMMUNICATION)
#: What the parts of kd_steps are called here.
NAMES = {"batch": "data", "graph": "loss"}
#: Compiling is done in the first steps, anew for captions of another length.
_WARM_UP = {"compile": 4}


def _size(student: str, teacher: str, vocabulary: int) -> embed_kd.Scope:
    return embed_kd.Scope(
        teachers={teacher: {"preset": teacher}},
        student={"preset": student},
        vocabulary=vocabulary,
        pictures=128,
        batch_size=64,
    )


@dataclass(frozen=True)
class Scope:
    """The ``sizes`` whose step is taken apart, and the ``ways`` of each of some students, eager first.

    The latter learn from the stored teacher of the last size, ``batch_size`` pictures at once. A case is given
    ``limit`` seconds, start and compiling included, and is told to be unfinished after that.
    """

    sizes: Mapping[str, embed_kd.Scope] = field(
        default_factory=lambda: {
            "scenes": _size("scenes-student", "scenes-teacher", 1024),
            "vit-tiny-16": _size("vit-tiny-16", "vit-base-16", 49408),
        }
    )
    students: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            "vit-tiny-16": {"preset": "vit-tiny-16"},
            "efficientnet-b0": {"preset": "efficientnet-b0"},
        }
    )
    ways: Mapping[str, Sequence[str]] = field(
        default_factory=lambda: {
            "vit-tiny-16": ("eager", "compile"),
            "efficientnet-b0": ("eager", "channels_last", "compile"),
        }
    )
    batch_size: int = 16
    steps: int = 3
    limit: float = 300.0


def run(scope: Scope | None = None) -> Result:
    """Measure every step; see :class:`Scope`.

    Raises:
        TrainingError: one of the processes failed.
    """
    scope, precision = scope or Scope(), choose_precision(choose_device("auto"), "auto")
    cases = list[dict[str, Any]]()
    parts = 6 * len(scope.sizes) + sum(map(len, scope.ways.values()))
    with (
        tempfile.TemporaryDirectory(prefix="clipdistill-bench-") as name,
        progress("bench step", parts, "parts") as advance,
    ):
        done = 0

        def told(part: str) -> None:
            nonlocal done
            done += 1
            advance(done, part)

        for size_name, size in scope.sizes.items():
            folder = Path(name) / size_name
            cases += _taken_apart(folder, size_name, size, precision, scope, told)
        for student, ways in scope.ways.items():
            other = replace(size, student=scope.students[student], batch_size=scope.batch_size)
            for way in ways:
                cases.append(_case(folder, student, other, precision, "stored", 1, way, scope))
                told(f"{student} {way}")
    return _result(cases, precision)


def _taken_apart(
    folder: Path, name: str, size: embed_kd.Scope, precision: str, scope: Scope, told: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A step with its teacher live and stored, in one process and in several."""
    folder.mkdir()
    embed_kd.draw(folder, size)
    (teacher,) = size.teachers
    embed_kd.embed(folder, teacher, size, told)
    cases = []
    for mode in embed_kd.MODES:
        for processes in (1, PROCESSES):
            cases.append(_case(folder, name, size, precision, mode, processes, "eager", scope))
            told(f"{name} {mode} in {processes}")
    return cases


def _case(
    folder: Path, name: str, size: embed_kd.Scope, precision: str, mode: str, processes: int, way: str, scope: Scope
) -> dict[str, Any]:
    (teacher,) = size.teachers
    config = embed_kd.configure(folder, folder / (teacher if mode == "live" else f"{teacher}-store"), precision, size)
    asked: dict[str, Any] = {
        "run": config,
        "steps": scope.steps,
        "warm_up": _WARM_UP.get(way, 1),
        "way": way,
        "within": scope.limit,
    }
    case = {"name": name, "teacher": mode, "processes": processes, "way": way, "batch_size": size.batch_size}
    try:
        found = ask(MODULE, **asked) if processes == 1 else ask_several(processes, MODULE, **asked)
    except subprocess.TimeoutExpired:
        return {**case, "left_out": f"did not finish in {scope.limit:g} s"}
    return {**case, "step_seconds": median(found["steps"]), **found, "left_out": ""}


def _result(cases: Sequence[dict[str, Any]], precision: str) -> Result:
    heads = ["", "rows", "step s", *(NAMES.get(part, part) for part in ALL_PARTS)]
    title = f"a training step on {choose_device('auto').type} in {precision}: seconds, and what they go to"
    table = columns([heads, *map(_line, cases)])
    ratios = _ratios(cases)
    told = [f"{name}: {ratio:.2f} times as fast" for name, ratio in ratios.items()]
    told += [f"{_name(case)} {case['left_out']}" for case in cases if case["left_out"]]
    return Result(ratios, {"precision": precision, "cases": list(cases)}, "\n".join([title, table, *told]))


def _ratios(cases: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How many times faster than eager each other way is, and several processes than one."""
    found, eager = dict[str, float](), dict[tuple[str, str, int], float]()
    for case in cases:
        if case["left_out"]:
            continue
        key = (case["name"], case["teacher"], case["batch_size"])
        if case["processes"] == 1 and case["way"] == "eager":
            eager[key] = case["step_seconds"]
            continue
        what = case["way"] if case["processes"] == 1 else f"{case['processes']}_processes_{case['teacher']}"
        if key in eager:
            found[f"{case['name']}_{what}"] = eager[key] / case["step_seconds"]
    return found


def _line(case: dict[str, Any]) -> list[str]:
    if case["left_out"]:
        return [_name(case), str(case["batch_size"]), "-", *("-" for _ in ALL_PARTS)]
    parts = (f"{case['parts'].get(part, 0):.3f}" for part in ALL_PARTS)
    return [_name(case), str(case["batch_size"]), f"{case['step_seconds']:.3f}", *parts]


def _name(case: dict[str, Any]) -> str:
    several = "" if case["processes"] == 1 else f" {case['processes']} processes"
    way = "" if case["way"] == "eager" else f" {case['way']}"
    return f"{case['name']} {case['teacher']}{way}{several}"
