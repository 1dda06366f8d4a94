"""Measure what a run costs on this machine: seconds and bytes of each part of a step, at a few batch sizes.

Real batches go through the run's own models. The losses are taken of drawn rows, so that they are measured at the size
of the whole batch even where the models are not. Nothing is written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from clipdistill.config import SELF, RunConfig
from clipdistill.data.batches import Batch
from clipdistill.errors import ConfigError, DataError
from clipdistill.evidence.costs import Measured, Pass, about, check_plannable
from clipdistill.models.device import choose_device, choose_precision
from clipdistill.progress import progress
from clipdistill.teachers.stored import StoredTeacher
from clipdistill.teachers.teacher import LiveTeacher, text_rows
from clipdistill.training.preflight import peak_memory
from clipdistill.training.setup import Setup, prepare

#: A size is measured so many times, and the median taken.
ROUNDS = 3
#: No larger size is tried once a step, or a loss, has taken so many seconds.
PATIENCE = 4.0
#: Losses are measured on at most so many rows; more are computed.
MOST_ROWS = 4096
#: The smallest size, and how many of the largest ones count.
_SMALLEST, _SIZES = 4, 3
#: A row of a store beside its numbers: its entry in the index, and its key as a line of text.
_INDEX_ENTRY, _KEY_MARKS = 16, 3
_FLOAT16, _FLOAT32 = 2, 4

Made = TypeVar("Made")


class _Size(NamedTuple):
    """What a batch of one size was found to cost; ``read`` are the seconds of reading one sample of it."""

    batch: Batch
    seconds: dict[str, float]
    peaks: dict[str, int]
    read: float


def measure(config: RunConfig) -> Measured:
    """Open a run and measure its parts: seconds to a few minutes.

    Raises:
        ClipdistillError: the run cannot be planned, or something in it does not fit.
    """
    check_plannable(config)
    device = choose_device(config.train.device)
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"memory can be measured on cpu and cuda, found {device.type}. Add train.device=cpu.")
    precision = choose_precision(device, config.train.precision)
    settled = {"train": config.train.model_copy(update={"precision": precision})}
    setup = prepare(config.model_copy(update=settled))
    with progress("measuring", 3, "parts") as advance:
        held, update_seconds = _updates(setup)
        advance(1, "update")
        found = _models(setup)
        advance(2, "models")
        batch, read_seconds = found[-1].batch, found[-1].read
        losses = _losses(setup, batch)
        advance(3, "losses")
    return Measured(
        about=about(config),
        machine={"device": _name(device), "type": device.type, "precision": precision},
        samples=len(setup.source),
        sizes=[len(size.batch.ids) for size in found],
        seconds=_columns([size.seconds for size in found]),
        peaks=_columns([size.peaks for size in found]),
        losses=losses,
        read_seconds=read_seconds,
        update_seconds=update_seconds,
        held=held,
        sample=_sample(setup, batch),
        passes={teacher.letter: _pass(teacher, setup, batch, read_seconds) for teacher in _storable(setup)},
    )


def _updates(setup: Setup) -> tuple[dict[str, int], float]:
    """Take whole steps on a small batch: the bytes that are held from then on, and the seconds of an update."""
    batch = _read(setup, _SMALLEST).to(setup.device)
    ema = setup.config.train.ema
    average = {} if ema is None or setup.average else _copy(setup.student.module)
    seconds = []
    for _ in range(ROUNDS):
        setup.losses(batch).total.backward()  # type: ignore[no-untyped-call]
        gradients = _bytes(p.grad for p in setup.optimiser.parameters)
        seconds.append(_timed(setup, lambda: _update(setup, average or _averaged(setup)))[1])
    states = [state for part, _ in setup.optimiser.parts for state in part.state.values()]
    held = {
        "student": _bytes([*setup.student.module.parameters(), *setup.graph.parameters()]),
        **{f"teacher {t.letter}": _bytes(t.encoder.module.parameters()) for t in _live(setup)},
        "gradients": gradients,
        "optimiser": _bytes(value for state in states for value in state.values()),
        "average": _bytes(average.values()),
    }
    kept = held["student"] if ema is not None else 0
    resident = 0 if setup.device.type == "cuda" else _resident() - sum(held.values()) + gradients
    return held | {
        "process": max(resident, 0),
        "checkpoint": held["student"] + held["optimiser"] + kept,
    }, median(seconds)


def _update(setup: Setup, average: dict[str, Tensor]) -> None:
    """What a step does with its gradients."""
    setup.optimiser.clip(setup.config.train.clip_norm)
    setup.optimiser.step(1e-6)  # so small that the losses stay as they are
    with torch.no_grad():
        for name, value in setup.student.module.state_dict().items() if average else ():
            if value.is_floating_point():
                average[name].lerp_(value, 1e-6)


def _averaged(setup: Setup) -> dict[str, Tensor]:
    return {} if setup.average is None else dict(setup.average.state_dict())


def _models(setup: Setup) -> list[_Size]:
    """Step through the models at growing sizes, up to what they will see at once; the last few count."""
    train = setup.config.train
    found: list[_Size] = []
    for size in _sizes(min(train.micro_batch or train.batch_size, train.batch_size)):
        try:
            found.append(_one_size(setup, size))
        except torch.OutOfMemoryError:
            if not found:
                raise
            break
        if sum(found[-1].seconds.values()) > PATIENCE:
            break
    return found[-_SIZES:]


def _one_size(setup: Setup, size: int) -> _Size:
    batch, read = _timed(setup, partial(_read, setup, size))
    steps = [_seconds(setup, batch) for _ in range(1 + ROUNDS)][1:]
    seconds = {part: median(step[part] for step in steps) for part in steps[0]}
    return _Size(batch, seconds, _peaks(setup, batch.to(setup.device)), read / len(batch.ids))


def _seconds(setup: Setup, batch: Batch) -> dict[str, float]:
    """Seconds of the parts of one step, from the batch as it was read to the gradients."""
    seconds: dict[str, float] = {}
    rows, seconds["student"] = _timed(setup, lambda: setup.student_rows(batch.to(setup.device)))
    moved = batch.to(setup.device)
    for teacher in setup.teachers:
        seconds[f"teacher {teacher.letter}"] = _timed(setup, partial(teacher.embed, moved))[1]
    seconds["backward"] = _timed(setup, partial(_backward, rows))[1]
    setup.forget_gradients()
    return seconds


def _peaks(setup: Setup, batch: Batch) -> dict[str, int]:
    """Peak bytes of the parts of a step, each beyond what was there when it began."""
    peaks: dict[str, int] = {}
    for part in ("backward", "again"):
        rows, peaks["student"], peaks["kept"] = _memory(setup, partial(setup.student_rows, batch))
        for teacher in setup.teachers:
            peaks[f"teacher {teacher.letter}"] = _memory(setup, partial(teacher.embed, batch))[1]
        peaks[part] = _memory(setup, partial(_backward, rows))[1]
        del rows
    setup.forget_gradients()
    return peaks


def _backward(rows: dict[str, Tensor]) -> None:
    """Bring drawn gradients of the student's rows to its weights."""
    learning = [matrix for matrix in rows.values() if matrix.requires_grad]
    if learning:
        torch.autograd.backward(learning, [torch.randn_like(matrix) for matrix in learning])


