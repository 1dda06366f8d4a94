"""Which runs of two models are set against each other: those with the same seed and the same teacher's seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from clipdistill.evidence.statistics import Difference, paired_difference, spread

#: A run's own seed, None of a teacher, and its teacher's, None where the teacher is the same for all or there is none.
Seeds: TypeAlias = tuple[int | None, int | None]
#: The seeds of a run, and one of its figures.
Run: TypeAlias = tuple[Seeds, float]


def difference(values: Iterable[Run], base: Iterable[Run]) -> Difference | None:
    """Return the mean difference and its interval over the pairs of :func:`paired`; None if there are none."""
    return paired_difference(*paired(values, base))


def paired(values: Iterable[Run], base: Iterable[Run]) -> tuple[dict[Seeds, float], dict[Seeds, float]]:
    """Return both sides by the seeds that both vary in, means over what one of them does not know.

    One run that stood against those of several teachers would count as several, so these are averaged first. A teacher
    that varies in nothing the other side does stands against each of its runs, as one model does.
    """
    values, base = list(values), list(base)
    every = [seeds for seeds, _ in (*values, *base)]
    shared = [all(seeds[at] is not None for seeds in every) for at in (0, 1)]
    if any(shared):
        return _means(values, shared), _means(base, shared)
    if all(seed is None for (seed, _), _ in values):
        return _everywhere(values, base), dict(base)
    return dict(values), _everywhere(base, values)


def _everywhere(found: Iterable[Run], beside: Iterable[Run]) -> dict[Seeds, float]:
    mean = spread([value for _, value in found]).mean
    return {seeds: mean for seeds, _ in beside}


def _means(found: Iterable[Run], kept: list[bool]) -> dict[Seeds, float]:
    grouped: dict[Seeds, list[float]] = {}
    for (seed, teacher), value in found:
        grouped.setdefault((seed if kept[0] else None, teacher if kept[1] else None), []).append(value)
    return {seeds: spread(own).mean for seeds, own in grouped.items()}


def count(values: Iterable[Run], base: Iterable[Run]) -> str:
    """Say how many pairs of :func:`paired` there are of what: 3 seeds, 3 teachers, or 9 of 3 teachers."""
    pairs = set.intersection(*map(set, paired(values, base)))
    teachers = len({teacher for _, teacher in pairs if teacher is not None})
    if teachers > 1:
        return f"{len(pairs)} of {teachers} teachers" if len(pairs) > teachers else f"{teachers} teachers"
    return f"{len(pairs)} seed{'s' if len(pairs) > 1 else ''}"


def of_teacher(figures: Mapping[int | None, float]) -> dict[Seeds, float]:
    """Return a teacher's figures, which are by its seed; of one that is the same for every seed, the one there is."""
    if len(set(figures.values())) == 1:
        return {(None, None): next(iter(figures.values()))}
    return {(None, seed): value for seed, value in figures.items()}
