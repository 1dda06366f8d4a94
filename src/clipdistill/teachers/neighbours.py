"""Who is near whom among stored rows: exact nearest neighbours, and groups of near duplicates.

Everything is done tile by tile, so that only ``block x block`` similarities exist at a time and rows may stay on disk.

Legend: ``N`` rows, ``D`` their width, ``k`` neighbours of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clipdistill.errors import DataError
from clipdistill.progress import progress

#: Rows per side of a tile: a few megabytes of rows, and similarities that fit into a processor's cache more or less.
BLOCK = 2048

#: Two equal rows have a cosine of 1 but for the rounding of float32.
_ROUNDING = 1e-6


def nearest(rows: NDArray[Any], k: int, block: int = BLOCK) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Find the ``k`` rows of largest cosine to every row, itself excluded.

    Args:
        rows: float16 or float32 ``[N, D]``, an array or a memmap; each is made unit length in float32.
        k: from 1 to ``N - 1``.

    Returns:
        positions ``[N, k]`` and cosines ``[N, k]``, nearest first, equals by position.

    Raises:
        DataError: if there are fewer than ``k`` other rows, or a row is not finite.
    """
    count = len(rows)
    if not 1 <= k < count:
        raise DataError(f"cannot find {k} neighbours among {count} rows: expected 1 to {count - 1}.")
    positions, cosines = np.empty((count, k), np.int32), np.empty((count, k), np.float32)
    with progress("neighbours", count, "rows") as advance:
        for start, queries in _blocks(rows, block):
            stop = start + len(queries)
            found, values = _nearest_to(queries, start, rows, k, block)
            # Sorted by value, then by position: topk leaves equals in any order.
            ranks = np.lexsort((found, -values), axis=1)
            positions[start:stop] = np.take_along_axis(found, ranks, 1)
            cosines[start:stop] = np.take_along_axis(values, ranks, 1)
            advance(stop, "")
    return positions, cosines


def _nearest_to(
    queries: Tensor, start: int, rows: NDArray[Any], k: int, block: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best ``k`` of all rows for the block of ``queries`` that begins at row ``start``, in any order."""
    values, found = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    for other, candidates in _blocks(rows, block):
        cosines = queries @ candidates.T
        if other == start:
            cosines.fill_diagonal_(-torch.inf)
        best, place = cosines.topk(min(k, len(candidates)), dim=1, sorted=False)
        values, found = torch.cat([values, best], 1), torch.cat([found, place + other], 1)
        values, place = values.topk(min(k, values.shape[1]), dim=1, sorted=False)
        found = found.gather(1, place)
    return found.numpy(), values.numpy()


def duplicates(rows: NDArray[Any], threshold: float, block: int = BLOCK) -> NDArray[np.int64]:
    """Group rows that are linked by pairs with a cosine of ``threshold`` or more, directly or through others.

    Args:
        rows: float16 or float32 ``[N, D]``, an array or a memmap; each is made unit length in float32.

    Returns:
        ``[N]``: the number of a row's group, counted from 0 in the order of their first rows; -1 for a row alone.

    Raises:
        DataError: if a row is not finite.
    """
    parent = np.arange(len(rows))
    with progress("duplicates", len(rows), "rows") as advance:
        for start, left in _blocks(rows, block):
            for other, right in _blocks(rows, block, start):
                pairs = (left @ right.T >= threshold - _ROUNDING).nonzero().numpy()
                _unite(parent, pairs[:, 0] + start, pairs[:, 1] + other)
            advance(start + len(left), "")
    roots, group, size = np.unique(_roots(parent, np.arange(len(rows))), return_inverse=True, return_counts=True)
    shared = size > 1
    numbers = np.full(len(roots), -1)
    numbers[shared] = np.arange(shared.sum())
    return numbers[group]


def _unite(parent: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
    """Join the trees of each pair; a parent is never larger than its child, so a root is the first row of its tree.

    A root that several pairs want elsewhere goes to the smallest; the others find it there in the next round.
    """
    while len(left):
        one, two = _roots(parent, left), _roots(parent, right)
        apart = one != two
        left, right = np.maximum(one, two)[apart], np.minimum(one, two)[apart]
        np.minimum.at(parent, left, right)


def _roots(parent: NDArray[np.int64], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Climb to the root of each node, and leave the nodes right below it."""
    above = parent[nodes]
    while not np.array_equal(higher := parent[above], above):
        above = higher
    parent[nodes] = above
    return above


def _blocks(rows: NDArray[Any], block: int, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Yield ``(start, unit rows in float32)`` from row ``first`` on."""
    for start in range(first, len(rows), block):
        part = torch.from_numpy(np.array(rows[start : start + block], np.float32))
        finite = part.isfinite().all(1)
        if not finite.all():
            raise DataError(f"row {start + int(finite.int().argmin())} of {len(rows)} is not finite: embed it again.")
        yield start, F.normalize(part, dim=1)
