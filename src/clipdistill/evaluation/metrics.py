"""Retrieval metrics: what share of queries finds what it looks for, in percent.

Shapes: ``Q`` queries, ``N`` gallery rows, ``D`` width. A similarity is either a matrix ``[Q, N]`` or a pair
``(queries [Q, D], gallery [N, D])``, whose cosines are computed a few queries at a time, so that 5,000 x 25,000
never makes one matrix. ``positives[q]`` holds the gallery rows that answer query ``q``.

**Ties count against.** The rank of a positive is one more than the number of other rows that are *at least* as
similar, so a model that gives every row the same embedding finds nothing, rather than everything. A similarity
that is not a number is a miss for a positive and counts against it elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import DataError, ModelError

Rows = NDArray[np.floating[Any]]
Indices = NDArray[np.integer[Any]]
Similarity = Rows | tuple[Rows, Rows]
Positives = Sequence[Sequence[int] | Indices]

#: Similarities held at a time: 64 MiB of float32.
CHUNK = 2**24


def recall_at(
    similarity: Similarity,
    positives: Positives,
    ks: Sequence[int] = (1, 5, 10),
    exclude: Indices | None = None,
) -> dict[int, float]:
    """Return the percentage of queries with at least one positive among their top ``k``, for each ``k``.

    This is the convention of CLIP_benchmark: of several positives one is enough. Queries without a positive are
    left out. ``exclude`` [Q] names one gallery row per query that is neither positive nor negative, such as the
    query itself. Raises :class:`DataError` if no query has a positive.
    """
    ranks = best_ranks(similarity, positives, exclude)
    return {k: 100.0 * float(np.mean(ranks <= k)) for k in ks}


def best_ranks(similarity: Similarity, positives: Positives, exclude: Indices | None = None) -> NDArray[np.intp]:
    """Return the rank of the most similar positive, 1 is first, of every query that has one, in their order."""
    return np.concatenate([chunk.best_ranks() for chunk in _chunks(similarity, positives, exclude)])


def mean_average_precision(similarity: Similarity, positives: Positives, exclude: Indices | None = None) -> float:
    """Return the mean over queries of the average precision over all their positives, in percent.

    The average precision of a query with ``P`` positives at the ranks r1 < ... < rP is the mean of j / rj; equal
    positives share no rank. Queries without a positive are left out; ``exclude`` is as for :func:`recall_at`.
    """
    chunks = _chunks(similarity, positives, exclude)
    return 100.0 * float(np.mean(np.concatenate([chunk.average_precisions() for chunk in chunks])))


def unit(rows: Rows, what: str = "embeddings") -> NDArray[np.float32]:
    """Return rows at unit length, ``float32 [N, D]``; a row of zeros stays one.

    Raises :class:`ModelError` if a row is not finite.
    """
    rows = np.asarray(rows, np.float32)
    broken = int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))
    if broken:
        raise ModelError(
            f"{broken} of {len(rows)} {what} are not finite (NaN or infinity). Check the model's weights, or embed "
            "in float32 instead of half precision."
        )
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


@dataclass(frozen=True)
class _Chunk:
    """Some queries that have positives: ``scores [q, N]``, and the columns of each query's positives."""

    scores: Rows
    columns: Sequence[Indices]

    def best_ranks(self) -> NDArray[np.intp]:
        """The rank of each query's most similar positive, 1 is first."""
        lengths = np.array([len(columns) for columns in self.columns])
        found = self.scores[np.repeat(np.arange(len(lengths)), lengths), np.concatenate(self.columns)]
        starts = np.cumsum(lengths) - lengths
        best = np.maximum.reduceat(found, starts)
        own = np.add.reduceat(found >= np.repeat(best, lengths), starts, dtype=np.intp)
        return np.asarray(1 + np.count_nonzero(self.scores >= best[:, None], axis=1) - own, np.intp)

    def average_precisions(self) -> NDArray[np.float64]:
        return np.array([_average_precision(*pair) for pair in zip(self.scores, self.columns, strict=True)])


def _average_precision(scores: Rows, columns: Indices) -> float:
    ascending = np.sort(scores[columns])
    # For every row, how many positives it is at least as similar as; then, per positive, how many rows are.
    beaten = np.bincount(np.searchsorted(ascending, scores, side="right"), minlength=len(columns) + 1)
    own = np.bincount(np.searchsorted(ascending, ascending, side="right"), minlength=len(columns) + 1)
    others = np.cumsum((beaten - own)[::-1])[:-1]
    order = np.arange(1, len(columns) + 1)
    return float(np.mean(order / (order + others)))


def _chunks(similarity: Similarity, positives: Positives, exclude: Indices | None) -> Iterator[_Chunk]:
    """Cut the queries that have positives into chunks of at most :data:`CHUNK` similarities."""
    left, right = _sides(similarity)
    if len(positives) != len(left):
        raise DataError(f"there are {len(left)} queries, but positives for {len(positives)}; give one list each.")
    excluded = np.full(len(left), -1) if exclude is None else np.asarray(exclude)
    kept = np.flatnonzero([np.any(np.asarray(own) != excluded[q]) for q, own in enumerate(positives)])
    if not len(kept):
        raise DataError(f"none of the {len(left)} queries has a positive in the gallery: nothing to measure.")
    size = max(1, CHUNK // max(1, left.shape[1] if right is None else len(right)))
    for start in range(0, len(kept), size):
        queries = kept[start : start + size]
        scores = left[queries] if right is None else left[queries] @ right.T
        if exclude is not None:
            scores[np.arange(len(queries)), excluded[queries]] = -np.inf
        columns = [_distinct(np.asarray(positives[q], np.intp)) for q in queries]
        columns = [own[own != excluded[q]] for q, own in zip(queries, columns, strict=True)]
        yield _Chunk(_settled(scores, columns), columns)


def _distinct(columns: Indices) -> Indices:
    """The columns without repetition: one that is named twice would stand before itself."""
    return columns if np.all(columns[1:] > columns[:-1]) else np.unique(columns)


def _sides(similarity: Similarity) -> tuple[Rows, NDArray[np.float32] | None]:
    """Return a matrix and nothing, or queries and gallery at unit length."""
    if isinstance(similarity, tuple):
        queries, gallery = similarity
        return unit(queries, "queries"), unit(gallery, "gallery rows")
    return np.asarray(similarity, np.result_type(similarity, np.float32)), None


def _settled(scores: Rows, columns: Sequence[Indices]) -> Rows:
    """Make what is not a number count against: last where it is a positive, first elsewhere. Changes ``scores``."""
    for row in map(int, np.flatnonzero(np.isnan(scores).any(axis=1))):
        broken = np.isnan(scores[row])
        scores[row, broken] = np.inf
        scores[row, columns[row][broken[columns[row]]]] = -np.inf
    return scores
