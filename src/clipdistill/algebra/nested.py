"""Matryoshka: a recipe at several widths of the student at once, so that its rows can be cut to any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clipdistill.algebra.graph import InteractionGraph, Losses
from clipdistill.algebra.nodes import LOGITS, STUDENT, Node
from clipdistill.algebra.recipe import Recipe
from clipdistill.algebra.rows import Embeddings, by_node
from clipdistill.errors import RecipeError


class NestedGraph(nn.Module):
    """Every term of a recipe on the first channels of the student's rows, for each of several widths.

    The total is the mean over the widths. Each width has adapters, scales and biases of its own; teachers keep their
    width. Terms at the full width carry their own name, those at width w ``name@w``. Source: Matryoshka Representation
    Learning, arXiv 2205.13147, equation 1, with equal weights.

    Args:
        recipe: what to compute.
        widths: joint width by model letter; the student's is the full one.
        nested: the narrower widths.

    Raises:
        RecipeError: a nested width is not below the student's, or occurs twice.
    """

    def __init__(self, recipe: Recipe, widths: Mapping[str, int], nested: Sequence[int]) -> None:
        super().__init__()
        full = widths[STUDENT]
        if len(set(nested)) < len(nested) or not all(0 < width < full for width in nested):
            raise RecipeError(
                f"nested widths {', '.join(map(str, nested))}: expected different widths below the student's, {full}."
            )
        self.recipe = recipe
        self.widths = [full, *sorted(nested, reverse=True)]
        self.graphs = nn.ModuleList(InteractionGraph(recipe, {**widths, STUDENT: width}) for width in self.widths)

    def forward(self, embeddings: Embeddings, *args: Any, **given: Any) -> Losses:
        """Compute every term at every width; arguments are those of :meth:`InteractionGraph.forward`."""
        rows = by_node(embeddings)
        found = {
            width: graph({node: _cut(node, matrix, width) for node, matrix in rows.items()}, *args, **given)
            for width, graph in zip(self.widths, self.graphs, strict=True)
        }
        terms = {
            name if width == self.widths[0] else f"{name}@{width}": value
            for width, losses in found.items()
            for name, value in losses.terms.items()
        }
        return Losses(torch.stack([losses.total for losses in found.values()]).mean(), terms)

    def clamp_(self) -> None:
        """Keep the learnable scales within bounds; see :meth:`InteractionGraph.clamp_`."""
        for graph in self.graphs:
            assert isinstance(graph, InteractionGraph)
            graph.clamp_()


def _cut(node: Node, rows: Tensor, width: int) -> Tensor:
    return rows[:, :width] if node.is_student and node.view != LOGITS else rows
