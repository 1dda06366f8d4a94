"""Smaller rows: fewer channels, fewer bits, and where the answers then stand.

Shapes: ``Q`` queries, ``N`` gallery rows, ``D`` width. Queries and gallery are stored alike, as vector databases do:

========  =====================================================  ================  =======================
format    what is kept of a unit row                             bytes per row     compared by
========  =====================================================  ================  =======================
float32   itself                                                 4 D               cosine
float16   each value, rounded to half precision                  2 D               dot product
int8      whole numbers up to 127, times one scale for the row   D + 4             dot product
binary    the sign of each value, 1 if it is above 0             D / 8             Hamming distance
========  =====================================================  ================  =======================

**Rescoring** compares the first 100 again, by the cosine of the rows in float32, which are then kept as well, but read
only for those.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import ConfigError, DataError, did_you_mean
from clipdistill.evaluation.agreement import strips
from clipdistill.evaluation.metrics import Indices, Rows, best_ranks, unit

FORMATS = ("float32", "float16", "int8", "binary")
#: How many of the first rows are compared again.
RESCORED = 100
_FULL_INT8 = 127
#: Below every cosine: the score of what is not among those compared again.
_LAST = -2.0


def cut(rows: Rows, width: int) -> NDArray[np.float32]:
    """Return the first ``width`` channels at unit length, ``[N, width]``, as Matryoshka models are used.

    Raises :class:`ConfigError` if the rows have fewer.
    """
    if not 0 < width <= rows.shape[1]:
        raise ConfigError(f"rows {rows.shape[1]} wide can be cut to 1 to {rows.shape[1]} channels, found {width}.")
    return unit(rows[:, :width])


def row_bytes(form: str, width: int) -> int:
    """Return how many bytes a row takes in one of :data:`FORMATS`."""
    sizes = {"float32": 4 * width, "float16": 2 * width, "int8": width + 4, "binary": -(-width // 8)}
    if form not in sizes:
        raise ConfigError(f"there is no format '{form}' for rows.{did_you_mean(form, FORMATS)}")
    return sizes[form]


def int8_codes(rows: Rows) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return whole numbers ``[N, D]`` and a scale per row ``[N]`` whose products are nearest to the rows."""
    scales = np.abs(rows).max(axis=1, initial=0.0) / _FULL_INT8
    codes = np.rint(rows / np.where(scales > 0, scales, 1)[:, None])
    return codes.astype(np.int8), scales.astype(np.float32)


def read_back(form: str, rows: Rows) -> NDArray[np.float32]:
    """Return rows as they compare once stored, ``float32 [N, D]``: their dot products order as the format does.

    Signs are +1 and -1, whose dot product is the width less twice the Hamming distance, exactly.
    """
    rows = unit(rows)
    if form == "float32":
        return rows
    if form == "float16":
        return rows.astype(np.float16).astype(np.float32)
    if form == "int8":
        codes, scales = int8_codes(rows)
        return codes.astype(np.float32) * scales[:, None]
    if form == "binary":
        return np.where(rows > 0, np.float32(1), np.float32(-1))
    raise ConfigError(f"there is no format '{form}' for rows.{did_you_mean(form, FORMATS)}")


def ranks_stored(
    form: str,
    queries: Rows,
    gallery: Rows,
    positives: Sequence[Indices],
    exclude: Indices | None = None,
    rescore: bool = False,
) -> NDArray[np.intp]:
    """Return the rank of the most similar positive of each query, 1 is first, with rows in a format, ``[Q]``.

    ``positives[q]`` are the gallery rows that answer query ``q``, at least one besides ``exclude[q]``. Ties count
    against, as everywhere: a binary format, which has many, is not flattered. With ``rescore`` an answer that is not
    among the first 100 has the last rank.
    """
    if len(positives) != len(queries):
        raise DataError(f"there are {len(queries)} queries, but positives for {len(positives)}; give one list each.")
    asked, searched = read_back(form, queries), read_back(form, gallery)
    exact = (unit(queries), unit(gallery)) if rescore else None
    ranks = [np.empty(0, np.intp)]
    for part in strips(len(queries), len(gallery)):
        scores = asked[part] @ searched.T
        left_out = None if exclude is None else exclude[part]
        if exact is not None:
            scores = _rescored(scores, exact[0][part] @ exact[1].T, positives[part], left_out)
        ranks.append(best_ranks(scores, positives[part], left_out))
    return np.concatenate(ranks)


def _rescored(rough: Rows, exact: Rows, positives: Sequence[Indices], exclude: Indices | None) -> Rows:
    """The exact scores of those that are first by the rough ones; everything else is last."""
    if exclude is not None:
        rough[np.arange(len(rough)), exclude] = -np.inf
    if rough.shape[1] > RESCORED:
        exact[~_first(rough, positives)] = _LAST
    return exact


def _first(scores: Rows, positives: Sequence[Indices]) -> NDArray[np.bool_]:
    """Mark the first rows of each query ``[q, N]``; of those that tie for the last places, answers come last."""
    last = np.partition(scores, -RESCORED, axis=1)[:, -RESCORED]
    first = np.asarray(scores >= last[:, None], np.bool_)
    for query in map(int, np.flatnonzero(np.count_nonzero(first, axis=1) > RESCORED)):
        tied = np.flatnonzero(scores[query] == last[query])
        places = RESCORED - np.count_nonzero(scores[query] > last[query])
        order = np.argsort(np.isin(tied, positives[query]), kind="stable")
        first[query, tied[order[places:]]] = False
    return first
