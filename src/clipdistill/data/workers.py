"""Batches assembled ahead of time, in processes of their own; one that dies is named with the sample it read."""

from __future__ import annotations

import copy
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from clipdistill.data.samples import Sample, Source
from clipdistill.errors import DataError

Made = TypeVar("Made")
#: What torch says of workers that have ended.
_ENDED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
#: A worker's connection may break a little before its end can be seen.
_SECONDS_TO_END = 1.0
#: The sources that workers read now.
_WATCHED: list[_Watched] = []


def load(
    batches: Dataset[Made], items: Iterable[tuple[int, list[int]]], workers: int, pin: bool = False
) -> Iterator[Made]:
    """Yield the batches for ``items`` in order, assembled ahead of time by ``workers`` processes (0: in this one).

    ``batches`` read the samples of their attribute ``source``. Each process is four batches ahead at most. ``pin`` puts
    batches into memory that a GPU can copy from by itself.
    """
    if workers:
        # A tokenizer that threads cannot be forked; the workers are the parallelism.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        batches, watched = _watching(batches, workers)
    loader = DataLoader(
        batches,
        # Its own generator: drawing a seed from torch's global one would move dropout after a restart.
        generator=torch.Generator(),
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_interrupt,
        pin_memory=pin,
    )
    reading: Any = iter(loader)
    if not workers:
        yield from reading
        return
    watched.processes, watched.stop = reading._workers, reading._shutdown_workers
    _WATCHED.append(watched)
    try:
        yield from reading
    except (RuntimeError, OSError, EOFError):
        raise  # whoever names dead workers wants to know what was read
    except BaseException:
        _forget(watched)
        raise
    else:
        _forget(watched)


@contextmanager
def naming_dead_workers() -> Iterator[None]:
    """Turn the end of a worker, which torch may tell at any moment, into an error that names the sample.

    Raises:
        DataError: a worker was killed, or crashed in a decoder.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        pids = _ended(error)
        if not pids:
            raise
        found = [told for watched in _WATCHED if (told := watched.of(pids))]
        with _undisturbed():
            for watched in _WATCHED:
                watched.stop()
            _WATCHED.clear()
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"a process that reads data was ended while it read {found[0] if found else 'data'} ({why}). Either that "
            "file crashes its decoder: remove it. Or memory ran out: lower train.workers or train.batch_size."
        ) from error


def _ended(error: Exception) -> set[int]:
    """The pids of the workers that an error is about: those it names, or those whose connection broke off."""
    told = _ENDED.search(str(error))
    if told:
        return {int(pid) for pid in told[1].split(",")}
    if isinstance(error, RuntimeError):
        return set()
    until, found = time.monotonic() + _SECONDS_TO_END, set[int]()
    while not found and time.monotonic() < until:
        time.sleep(0.01)
        found = {process.pid for watched in _WATCHED for process in watched.processes if process.exitcode}
    return found


@contextmanager
def _undisturbed() -> Iterator[None]:
    """While a dead worker is not put away, torch raises its error anew whenever any process ends."""
    try:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except (AttributeError, ValueError):  # no such signal here; only the main thread gets any
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


class _Watched:
    """A source that notes which sample each worker reads: ``marks [workers, 2]`` hold its pid and the position."""

    def __init__(self, source: Source, marks: Tensor) -> None:
        self._source, self._marks = source, marks
        #: The workers, and what ends them; only the process that started them can.
        self.processes: list[Any] = []
        self.stop: Callable[[], object] = _nothing

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._source, name)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        worker = get_worker_info()
        if worker is not None:
            self._marks[worker.id] = torch.tensor([os.getpid(), index])
        return self._source[index]

    def of(self, pids: set[int]) -> str | None:
        """What one of some processes has read last."""
        for pid, position in self._marks.tolist():
            if pid in pids:
                sample = self._source[position]
                return f"sample '{sample.id}' of {self._source.uri}"
        return None


def _watching(batches: Dataset[Made], workers: int) -> tuple[Dataset[Made], _Watched]:
    """The same batches of a source that is watched, and that source."""
    watching: Any = copy.copy(batches)
    marks: Tensor = torch.full((workers, 2), -1).share_memory_()  # type: ignore[no-untyped-call]
    watching.source = _Watched(watching.source, marks)
    return watching, watching.source


def _forget(watched: _Watched) -> None:
    if watched in _WATCHED:
        _WATCHED.remove(watched)


def _nothing() -> None:
    """There is nothing to end."""


def _ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C to the main process, which finishes its step; workers end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
