"""Rows cut to their first dimensions find candidates; their full ones say which of these are best.

Shapes: ``Q`` queries, ``N`` rows, ``D`` full width, ``W`` width that is searched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from clipdistill.errors import SearchError
from clipdistill.search.filters import Filter
from clipdistill.search.manifest import Effort, Manifest
from clipdistill.search.table import Found, Table

#: So many hits are what a search is tuned for; one for fewer looks as far.
TEN = 10


def unit_queries(queries: ArrayLike, width: int) -> NDArray[np.float32]:
    """Bring queries ``[Q, D]`` to unit length; raises :class:`SearchError` for other shapes and zero rows."""
    rows = np.asarray(queries, np.float32)
    if rows.ndim != 2 or rows.shape[1] != width:
        raise SearchError(f"queries are [Q, {width}] for this index, found {list(rows.shape)}.")
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise SearchError("a query's row is zero or not finite: it points nowhere. Do its parts cancel each other out?")
    return np.asarray(rows / lengths, np.float32)


def search_rows(
    table: Table,
    manifest: Manifest,
    rows: NDArray[np.float32],
    k: int,
    where: Filter | None = None,
    exact: bool = False,
    effort: Effort | None = None,
) -> list[list[Found]]:
    """The ``k`` nearest rows of each unit query ``[Q, D]``, best first, with cosines of full rows.

    Where rows are searched by their first dimensions, as many more as the ``effort`` says are found and compared again.
    """
    if not manifest.full or exact:
        return table.search(rows, k, where, exact, effort)
    more = max(k, min(max(k, TEN) * ((effort or manifest.effort).rescore or 1), table.most))
    found = table.search(cut(rows, manifest.width), more, where, False, effort)
    full = vectors_of(table.rows(list({one.id for hits in found for one in hits}), ["full"]), "full")
    return [_best(row, hits, full, k) for row, hits in zip(rows, found, strict=True)]


def cut(rows: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """The first ``width`` dimensions of rows ``[N, D]``, brought to unit length again: ``[N, W]``.

    Raises :class:`SearchError` for a row that has nothing there.
    """
    if width == rows.shape[1]:
        return rows
    lengths = np.linalg.norm(rows[:, :width], axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise SearchError(f"a row is zero in its first {width} dimensions. Index at a larger width.")
    return np.ascontiguousarray(rows[:, :width] / lengths, np.float32)


def _best(
    query: NDArray[np.float32], hits: Sequence[Found], full: Mapping[str, NDArray[np.float32]], k: int
) -> list[Found]:
    """The ``k`` best of some hits by their full rows, with those cosines."""
    scored = [replace(one, score=float(full[one.id] @ query)) for one in hits if one.id in full]
    return sorted(scored, key=lambda one: (-one.score, one.id))[:k]


def vectors_of(rows: pa.Table, column: str) -> dict[str, NDArray[np.float32]]:
    """The rows of a column of vectors, by id."""
    return dict(zip(rows["id"].to_pylist(), matrix(rows[column]), strict=True))


def matrix(column: pa.ChunkedArray | pa.Array) -> NDArray[np.float32]:
    """A column of vectors as ``[N, D]``."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    width = column.type.list_size
    parts = [np.asarray(chunk.flatten(), np.float32).reshape(-1, width) for chunk in chunks]
    return np.concatenate([np.empty((0, width), np.float32), *parts])


def nearest(
    batches: Iterable[pa.RecordBatch], column: str, queries: NDArray[np.float32], k: int
) -> list[tuple[list[str], NDArray[np.float32]]]:
    """The ids and cosines of the ``k`` rows nearest to each query ``[Q, D]``, best first, every row compared.

    ``batches`` hold ``id`` and vectors in ``column``. Memory is that of a batch's scores, whatever the rows.
    """
    ids = np.empty((len(queries), 0), object)
    scores = np.empty((len(queries), 0), np.float32)
    for batch in batches:
        names = np.array(batch["id"].to_pylist(), object)
        scores = np.concatenate([scores, queries @ matrix(batch[column]).T], axis=1)
        ids = np.concatenate([ids, np.broadcast_to(names, (len(queries), len(names)))], axis=1)
        if scores.shape[1] > k:
            kept = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            scores, ids = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(ids, kept, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return [(list(names[places]), row[places]) for names, row, places in zip(ids, scores, order, strict=True)]
