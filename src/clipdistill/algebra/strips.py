"""Loss memory linear in the batch: rows of similarities in strips, computed anew for the backward pass.

A strip is some of this rank's rows against all candidates, so every row's softmax is whole in it, and any objective
that has one value per row can be taken strip by strip. No matrix of all rows by all candidates is ever stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.utils.checkpoint import checkpoint

Made = TypeVar("Made")

#: Matrices of up to so many numbers (64 MB in float32) are stored whole, which saves computing them twice.
WHOLE = 1 << 24
#: A strip has about so many numbers, 2 MB in float32: a recipe holds dozens of such pieces at once; and no
#: fewer rows than products of matrices want.
STRIP, LOWEST = 1 << 19, 16


def cut(rows: int, candidates: int) -> list[slice]:
    """Cut ``rows`` rows against ``candidates`` into strips; one where the whole matrix is small."""
    height = rows if rows * candidates <= WHOLE else max(LOWEST, STRIP // candidates)
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]


def recomputed(function: Callable[..., Made], *arguments: object) -> Made:
    """Call a function now, and again for its gradient: what is computed inside is not kept in between."""
    made: Made = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return made