def _losses(setup: Setup, batch: Batch) -> list[list[float]]:
    """Rows, seconds and peak bytes of the losses, forward and backward, of drawn rows."""
    few = batch.take(range(min(len(batch.ids), _SMALLEST))).to(setup.device)
    rows = {node: matrix.detach().requires_grad_(matrix.requires_grad) for node, matrix in setup.rows(few).items()}
    found = []
    for size in _sizes(min(setup.config.train.batch_size, MOST_ROWS)):
        job = _loss(setup, few, rows, size)
        seconds = median(_timed(setup, job)[1] for _ in range(ROUNDS))
        found.append([size, seconds, _memory(setup, job)[1]])
        if seconds > PATIENCE:
            break
    setup.forget_gradients()
    return found[-_SIZES:]


def _loss(setup: Setup, batch: Batch, rows: dict[str, Tensor], size: int) -> Callable[[], None]:
    """The losses of ``size`` rows that look like ``rows``, and their gradients."""
    drawn = {
        node: torch.randn((size, *matrix.shape[1:]), device=matrix.device, requires_grad=matrix.requires_grad)
        for node, matrix in rows.items()
    }
    banks, bank_keys = setup.banks.rows(batch, 0)
    width = setup.banks.keys(batch).shape[1]
    keys = torch.arange(size * width, device=setup.device).view(size, width)  # no two rows are of one group
    labels = None if batch.labels is None else batch.labels[:1].expand(size)

    def job() -> None:
        losses = setup.graph(
            {**drawn, **banks}, setup.scales(), keys, setup.biases(), labels=labels, bank_keys=bank_keys
        )
        losses.total.backward()
        for matrix in drawn.values():
            matrix.grad = None

    job()  # makes the gradients of what the losses themselves learn
    return job


