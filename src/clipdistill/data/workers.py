"""Batches assembled ahead of time, in processes of their own; one that dies is named with the sample it read."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from clipdistill.data.samples import Sample, Source, id_at, name_of
from clipdistill.errors import ClipdistillError, DataError

Made = TypeVar("Made")
#: A worker's connection breaks a little before its end can be seen.
_SECONDS_TO_END = 2.0


def load(
    batches: Dataset[Made], items: Iterable[tuple[int, list[int]]], workers: int, pin: bool = False
) -> Iterator[Made]:
    """Yield the batches for ``items`` in order, assembled ahead of time by ``workers`` processes (0: in this one).

    ``batches`` read the samples of their attribute ``source``. Each process is four batches ahead at most. ``pin`` puts
    batches into memory that a GPU can copy from by itself.

    Raises:
        ClipdistillError: what a batch raises, whichever process assembles it.
        DataError: a worker was killed, or crashed in a decoder; named with the sample it read.
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
        worker_init_fn=_begin,
        pin_memory=pin,
    )
    with _no_alarm():
        reading: Any = iter(loader)
    if not workers:
        yield from reading
        return
    try:
        for batch in reading:
            if isinstance(batch, ClipdistillError):
                raise batch
            yield batch
    except (RuntimeError, ConnectionError, EOFError) as error:
        ended = _ended(reading._workers)
        if not ended:
            raise
        raise DataError(
            f"a process that reads data was ended while it read {watched.read_by(set(ended))} "
            f"({', '.join(map(_end, ended.values()))}). Either that file crashes its decoder: remove it. Or memory ran "
            "out: lower train.workers or train.batch_size."
        ) from error
    finally:
        reading._shutdown_workers()


@contextmanager
def _no_alarm() -> Iterator[None]:
    """Keep torch from raising the end of a worker out of a signal handler, wherever the main process happens to be.

    What runs there may swallow or distort the error. Without it the end is seen where the next batch is waited for, a
    few seconds later.
    """
    try:
        before = signal.getsignal(signal.SIGCHLD)
    except AttributeError:  # no such signal on this system
        yield
        return
    yield
    if signal.getsignal(signal.SIGCHLD) is not before:
        signal.signal(signal.SIGCHLD, before)


def _ended(processes: list[Any]) -> dict[int, int]:
    """The exit codes of the workers that have failed, by pid, waiting a moment for one that is about to."""
    until, found = time.monotonic() + _SECONDS_TO_END, dict[int, int]()
    while not found and time.monotonic() < until:
        found = {process.pid: process.exitcode for process in processes if process.exitcode}
        time.sleep(0.01)
    return found


def _end(code: int) -> str:
    return f"exit status {code}" if code > 0 else signal.Signals(-code).name


class _Watched:
    """A source that notes which sample each worker reads: ``marks [workers, 2]`` hold its pid and the position."""

    def __init__(self, source: Source, marks: Tensor) -> None:
        self._source, self._marks = source, marks

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

    def id_of(self, index: int) -> str:
        return id_at(self._source, index)

    def read_by(self, pids: set[int]) -> str:
        """What one of some processes has read last."""
        for pid, position in self._marks.tolist():
            if pid in pids:
                return f"sample '{name_of(self._source, position)}' of {self._source.uri}"
        return f"data of {self._source.uri}"


class _Telling(Dataset[Any]):
    """Batches that hand an error over as it is: torch would put the traceback of the worker into its message."""

    def __init__(self, batches: Dataset[Any]) -> None:
        self._batches = batches

    def __getitem__(self, item: Any) -> Any:
        try:
            return self._batches[item]
        except ClipdistillError as error:
            return error


def _watching(batches: Dataset[Made], workers: int) -> tuple[Dataset[Any], _Watched]:
    """The same batches of a source that is watched, and that source."""
    watching: Any = copy.copy(batches)
    marks: Tensor = torch.full((workers, 2), -1).share_memory_()  # type: ignore[no-untyped-call]
    watching.source = _Watched(watching.source, marks)
    return _Telling(watching), watching.source


def _begin(worker: int) -> None:
    """Leave Ctrl-C to the main process, which finishes its step; workers end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """torch's own watch looks at the process that forked the worker, which may be a fork server that lives on."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
