"""What a run will take on any number of processes: a small model of its steps, from measured parts.

A part of a step costs something fixed and something for each sample. Losses are of a process's rows against those of
all. Gradients are averaged around a ring. An update is the same on any number. Each process is given the machine that
was measured, and as many processors again for its workers.

Legend: ``b`` rows of one process, ``B`` rows of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipdistill.algebra.strips import cut
from clipdistill.config import RunConfig
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError
from clipdistill.evidence.costs import Measured, check_plannable
from clipdistill.evidence.speed import measure
from clipdistill.training.ranks import PIECE

#: Bytes a second between processes, unless the user knows better: 80 Gbit/s.
BANDWIDTH = 10e9
#: Batches that a worker reads ahead.
_AHEAD = 4
_HOUR = 3600


@dataclass(frozen=True)
class Column:
    """The run on so many processes: ``seconds`` of a step and ``memory`` (bytes) of a process, by part.

    ``rows`` is what a process has of a batch. ``ahead`` are bytes of batches that wait in the host's memory.
    """

    processes: int
    rows: int
    seconds: dict[str, float]
    memory: dict[str, float]
    ahead: float
    hours: float

    @property
    def peak(self) -> float:
        """The most bytes that a process takes."""
        return sum(self.memory.values())

    @property
    def device_hours(self) -> float:
        """What is paid for."""
        return self.hours * self.processes


@dataclass(frozen=True)
class Costs:
    """The whole table: the run as it is, and, where live teachers could be stored, the run with their stores.

    ``pass_hours`` are those of embedding the data once, on one device; ``bytes`` what is read and written in all.
    """

    steps: int
    batch_size: int
    columns: list[Column]
    stored: list[Column]
    pass_hours: float
    bytes: dict[str, float]


def known(config: RunConfig, speed_of: Path | None = None) -> Measured:
    """Measure the run on this machine, or take what ``speed_of`` says of another one, for the data as they are here.

    Raises:
        ClipdistillError: the run cannot be planned, or ``speed_of`` is of another run.
    """
    if speed_of is None:
        return measure(config)
    check_plannable(config)
    measured = Measured.read(speed_of)
    measured.check_about(config)
    return replace(measured, samples=len(pairs(config.data)))


def plan(config: RunConfig, measured: Measured, processes: Sequence[int], bandwidth: float = BANDWIDTH) -> Costs:
    """Compute the costs of a run on each number of processes that its batch has rows for.

    Raises:
        ConfigError: it has rows for none of them, or the data do not fill it.
    """
    length = config.train.plan(measured.samples)
    fitting = [count for count in processes if count <= config.train.batch_size]
    if not fitting:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} is the whole batch, and no number of processes among "
            f"{', '.join(map(str, processes))} can share it. Raise it, or lower --gpus."
        )
    live = set(measured.passes)
    return Costs(
        steps=length.steps,
        batch_size=length.batch_size,
        columns=[_column(config, measured, count, bandwidth, set()) for count in fitting],
        stored=[_column(config, measured, count, bandwidth, live) for count in fitting] if live else [],
        pass_hours=measured.samples * sum(cost.seconds for cost in measured.passes.values()) / _HOUR,
        bytes=_bytes(config, measured),
    )


def _column(config: RunConfig, measured: Measured, processes: int, bandwidth: float, stored: set[str]) -> Column:
    steps = config.train.plan(measured.samples).steps
    seconds = step_seconds(config, measured, processes, bandwidth, stored)
    rows = math.ceil(config.train.batch_size / processes)
    ahead = _AHEAD * config.train.workers * rows * measured.sample["inputs"]
    memory = step_memory(config, measured, processes, stored)
    return Column(processes, rows, seconds, memory, ahead, steps * sum(seconds.values()) / _HOUR)


def step_seconds(
    config: RunConfig, measured: Measured, processes: int, bandwidth: float, stored: Iterable[str] = ()
) -> dict[str, float]:
    """The seconds of one step by part; ``stored`` teachers cost nothing."""
    train, total = config.train, config.train.batch_size
    rows = math.ceil(total / processes)
    parts = math.ceil(rows / min(train.micro_batch or rows, rows))
    gone = {f"teacher {letter}" for letter in stored}
    found = {name: _linear(measured.sizes, times, parts, rows) for name, times in measured.seconds.items()}
    found = {name: 0.0 if name in gone else seconds for name, seconds in found.items()}
    found["student"] *= 2 if parts > 1 else 1  # once more for the gradient
    found["loss"] = loss_seconds(measured.losses, rows, total)
    read = rows * measured.read_seconds
    found["reading"] = max(read / train.workers - sum(found.values()), 0) if train.workers else read
    ring = 2 * (processes - 1) / processes
    found = {name: seconds * train.accumulate for name, seconds in found.items()}
    exchanged = train.accumulate * measured.sample["exchanged"] * total * (processes - 1) / processes
    found["exchange"] = (ring * measured.held["gradients"] + exchanged) / bandwidth
    return found | {"update": measured.update_seconds}


def step_memory(config: RunConfig, measured: Measured, processes: int, stored: Iterable[str] = ()) -> dict[str, float]:
    """The bytes of one process at its peak, by what they are of."""
    train, total = config.train, config.train.batch_size
    rows = math.ceil(total / processes)
    part = min(train.micro_batch or rows, rows)
    gone = {f"teacher {letter}" for letter in stored}
    peaks = {name: _linear(measured.sizes, found, 1, part) for name, found in measured.peaks.items()}
    teacher = max((peak for name, peak in peaks.items() if name.startswith("teacher") and name not in gone), default=0)
    loss, gradients = loss_memory(measured.losses, rows, total), measured.held["gradients"]
    before = gradients if train.accumulate > 1 else 0
    if part == rows:
        backward = peaks["again" if before else "backward"]
        step = before + max(peaks["student"], peaks["kept"] + max(teacher, loss, backward))
    else:  # nothing is kept of a part but its rows, and gradients wait while the parts are done again
        step = max(before + loss, before + teacher, gradients + max(peaks["student"], peaks["kept"] + peaks["again"]))
    if processes > 1:
        step = max(step, gradients + 2 * min(gradients, 4 * PIECE))
    models = [name for name in measured.held if name == "student" or name.startswith("teacher")]
    return {
        "models": float(sum(measured.held[name] for name in models if name not in gone)),
        "optimiser": float(measured.held["optimiser"] + measured.held["average"]),
        "step": float(step),
        "inputs": rows * (measured.sample["inputs"] + (measured.sample["cut"] if part < rows else 0)),
        "process": float(measured.held["process"]),
    }


def loss_seconds(losses: Sequence[Sequence[float]], rows: int, total: int) -> float:
    """The seconds of the losses of ``b`` rows against ``B``: something fixed, for each of ``B``, and for each pair."""
    made = _fit([[n * n, n, 1] for n, _, _ in losses], [seconds for _, seconds, _ in losses])
    return float(made @ [rows * total, total, 1])


def loss_memory(losses: Sequence[Sequence[float]], rows: int, total: int) -> float:
    """The peak bytes of the same: matrices of all pairs are stored up to a size, then strip by strip."""
    made = _fit([[_cells(n, n), n, 1] for n, _, _ in losses], [peak for _, _, peak in losses])
    return float(made @ [_cells(rows, total), total, 1])


def _cells(rows: float, total: float) -> float:
    """Similarities that are stored at once."""
    return float(max(strip.stop - strip.start for strip in cut(int(rows), int(total))) * total)


def _linear(sizes: Sequence[int], found: Sequence[float], parts: int, rows: int) -> float:
    """What ``rows`` samples in so many parts cost, by what was found at some sizes."""
    each, fixed = _fit([[size, 1] for size in sizes], found)
    return float(each * rows + fixed * parts)


def _fit(features: Sequence[Sequence[float]], found: Sequence[float]) -> NDArray[np.float64]:
    """Costs of the features, none of them negative, with the least squares of relative errors.

    Few features, so every choice of them is tried; of equal ones the first, which has the fewest, is taken.
    """
    values = np.asarray(found, float)
    weights = 1 / np.maximum(values, 1e-12)
    matrix = np.asarray(features, float) * weights[:, None]
    best, least = np.zeros(matrix.shape[1]), float(np.sum(values > 0)) or math.inf
    for size in range(1, min(matrix.shape) + 1):
        for chosen in map(list, combinations(range(matrix.shape[1]), size)):
            made = np.linalg.lstsq(matrix[:, chosen], values * weights, rcond=None)[0]
            error = float(np.sum((matrix[:, chosen] @ made - values * weights) ** 2))
            if made.min() >= 0 and error < least - 1e-9:
                best, least = np.zeros(matrix.shape[1]), error
                best[chosen] = made
    return best


def _bytes(config: RunConfig, measured: Measured) -> dict[str, float]:
    """What the run reads and writes."""
    train = config.train
    length = train.plan(measured.samples)
    seen = length.steps * length.batch_size
    every = max(1, train.checkpoint_every.steps(length))
    written = math.ceil(length.steps / every)
    checkpoint = float(measured.held["checkpoint"])
    return {
        "pictures read": seen * measured.sample["picture"],
        "stored rows read": seen * measured.sample["stored"],
        "a checkpoint": checkpoint,
        "checkpoints written": written * checkpoint,
        # One more is there while it is written.
        "checkpoints kept": (min(train.keep_checkpoints, written) + 1) * checkpoint,
        "a store of the live teachers": measured.samples * sum(cost.bytes for cost in measured.passes.values()),
    }
