"""Train a few steps of a run and tell where the time goes, and what memory the process takes.

``python -m clipdistill.bench.kd_steps '{"run": {...}, "steps": 4}'`` prints what :func:`measure` returns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from clipdistill.algebra.graph import Losses
from clipdistill.config import make_run
from clipdistill.data.batches import Batch
from clipdistill.data.workers import load
from clipdistill.teachers.teacher import LiveTeacher
from clipdistill.training import preflight
from clipdistill.training.ranks import joined
from clipdistill.training.setup import Setup, prepare

#: Where the time of a step goes, in order: reading and decoding that the step has to wait for, the student's towers,
#: the teacher's towers or the store's rows, the losses, the gradients, clipping and the optimiser.
PARTS = ("batch", "student", "teacher", "graph", "backward", "optimiser")
#: What several processes do after the gradients: average them.
COMMUNICATION = "communication"

Lap = Callable[[str], None]


def measure(run: dict[str, Any], steps: int, warm_up: int = 1, way: str = "eager") -> dict[str, Any]:
    """Train ``steps`` steps of a run after some that warm up, as one of several processes if torchrun has started them.

    Returns the seconds of each step, the median seconds of its parts, and in bytes the parameters of all models that
    are held, and the most memory that the process, or on a GPU its tensors, have taken. ``way`` is ``eager``,
    ``compile`` (the student's towers by torch.compile) or ``channels_last`` (the memory format of its weights).
    """
    with joined() as ranks:
        setup = prepare(make_run(run), ranks)
        _change(setup.student.module, way)
        walk = ranks.shares(setup.order.walk(0, steps + warm_up))
        stream = load(setup.batches, walk, setup.config.train.workers)
        laps = [_step(setup, stream) for _ in range(steps + warm_up)][warm_up:]
        return {
            "steps": [sum(lap.values()) for lap in laps],
            "parts": {part: median(lap[part] for lap in laps) for part in laps[0]},
            "model_bytes": model_bytes(setup),
            "peak_bytes": peak_memory(setup.device),
            "student_parameters": preflight.count(setup.student.module),
            "device": setup.device.type,
            "rank": ranks.rank,
        }


def _change(module: torch.nn.Module, way: str) -> None:
    if way == "compile":
        for tower in module.children():
            tower.compile()
    if way == "channels_last":
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def forward(setup: Setup, batch: Batch, lap: Lap) -> Losses:
    """What ``setup.losses`` computes for a recipe without banks, with a lap after each part."""
    rows = setup.student_rows(batch)
    lap("student")
    for teacher in setup.teachers:
        rows |= teacher.embed(batch)
    lap("teacher")
    losses: Losses = setup.graph(rows, setup.scales(), batch.groups, setup.biases())
    lap("graph")
    return losses


def model_bytes(setup: Setup) -> int:
    """Bytes of the parameters of student, losses and every teacher that runs."""
    live = [teacher.encoder.module for teacher in setup.teachers if isinstance(teacher, LiveTeacher)]
    parameters = {id(p): p for module in (setup.student.module, setup.graph, *live) for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in parameters.values())


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in bytes.

    Linux counts a parent's peak as its child's (``ru_maxrss`` outlives exec), so there it is read elsewhere.
    """
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.exists():
        return preflight.peak_memory(device)
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _step(setup: Setup, stream: Iterator[Batch]) -> dict[str, float]:
    """One step of training; the seconds of each part."""
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal last
        if setup.device.type == "cuda":
            torch.cuda.synchronize(setup.device)
        now = time.perf_counter()
        seconds[part], last = now - last, now

    batch = next(stream).to(setup.device)
    lap("batch")
    losses = forward(setup, batch, lap)
    losses.total.backward()  # type: ignore[no-untyped-call]
    lap("backward")
    if setup.ranks.world > 1:
        setup.ranks.average(setup.optimiser.parameters)
        lap(COMMUNICATION)
    setup.optimiser.clip(setup.config.train.clip_norm)
    setup.optimiser.step(1.0)
    lap("optimiser")
    return seconds


if __name__ == "__main__":
    found = measure(**json.loads(sys.argv[1]))
    if not found.pop("rank"):  # the first process speaks for all
        print(json.dumps(found))
