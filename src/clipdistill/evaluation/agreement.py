"""How far two models agree on the same questions: what they return, in which order, and which class they choose.

Shapes: ``Q`` queries, ``N`` gallery rows, ``D`` width, which may differ between the models. A :data:`Asked` is
``(queries [Q, D], gallery [N, D])``; cosines are computed a few queries at a time, so that a large gallery never makes
one matrix. ``exclude`` [Q] names one gallery row per query that is left out, such as the query itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import DataError
from clipdistill.evaluation.metrics import CHUNK, Indices, Rows, unit

Asked = tuple[Rows, Rows]
#: Unit rows in float32 differ by as much without meaning it.
_ROUNDING = 1e-6


def strips(queries: int, gallery: int) -> Iterator[slice]:
    """Cut queries into strips of at most :data:`clipdistill.evaluation.metrics.CHUNK` similarities."""
    size = max(1, CHUNK // max(1, gallery))
    for start in range(0, queries, size):
        yield slice(start, min(start + size, queries))


def top_k_overlap(
    one: Asked, other: Asked, ks: Sequence[int] = (1, 5, 10), exclude: Indices | None = None
) -> dict[int, float]:
    """Return for each ``k`` how many of the first ``k`` rows two models share, in percent, the mean over queries.

    A ``k`` that is the whole gallery or more is left out: everything is always shared. Of equally similar rows any may
    be among the first. Raises :class:`DataError` if the models were not asked the same.
    """
    queries, size = _check(one, other)
    possible = [k for k in ks if k < size - (exclude is not None)]
    if not possible or not queries:
        return {}
    shared = dict.fromkeys(possible, 0.0)
    for first, second in _both(one, other, exclude):
        mine, theirs = _top(first, max(possible)), _top(second, max(possible))
        for k in possible:
            shared[k] += np.count_nonzero(mine[:, :k, None] == theirs[:, None, :k]) / k
    return {k: 100.0 * float(total) / queries for k, total in shared.items()}


def rank_correlation(one: Asked, other: Asked, exclude: Indices | None = None) -> float | None:
    """Return Spearman's correlation of each query's similarities over the gallery, the mean over queries.

    Equal similarities share their mean rank. A query for which a model tells no two rows apart counts as 0. None
    where there is but one row to rank. Raises
    :class:`DataError` if the models were not asked the same, or asked nothing.
    """
    queries, _ = _check(one, other)
    if not queries:
        raise DataError("there are no queries to correlate.")
    if len(one[1]) - (exclude is not None) < 2:
        return None
    total = 0.0
    for first, second in _both(one, other, exclude):
        for mine, theirs in zip(first, second, strict=True):
            kept = np.isfinite(mine)
            total += _correlation(mean_ranks(mine[kept]), mean_ranks(theirs[kept]))
    return total / queries


def mean_ranks(values: Rows) -> NDArray[np.float64]:
    """Return the rank of each value, 0 is the lowest; equal values share the mean of theirs, ``[N]``."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))
    lengths = np.diff([*starts, len(values)])
    ranks = np.empty(len(values), np.float64)
    ranks[order] = np.repeat(starts + (lengths - 1) / 2, lengths)
    return ranks


def predictions(pictures: Rows, classes: Rows) -> NDArray[np.intp]:
    """Return the most similar class of each picture, the first of equal ones, ``[Q]``."""
    pictures, classes = unit(pictures, "pictures"), unit(classes, "class embeddings")
    chosen = [np.argmax(pictures[part] @ classes.T, axis=1) for part in strips(len(pictures), len(classes))]
    return np.concatenate([np.empty(0, np.intp), *chosen])


def centred_cosine(one: Rows, other: Rows) -> float:
    """Return the mean cosine of two models' rows ``[N, D]`` for the same inputs, each set less its own mean.

    Rows that all lie in a narrow cone have a cosine near 1 to anything in it; without their mean they do not. A row
    that is its set's mean counts as 0. Raises :class:`DataError` if the shapes differ.
    """
    if one.shape != other.shape:
        raise DataError(f"rows of {one.shape} and {other.shape} have no cosine; both models need the same width.")
    return float(np.mean(np.sum(_centred(one) * _centred(other), axis=1)))


def _check(one: Asked, other: Asked) -> tuple[int, int]:
    """Return the number of queries and of gallery rows."""
    shapes = [(len(queries), len(gallery)) for queries, gallery in (one, other)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"one model was asked {shapes[0][0]} queries over {shapes[0][1]} rows, the other {shapes[1][0]} over "
            f"{shapes[1][1]}; they agree or not only on the same."
        )
    return shapes[0]


def _both(one: Asked, other: Asked, exclude: Indices | None) -> Iterator[tuple[Rows, Rows]]:
    """The similarities of both models, strip by strip; what is excluded is minus infinity."""
    models = [(unit(queries, "queries"), unit(gallery, "gallery rows")) for queries, gallery in (one, other)]
    for part in strips(len(one[0]), len(one[1])):
        scores = [queries[part] @ gallery.T for queries, gallery in models]
        if exclude is not None:
            for matrix in scores:
                matrix[np.arange(len(matrix)), exclude[part]] = -np.inf
        yield scores[0], scores[1]


def _top(scores: Rows, k: int) -> NDArray[np.intp]:
    """The columns of the ``k`` highest scores, the highest first, ``[q, k]``."""
    few = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.argsort(-np.take_along_axis(scores, few, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(few, order, axis=1), np.intp)


def _centred(rows: Rows) -> NDArray[np.float64]:
    """Unit rows less their mean, at unit length again; what is left of a row by rounding alone is zeros."""
    left = unit(rows).astype(np.float64)
    left -= left.mean(axis=0)
    lengths = np.linalg.norm(left, axis=1, keepdims=True)
    return np.asarray(np.divide(left, lengths, out=np.zeros_like(left), where=lengths > _ROUNDING), np.float64)


def _correlation(one: Rows, other: Rows) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt(np.sum(one**2) * np.sum(other**2)))
    return float(np.sum(one * other)) / scale if scale else 0.0
