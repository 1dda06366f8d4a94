"""Time two ways of doing the same thing in turn, A B A B, so that a drifting machine moves both alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

Work = Callable[[], object]


@dataclass(frozen=True)
class Verdict:
    """One comparison: seconds are medians, ``ratio`` is the median of theirs / ours pair by pair."""

    claim: str
    ours: str
    theirs: str
    our_seconds: float
    their_seconds: float
    ratio: float

    def __str__(self) -> str:
        return (
            f"{self.claim}: {self.ours} {self.our_seconds * 1000:.2f} ms, {self.theirs} "
            f"{self.their_seconds * 1000:.2f} ms: {self.ratio:.2f} times as fast"
        )


def versus(claim: str, ours: tuple[str, Work], theirs: tuple[str, Work], pairs: int = 9) -> Verdict:
    """Time ``ours`` against ``theirs``, each a name and the work; the first pair warms up and is not counted."""
    times = [(_seconds(ours[1]), _seconds(theirs[1])) for _ in range(pairs + 1)][1:]
    return Verdict(
        claim,
        ours[0],
        theirs[0],
        median(mine for mine, _ in times),
        median(other for _, other in times),
        median(other / mine for mine, other in times),
    )


def _seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