def _sample(setup: Setup, batch: Batch) -> dict[str, float]:
    """The bytes of one sample."""
    inputs = [value for given in (batch.pixels, batch.tokens) for part in given.values() for value in part.values()]
    few = batch.take(range(min(len(batch.ids), _SMALLEST))).to(setup.device)
    # Processes send each other all rows, and of the student's the gradients, there and back.
    exchanged = sum((3 if rows.requires_grad else 1) * _bytes([rows[:1]]) for rows in setup.rows(few).values())
    pictures = [_on_disk(setup.source[place].image) for place in batch.positions] if setup.batches.sees else [0]
    stored = [t for t in setup.teachers if isinstance(t, StoredTeacher)]
    rows = sum(t.width * (_FLOAT16 if t.store.manifest.dtype == "float16" else _FLOAT32) * _asked(t) for t in stored)
    return {
        "inputs": _bytes(inputs) / len(batch.ids),
        # Models that see the same share it, but not the parts of a batch that is cut.
        "cut": sum(_bytes([value]) for value in inputs) / len(batch.ids),
        "picture": sum(pictures) / len(pictures),
        "stored": float(rows),
        "exchanged": float(exchanged),
    }


def _asked(teacher: StoredTeacher) -> int:
    return len(teacher.inlet.texts) + ("I" in teacher.store.sides)


def _on_disk(picture: Any) -> int:
    """The bytes that reading a picture moves; none for one that is drawn."""
    if isinstance(picture, bytes):
        return len(picture)
    if isinstance(picture, Path):
        return picture.stat().st_size
    return len(picture.read_bytes()) if hasattr(picture, "read_bytes") else 0


def _storable(setup: Setup) -> list[LiveTeacher]:
    """The teachers that a store could replace: not the student's average, and none asked for logits."""
    return [t for t in _live(setup) if setup.config.teachers[t.letter] != SELF and not t.tells]


def _pass(teacher: LiveTeacher, setup: Setup, batch: Batch, read_seconds: float) -> Pass:
    """Embedding a sample: its whole picture once, and every caption it has."""
    moved, row = batch.to(setup.device), teacher.width * _FLOAT16 + _INDEX_ENTRY + _KEY_MARKS
    samples = [setup.source[place] for place in batch.positions]
    captions = [told for sample in samples for view in teacher.inlet.texts for told in sample.captions_of(view)]
    both = median(_timed(setup, lambda: teacher.embed(moved))[1] for _ in range(ROUNDS))
    texts = median(_timed(setup, lambda: _texts(teacher, moved))[1] for _ in range(ROUNDS))
    embedded = len(samples) * len(teacher.inlet.texts)  # captions that were just embedded: one for each row and view
    seconds = max(both - texts, 0.0) + (texts * len(captions) / embedded if embedded else 0.0)
    keys = [sample.id for sample in samples if teacher.inlet.transform] + captions
    size = sum(row + len(key.encode("utf-8", "replace")) for key in keys)
    return Pass(read_seconds + seconds / len(samples), size / len(samples))


@torch.no_grad()
def _texts(teacher: LiveTeacher, batch: Batch) -> None:
    with teacher.autocast:
        text_rows(teacher.letter, teacher.encoder, batch)


def _read(setup: Setup, size: int) -> Batch:
    """The first ``size`` samples of the run, as far as they can be read."""
    epoch, rows = next(iter(setup.order.walk(0, 1)))
    batch = setup.batches.assemble(epoch, rows[:size])
    if len(batch.ids) < 2:
        raise DataError(
            f"of the first {size} samples of {setup.config.data}, fewer than 2 can be read. Run 'clipdistill data "
            f"check {setup.config.data}'."
        )
    return batch


def _sizes(most: int) -> list[int]:
    """``most`` and its halves down to a handful, the smallest first."""
    sizes = [most]
    while sizes[0] >= 2 * _SMALLEST:
        sizes.insert(0, sizes[0] // 2)
    return sizes


def _timed(setup: Setup, job: Callable[[], Made]) -> tuple[Made, float]:
    """Do a job; what it made, and how many seconds it took."""
    _settle(setup.device)
    started = time.perf_counter()
    made = job()
    _settle(setup.device)
    return made, time.perf_counter() - started


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(setup: Setup, job: Callable[[], Made]) -> tuple[Made, int, int]:
    """Do a job; what it made, and in bytes of tensors its peak and what it left, beyond what was there before."""
    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.device)
        before = torch.cuda.memory_allocated(setup.device)
        made = job()
        return made, peak_memory(setup.device) - before, torch.cuda.memory_allocated(setup.device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it tells the terminal whenever it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        made = job()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    levels = list(accumulate((event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())), initial=0))
    return made, max(levels), levels[-1]


def _resident() -> int:
    """The bytes of this process in memory now."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_memory(torch.device("cpu"))
    line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def _live(setup: Setup) -> list[LiveTeacher]:
    return [teacher for teacher in setup.teachers if isinstance(teacher, LiveTeacher)]


def _bytes(tensors: Iterable[Any]) -> int:
    """The bytes of tensors, each counted once; anything else is none."""
    found = {id(value): value for value in tensors if isinstance(value, Tensor)}
    return sum(value.numel() * value.element_size() for value in found.values())


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def _columns(rows: Sequence[dict[str, Made]]) -> dict[str, list[Made]]:
    return {part: [row[part] for row in rows] for part in rows[0]}


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"
