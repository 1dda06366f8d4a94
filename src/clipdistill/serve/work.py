"""Jobs of requests in threads, so many at a time; more are refused at once instead of waiting for ever."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from clipdistill.serve.batching import DEADLINE
from clipdistill.serve.failures import RefusedError

Result = TypeVar("Result")
#: More than go through a model together, so that a batch can fill while others search.
THREADS = 40


class Work:
    """Runs jobs in threads, of which ``room`` are taken in, running or waiting, and each has ``seconds``."""

    def __init__(self, room: int, seconds: float) -> None:
        self.room, self.seconds, self.inside = room, seconds, 0
        self._pool = ThreadPoolExecutor(min(THREADS, room), "request")

    async def run(self, job: Callable[[], Result]) -> Result:
        """Run a job and return what it does; raises :class:`RefusedError` where there is no room for one more.

        A job whose request has ended goes on until it notices that its time is up; until then it takes its room.
        """
        if self.inside >= self.room:
            raise RefusedError(429, f"the server is busy with {self.inside} requests; try again soon", retry_after=1)
        self.inside += 1
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        context.run(DEADLINE.set, time.monotonic() + self.seconds)

        def ended(future: Future[Result]) -> None:
            loop.call_soon_threadsafe(self._leave)

        future = self._pool.submit(context.run, job)
        future.add_done_callback(ended)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads once their jobs are done."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _leave(self) -> None:
        self.inside -= 1
