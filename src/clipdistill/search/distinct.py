"""Copies among hits: the same file again, or nearly the same row.

Shapes: ``D`` the model's full width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipdistill.search.index import Index
from clipdistill.search.table import Found

#: Rows are of copies from this cosine on, if pictures differ as they do for most models.
COPIES = 0.98
#: However little the rows of a model differ: copies are this much nearer than two pictures are on average.
NEARER = 0.04


def copies_from(mean: float) -> float:
    """The cosine from which on rows are of copies, where two pictures of the index have ``mean`` on average."""
    return max(COPIES, 1 - NEARER * (1 - mean))


def without_copies(index: Index, found: Sequence[Found], k: int, cosine: float) -> list[Found]:
    """The best ``k`` of hits, best first, that are no copies of a better one; fewer where there are fewer."""
    ids = [one.id for one in found]
    vectors = index.vectors(ids)
    rows = index.rows(ids, ["hash"])
    hashes = dict(zip(rows["id"].to_pylist(), rows["hash"].to_pylist(), strict=True))
    kept: list[Found] = []
    matrix = np.empty((k, index.manifest.model.width), np.float32)
    seen: set[str] = set()
    for one in found:
        row, content = vectors[one.id], hashes[one.id]
        if content in seen or (matrix[: len(kept)] @ row >= cosine).any():
            continue
        matrix[len(kept)] = row
        kept.append(one)
        seen |= {content} if content else set()
        if len(kept) == k:
            break
    return kept
