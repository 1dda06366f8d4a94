"""Pictures to what an index keeps of them, in processes of their own: row, content hash, size and thumbnail."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdistill.data.images import content_hash, decode, fetch
from clipdistill.data.samples import Sample
from clipdistill.errors import DataError, SearchError
from clipdistill.search.runtime import BATCH, Runtime

#: The longer side of a thumbnail, in pixels, and how well its JPEG is kept.
THUMBNAIL, QUALITY = 256, 80
#: So many chunks per process wait or are worked on.
_AHEAD = 3


@dataclass(frozen=True)
class Task:
    """A sample to look at, and the content hash that the index knows it by, if it does."""

    sample: Sample
    known: str | None = None


@dataclass(frozen=True)
class Look:
    """What became of a task: ``row`` ``[D]`` is None for a picture that is as it was, and for one with a ``reason``
    not to be read.
    """

    sample: Sample
    hash: str = ""
    row: NDArray[np.float32] | None = None
    size: tuple[int, int] = (0, 0)
    thumbnail: bytes = b""
    reason: str | None = None


def look_at(runtime: Runtime, tasks: Sequence[Task]) -> list[Look]:
    """Hash the pictures of at most a batch of tasks, and embed those that the index does not know as they are.

    One picture at a time is held decoded. Raises :class:`SearchError` for a model that gives a row of no direction.
    """
    looks, inputs, new = [], [], []
    for place, task in enumerate(tasks):
        try:
            picture = fetch(task.sample.picture)
            digest = content_hash(picture)
            if digest == task.known:
                looks.append(Look(task.sample, digest))
                continue
            image = decode(picture)
        except DataError as error:
            looks.append(Look(task.sample, reason=str(error)))
            continue
        inputs.append(runtime.transform(image))
        new.append(place)
        looks.append(Look(task.sample, digest, None, image.size, thumbnail(image)))
    if inputs:
        rows = runtime.prepared({name: np.stack([one[name] for one in inputs]) for name in inputs[0]})
        for place, row in zip(new, rows, strict=True):
            looks[place] = _with_row(looks[place], row, runtime)
    return looks


def look_all(tasks: Iterable[Task], model: Path, workers: int) -> Iterator[list[Look]]:
    """Look at all tasks, a batch at a time and in order, in ``workers`` processes of one thread each; 0: in this one.

    Raises :class:`DataError` where a process ends before its time.
    """
    if not workers:
        runtime = Runtime.open(model)
        for chunk in _chunks(tasks):
            yield look_at(runtime, chunk)
        return
    spawning = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawning, _begin, (str(model),))
    waiting: deque[tuple[list[Task], Future[list[Look]]]] = deque()
    try:
        for chunk in _chunks(tasks):
            waiting.append((chunk, pool.submit(_work, chunk)))
            if len(waiting) >= _AHEAD * workers:
                yield _next(waiting)
        while waiting:
            yield _next(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def thumbnail(image: Image.Image) -> bytes:
    """Make a small JPEG of a decoded picture, with nothing but its pixels."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=2.0)
    small.info = {}
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _with_row(look: Look, row: NDArray[np.float32], runtime: Runtime) -> Look:
    length = float(np.linalg.norm(row.astype(np.float64)))
    if not (np.isfinite(length) and length > 0):
        raise SearchError(
            f"{runtime.folder} gives a row that is zero or not finite for {look.sample.id!r}. Is the folder whole? "
            f"Ask: clipdistill doctor {runtime.folder}"
        )
    unit = np.asarray(row / length, np.float32)
    return Look(look.sample, look.hash, unit, look.size, look.thumbnail)


def _chunks(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    chunk: list[Task] = []
    for task in tasks:
        chunk.append(task)
        if len(chunk) == BATCH:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _next(waiting: deque[tuple[list[Task], Future[list[Look]]]]) -> list[Look]:
    chunk, future = waiting.popleft()
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise DataError(
            f"a process that embeds pictures ended before its time, at or soon after {chunk[0].sample.id!r}. Either a "
            "picture crashes its decoder: remove it. Or memory ran out: use fewer with --workers. (A Python script "
            "that makes an index has to do so under if __name__ == '__main__'.) Run it again to go on."
        ) from error


_runtime: Runtime


def _begin(model: str) -> None:
    """Open the model in a new process, which ends when the one that started it does, and leaves Ctrl-C to that."""
    global _runtime
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _runtime = Runtime.open(model, threads=1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(tasks: list[Task]) -> list[Look]:
    return look_at(_runtime, tasks)
