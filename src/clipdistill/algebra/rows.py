"""Rows of embeddings before any term sees them: unit length, one shape, and who is whose positive.

Legend: ``B`` rows, ``D`` width of a node, ``K`` kinds of group keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from clipdistill.algebra.nodes import Node
from clipdistill.errors import RecipeError

#: Embeddings as a caller gives them, by node or its spelling.
Embeddings = Mapping[str, Tensor] | Mapping[Node, Tensor]


def by_node(embeddings: Embeddings) -> dict[Node, Tensor]:
    """The same embeddings with every spelling read into a node."""
    return {node if isinstance(node, Node) else Node.parse(node): rows for node, rows in embeddings.items()}


def checked(rows: Iterable[tuple[Node, Tensor, int]]) -> dict[Node, Float[Tensor, "B D"]]:
    """Unit rows of each node, after checking that they are ``[B, width]`` with one B for all."""
    units: dict[Node, Tensor] = {}
    for node, matrix, width in rows:
        if matrix.ndim != 2 or matrix.shape[1] != width:
            raise RecipeError(f"node {node}: expected shape [B, {width}], found {list(matrix.shape)}.")
        if not len(matrix):
            raise RecipeError(f"node {node} has no rows: expected at least one.")
        before = next(iter(units.values()), matrix)
        if len(matrix) != len(before):
            raise RecipeError(
                f"node {node} has {len(matrix)} rows, another node has {len(before)}: all need one row per sample."
            )
        units[node] = unit(matrix)
    kinds = {matrix.dtype for matrix in units.values()}
    return units if len(kinds) == 1 else {node: matrix.double() for node, matrix in units.items()}


def unit(rows: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Unit rows; half precision is lifted to float32 first, double stays double."""
    return F.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)


def positive_pairs(groups: Tensor | None, like: Float[Tensor, "B D"]) -> Bool[Tensor, "B B"]:
    """Which rows are positives of which: the diagonal, and rows that agree in any column of ``groups``.

    A negative key belongs to no group.
    """
    same = torch.eye(len(like), dtype=torch.bool, device=like.device)
    if groups is None:
        return same
    if groups.dtype.is_floating_point or groups.dtype == torch.bool or groups.ndim > 2:
        raise RecipeError(
            f"positives: expected integer keys of shape [B] or [B, K], rows that agree being positives of each other, "
            f"found {groups.dtype} {list(groups.shape)}."
        )
    if len(groups) != len(like):
        raise RecipeError(
            f"positives has {len(groups)} rows, the embeddings have {len(like)}: expected one key per row."
        )
    keys = groups if groups.ndim == 2 else groups[:, None]
    for column in keys.T:
        same = same | ((column[:, None] == column[None, :]) & (column >= 0)[:, None])
    return same
