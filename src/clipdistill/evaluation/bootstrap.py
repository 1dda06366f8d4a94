"""Intervals by the bootstrap: draw the pictures anew, many times, the same ones for both of two models.

A draw is a weight per unit, how often it was drawn, ``[B, U]``; a statistic turns draws into values ``[B]``. What is
drawn are pictures, with all that is asked by them and for them: captions of one picture succeed and fail together, so
that drawing them one by one would make the intervals too narrow. Galleries stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipdistill.evaluation.metrics import Indices, Rows

DRAWS = 2_000
_SEED = 0
#: Of fewer pictures no draw shows what others would have brought: where all are found, so they are in every draw.
FEWEST = 30
#: Weights held at a time: 32 MiB of float64.
_CHUNK = 2**22
_PERCENTILES = (2.5, 97.5)

Weights = NDArray[np.float64]
Values = NDArray[np.float64]
Statistic = Callable[[Weights], Values]
#: One value per unit.
Counted = Rows | Indices | NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """A figure on all pictures, and between which values it lies in 95% of the draws.

    None where that is unknown, as of fewer than :data:`FEWEST` pictures.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Kept:
    """A metric in percent of a student and its teacher, the student's less the teacher's, and its share of it.

    ``share`` is 100 for a student as good as its teacher; None if the teacher has 0, and without an interval if the
    teacher has 0 in one of the draws.
    """

    student: Interval
    teacher: Interval
    difference: Interval
    share: Interval | None


def ratio(over: Counted, under: Counted) -> Statistic:
    """The drawn sum of ``over [U]`` in percent of that of ``under [U]``: of hits among queries, a recall."""
    parts = np.stack([over, under], axis=1).astype(np.float64)
    return lambda weights: _divided(*(weights @ parts).T)


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The mean of several statistics of the same draw."""
    return lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)


def per_class(hits: Counted, classes: Indices) -> Statistic:
    """The mean over the classes that were drawn of the percentage of hits in each; ``hits`` and ``classes`` ``[U]``."""
    order = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
    ordered = np.asarray(hits, np.float64)[order]

    def value(weights: Weights) -> Values:
        drawn = np.add.reduceat(weights[:, order], starts, axis=1)
        right = np.add.reduceat(weights[:, order] * ordered, starts, axis=1)
        shares = np.divide(right, drawn, out=np.zeros_like(right), where=drawn > 0)
        return np.asarray(100.0 * shares.sum(axis=1) / np.count_nonzero(drawn, axis=1), np.float64)

    return value


def paired(
    units: int, statistics: Mapping[str, tuple[Statistic, Statistic]], draws: int = DRAWS, seed: int = _SEED
) -> dict[str, Kept]:
    """Return what is kept of each metric, whose ``statistics`` are the student's and the teacher's."""
    found = {name: [np.empty((2, 0))] for name in statistics}
    for weights in draw(units, draws if units >= FEWEST else 0, seed):
        for name, both in statistics.items():
            found[name].append(np.stack([statistic(weights) for statistic in both]))
    whole = np.ones((1, units))
    result = {}
    for name, (student, teacher) in statistics.items():
        values = (float(student(whole)[0]), float(teacher(whole)[0]))
        result[name] = _kept(values, *np.concatenate(found[name], axis=1))
    return result


def alone(
    units: int, statistics: Mapping[str, Statistic], draws: int = DRAWS, seed: int = _SEED
) -> dict[str, Interval]:
    """Return each metric of one model, with its interval."""
    found = {name: [np.empty(0)] for name in statistics}
    for weights in draw(units, draws if units >= FEWEST else 0, seed):
        for name, statistic in statistics.items():
            found[name].append(statistic(weights))
    whole = np.ones((1, units))
    return {
        name: _interval(float(statistic(whole)[0]), np.concatenate(found[name]))
        for name, statistic in statistics.items()
    }


def draw(units: int, draws: int, seed: int) -> Iterator[Weights]:
    """Draw ``units`` of ``units`` with replacement, ``draws`` times: weights in chunks ``[B, U]``."""
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK // units)
    for start in range(0, draws, size):
        count = min(size, draws - start)
        places = rng.integers(0, units, (count, units)) + units * np.arange(count)[:, None]
        yield np.bincount(places.ravel(), minlength=count * units).reshape(count, units).astype(np.float64)


def _kept(values: tuple[float, float], student: Values, teacher: Values) -> Kept:
    share = None
    if values[1]:
        always = bool(np.all(teacher > 0))
        drawn = 100 * student / teacher if always else np.empty(0)
        share = _interval(100 * values[0] / values[1], drawn)
    return Kept(
        _interval(values[0], student),
        _interval(values[1], teacher),
        _interval(values[0] - values[1], student - teacher),
        share,
    )


def _interval(value: float, drawn: Values) -> Interval:
    """The interval between percentiles; a draw that held nothing to measure, not a number, is none."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, None, None)
    low, high = np.percentile(drawn, _PERCENTILES)
    return Interval(value, float(low), float(high))


def _divided(over: Values, under: Values) -> Values:
    return np.divide(100.0 * over, under, out=np.full_like(over, np.nan), where=under > 0)
