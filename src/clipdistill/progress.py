"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere; both with rate and time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

#: Where everything but results goes: results are the program's output, progress is talk.
console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

#: Tell how many units are done so far, and a word on how it goes.
Advance = Callable[[int, str], None]

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(label: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
    """Show the progress of ``total`` units, of which ``done`` were done before; yields the function to tell it."""
    if console.quiet:
        yield lambda now, note: None
    elif console.is_terminal:
        with _bar(label, total, unit, done) as advance:
            yield advance
    else:
        yield _lines(label, total, unit, done)


@contextmanager
def _bar(label: str, total: int, unit: str, done: int) -> Iterator[Advance]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # slow to import, and seldom needed

    columns = (
        TextColumn("{task.description}", markup=False),  # of the user's names, which may have brackets
        BarColumn(),
        TextColumn("{task.completed}/{task.total} " + unit + "  {task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    started = time.monotonic()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total, completed=done, rate="", note="")

        def advance(now: int, note: str) -> None:
            rate = (now - done) / max(time.monotonic() - started, 1e-9)
            bar.update(task, completed=now, rate=f"{rate:.1f}/s", note=note)

        yield advance


def _lines(label: str, total: int, unit: str, done: int) -> Advance:
    started = last = time.monotonic()

    def advance(now: int, note: str) -> None:
        nonlocal last
        moment = time.monotonic()
        if moment - last < _SECONDS_BETWEEN_LINES and now < total:
            return
        last = moment
        rate = (now - done) / max(moment - started, 1e-9)
        left = f"{(total - now) / rate:.0f} s left" if rate else "time left unknown"
        print(f"{label}: {now}/{total} {unit}, {rate:.1f}/s, {left}  {note}".rstrip(), file=sys.stderr, flush=True)

    return advance
