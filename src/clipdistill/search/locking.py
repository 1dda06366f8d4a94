"""One writer at a time in the folder of an index; readers need no lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipdistill.errors import SearchError

LOCK = "lock"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the lock of an index's folder; it ends with the process. Raises :class:`SearchError` if another has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SearchError(
            f"another process is writing to {folder}: one at a time can. Wait until it has ended; searches go on."
        ) from None
    try:
        yield
    finally:
        lock.release()
