"""Inputs of several requests that go through a model together.

A thread takes what is waiting, up to a batch, as soon as it is free: at little load nothing waits for company, and at
much load batches fill by themselves. Shapes: ``N`` inputs, ``D`` width of their rows.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextvars import ContextVar
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipdistill.serve.failures import RefusedError

Item = TypeVar("Item")
Rows = NDArray[np.float32]
#: When the request that this thread works for has to be answered, by ``time.monotonic()``.
DEADLINE: ContextVar[float] = ContextVar("DEADLINE", default=float("inf"))
_WHAT = "embed everything"


def seconds_left(what: str) -> float:
    """The seconds that this thread's request has left to do ``what``; raises :class:`RefusedError` for none."""
    left = DEADLINE.get() - time.monotonic()
    if left <= 0:
        raise RefusedError(504, f"there was not enough time to {what}", retry_after=1)
    return left


class Batcher(Generic[Item]):
    """Rows of inputs, by a function that is called with up to ``most`` of them, in one thread."""

    def __init__(self, embed: Callable[[list[Item]], Rows], most: int, name: str) -> None:
        self._embed, self._most = embed, most
        self._waiting: deque[tuple[Sequence[Item], Future[Rows]]] = deque()
        self._some, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def rows(self, items: Sequence[Item]) -> Rows:
        """Embed inputs, ``float32 [N, D]`` for at least one; safe to call from many threads.

        Many go a batch at a time, so that a request of thousands lets others pass. Raises what the function raises,
        for these inputs alone, and :class:`RefusedError` when the request's :data:`DEADLINE` has passed.
        """
        return np.concatenate(
            [self._wait(items[start : start + self._most]) for start in range(0, len(items), self._most)]
        )

    def close(self) -> None:
        """Finish what is waiting, and end the thread."""
        with self._some:
            self._closed = True
            self._some.notify()
        self._thread.join()

    def _wait(self, items: Sequence[Item]) -> Rows:
        future: Future[Rows] = Future()
        with self._some:
            if self._closed:
                raise RefusedError(503, "the server is shutting down", retry_after=5)
            self._waiting.append((items, future))
            self._some.notify()
        try:
            return future.result(min(seconds_left(_WHAT), threading.TIMEOUT_MAX))
        except FutureTimeout:
            future.cancel()
            raise RefusedError(504, f"there was not enough time to {_WHAT}", retry_after=1) from None

    def _work(self) -> None:
        while batch := self._take():
            self._answer(batch)

    def _take(self) -> list[tuple[Sequence[Item], Future[Rows]]]:
        """Wait for inputs, and take those of as many requests as a batch holds; none when there is no more to come."""
        with self._some:
            while True:
                self._some.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                batch, size = [], 0
                while self._waiting and size + len(self._waiting[0][0]) <= self._most:
                    items, future = self._waiting.popleft()
                    if future.set_running_or_notify_cancel():
                        batch.append((items, future))
                        size += len(items)
                if batch:
                    return batch

    def _answer(self, batch: list[tuple[Sequence[Item], Future[Rows]]]) -> None:
        """Embed a batch; where that fails, each request's inputs alone, so that one cannot spoil the others'."""
        try:
            rows = self._embed([item for items, _ in batch for item in items])
        except BaseException as error:  # whatever it is, somebody waits for it
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:
                self._answer([one])
            return
        start = 0
        for items, future in batch:
            future.set_result(rows[start : start + len(items)])
            start += len(items)
