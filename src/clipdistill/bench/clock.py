"""Time several things in turn, round after round, so that a drifting machine moves all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

#: A round of each to warm up; then rounds until there are enough of them and enough time has passed, or too much.
LEAST_ROUNDS, LEAST_SECONDS, MOST_ROUNDS, MOST_SECONDS = 20, 2.0, 200, 60.0


def in_turn(works: Mapping[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Return ``p50`` and ``p99`` in milliseconds, and the ``rounds``, of each of the works."""
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    began, rounds = time.perf_counter(), 0
    while _more(rounds, time.perf_counter() - began):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: percentiles(seconds) for name, seconds in taken.items()}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile in milliseconds."""
    p50, p99 = np.percentile(1000 * np.asarray(seconds), [50, 99])
    return {"p50": float(p50), "p99": float(p99), "rounds": len(seconds)}


def _more(rounds: int, spent: float) -> bool:
    if rounds < 3:
        return True
    if rounds >= MOST_ROUNDS or spent >= MOST_SECONDS:
        return False
    return rounds < LEAST_ROUNDS or spent < LEAST_SECONDS
