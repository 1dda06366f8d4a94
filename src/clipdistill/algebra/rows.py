"""Rows of embeddings as the terms see them: unit length, gathered from every rank once, and who is whose positive.

Legend: ``b`` rows of this rank, ``B`` rows of all ranks, ``N`` candidates, ``D`` width of a node, ``K`` kinds of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from clipdistill.algebra.gather import Split, gather
from clipdistill.algebra.nodes import BANK, CLASSES, LOGITS, Node
from clipdistill.errors import RecipeError

#: Embeddings as a caller gives them, by node or its spelling.
Embeddings = Mapping[str, Tensor] | Mapping[Node, Tensor]


@dataclass
class Rows:
    """One call's rows by node, with what relates them.

    ``units`` holds this rank's unit rows (and logits as they are), ``raw`` the rows as they were given, ``keys`` the
    group keys ``int [b, K]``, ``labels`` class numbers ``int [b]``, ``bank_keys`` the keys of the rows of ``@bank``,
    ``int [N, K]``. ``part`` says which of this rank's rows are looked at as anchors.
    """

    units: dict[Node, Tensor]
    raw: dict[Node, Tensor]
    split: Split
    keys: Tensor | None
    labels: Tensor | None = None
    bank_keys: Tensor | None = None
    part: slice = field(default_factory=lambda: slice(None))
    all_keys: Tensor | None = None
    _everywhere: dict[Node, Tensor] = field(default_factory=dict)
    _positives: dict[str, Tensor] = field(default_factory=dict)
    _anchors: dict[Node, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.keys is not None and self.all_keys is None:
            self.all_keys = gather(self.keys, self.split)

    def strip(self, part: slice, anchors: Mapping[Node, Tensor] | None = None) -> Rows:
        """The same rows, with some of this rank's as anchors; ``anchors`` if they are cut already."""
        return replace(self, part=part, _positives={}, _anchors=dict(anchors or {}))

    @property
    def count(self) -> int:
        """The number of anchors."""
        return len(range(self.split.sizes[self.split.rank])[self.part])

    def anchors(self, node: Node) -> Float[Tensor, "b D"]:
        """The anchors of a node."""
        if node not in self._anchors:
            self._anchors[node] = self.units[node][self.part]
        return self._anchors[node]

    def candidates(self, node: Node) -> int:
        """The number of candidates that a node has."""
        return len(self.units[node]) if node.is_bank else self.split.total

    def everywhere(self, node: Node) -> Float[Tensor, "N D"]:
        """The candidates of a node: the rows of all ranks, or those of a bank, which every rank has whole."""
        if node.is_bank:
            return self.units[node]
        if node not in self._everywhere:
            self._everywhere[node] = gather(self.units[node], self.split)
        return self._everywhere[node]

    def positives(self, node: Node) -> Bool[Tensor, "b N"]:
        """Which candidates of a node are positives of which anchors."""
        layers = [self._mask(layer) for layer in node.layers]
        return layers[0] if len(layers) == 1 else torch.cat(layers, dim=1)

    def _mask(self, layer: Node) -> Tensor:
        if layer.view == CLASSES:
            return self._of_class(layer)
        kind = BANK if layer.view == BANK else ""
        if kind not in self._positives:
            self._positives[kind] = self._in_bank(layer) if kind else self._in_batch()
        mask = self._positives[kind]
        if kind and mask.shape[1] != len(self.units[layer]):
            raise RecipeError(f"node {layer} has {len(self.units[layer])} rows, its keys are {mask.shape[1]}.")
        return mask

    def _in_batch(self) -> Tensor:
        """The diagonal, and rows that agree in any column of the keys."""
        everyone = torch.arange(self.split.total, device=next(iter(self.units.values())).device)
        same = everyone[self.split.own][self.part][:, None] == everyone
        if self.keys is None or self.all_keys is None:
            return same
        return same | agreeing(self.keys[self.part], self.all_keys)

    def _in_bank(self, layer: Node) -> Tensor:
        if self.keys is None or self.bank_keys is None:
            return torch.zeros(self.count, len(self.units[layer]), dtype=torch.bool, device=self.units[layer].device)
        return agreeing(self.keys[self.part], self.bank_keys)

    def _of_class(self, layer: Node) -> Tensor:
        """Each row's own class."""
        classes = len(self.units[layer])
        if self.labels is None or not bool(((self.labels >= 0) & (self.labels < classes)).all()):
            raise RecipeError(
                f"node {layer} has {classes} rows, one per class: expected labels from 0 to {classes - 1} for all rows."
            )
        return self.labels[self.part, None] == torch.arange(classes, device=self.labels.device)


def by_node(embeddings: Embeddings) -> dict[Node, Tensor]:
    """The same embeddings with every spelling read into a node."""
    return {node if isinstance(node, Node) else Node.parse(node): rows for node, rows in embeddings.items()}


def checked(rows: Iterable[tuple[Node, Tensor, int]]) -> dict[Node, Tensor]:
    """Unit rows of each node, after checking that they are ``[B, width]`` with one B for all but banks.

    Logits stay as they are, of any width.
    """
    units: dict[Node, Tensor] = {}
    before: Tensor | None = None
    for node, matrix, width in rows:
        logits = node.view == LOGITS
        if matrix.ndim != 2 or (matrix.shape[1] != width and not logits):
            raise RecipeError(f"node {node}: expected shape [B, {width}], found {list(matrix.shape)}.")
        if not len(matrix):
            raise RecipeError(f"node {node} has no rows: expected at least one.")
        if not node.is_bank:
            before = matrix if before is None else before
            if len(matrix) != len(before):
                raise RecipeError(
                    f"node {node} has {len(matrix)} rows, another node has {len(before)}: all need one row per sample."
                )
        units[node] = _lifted(matrix) if logits else unit(matrix)
    kinds = {matrix.dtype for matrix in units.values()}
    return units if len(kinds) == 1 else {node: matrix.double() for node, matrix in units.items()}


def unit(rows: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Unit rows; half precision is lifted to float32 first, double stays double."""
    return F.normalize(_lifted(rows), dim=1)


def _lifted(rows: Tensor) -> Tensor:
    return rows if rows.dtype == torch.float64 else rows.float()


def as_keys(groups: Tensor, count: int) -> Int[Tensor, "b K"]:
    """Group keys as a matrix, after checking that they are integers, one row of them per sample."""
    if groups.dtype.is_floating_point or groups.dtype == torch.bool or groups.ndim > 2:
        raise RecipeError(
            f"positives: expected integer keys of shape [B] or [B, K], rows that agree being positives of each other, "
            f"found {groups.dtype} {list(groups.shape)}."
        )
    if len(groups) != count:
        raise RecipeError(f"positives has {len(groups)} rows, the embeddings have {count}: expected one key per row.")
    return groups if groups.ndim == 2 else groups[:, None]


def agreeing(keys: Int[Tensor, "b K"], others: Int[Tensor, "N K"]) -> Bool[Tensor, "b N"]:
    """Which rows agree in any column; a negative key belongs to no group."""
    same = torch.zeros(len(keys), len(others), dtype=torch.bool, device=keys.device)
    for mine, theirs in zip(keys.T, others.T, strict=True):
        same |= (mine[:, None] == theirs[None, :]) & (mine >= 0)[:, None]
    return same
