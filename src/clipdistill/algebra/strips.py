"""Loss memory linear in the batch: rows of similarities in strips, each with its gradient before the next.

A strip is some of this rank's rows against all candidates, so every row's softmax is whole in it, and any objective
that has one value per row can be taken strip by strip. No matrix of all rows by all candidates is ever stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

Made = TypeVar("Made")

#: A strip has about so many numbers, 8 MB in float32: a recipe holds a dozen of such pieces at once; and no
#: fewer rows than products of matrices want.
STRIP, LOWEST = 1 << 21, 128
#: Matrices of up to so many numbers are stored whole: larger ones take longer so, for they leave the cache.
WHOLE = STRIP


def is_small(rows: int, candidates: int) -> bool:
    """Whether the matrix of ``rows`` rows against ``candidates`` is stored whole."""
    return rows * candidates <= WHOLE


def cut(rows: int, candidates: int) -> list[slice]:
    """Cut ``rows`` rows against ``candidates`` into strips; one where the whole matrix is small."""
    height = rows if is_small(rows, candidates) else max(LOWEST, STRIP // candidates)
    return [slice(start, min(start + height, rows)) for start in range(0, rows, height)]


def recomputed(function: Callable[..., Made], *arguments: object) -> Made:
    """Call a function now, and again for its gradient: what is computed inside is not kept in between."""
    made: Made = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return made


#: The values ``[terms]`` of some of the rows: which ones, their anchors, and what all strips read.
Strip = Callable[[slice, list[Tensor], list[Tensor]], Tensor]


def by_strips(
    strip: Strip,
    parts: list[slice],
    weights: Tensor,
    anchors: Sequence[Tensor],
    candidates: Sequence[Tensor],
    numbers: Sequence[Tensor],
) -> Tensor:
    """Sum a function of strips, and take with it the gradient of what is found times ``weights``, ``[terms]``.

    A backward pass that asks for another sum computes the strips anew. ``anchors`` are cut as the rows are,
    ``candidates`` are met whole by every strip, ``numbers`` is whatever else takes a gradient.
    """
    inputs = (*anchors, *candidates, *numbers)
    if not torch.is_grad_enabled() or not any(given.requires_grad for given in inputs):
        made = [strip(part, [rows[part] for rows in anchors], list(candidates)) for part in parts]
        return torch.stack(made).sum(dim=0)
    found: Tensor = _Summed.apply(strip, parts, weights, (len(anchors), len(candidates)), *inputs)  # type: ignore[no-untyped-call]
    return found


class _Summed(Function):
    @staticmethod
    def forward(
        ctx: Any, strip: Strip, parts: list[slice], weights: Tensor, counts: tuple[int, int], *inputs: Tensor
    ) -> Tensor:
        values, gradients = _with_gradients(strip, parts, weights, counts, inputs)
        ctx.strip, ctx.parts, ctx.counts = strip, parts, counts
        ctx.save_for_backward(weights, *inputs, *gradients)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, asked: Tensor) -> Any:
        weights, *saved = ctx.saved_tensors
        inputs, gradients = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        times = (asked @ weights) / (weights @ weights)
        if torch.allclose(asked, times * weights, rtol=1e-6, atol=0):
            found = [None if gradient is None else times * gradient for gradient in gradients]
        else:
            _, found = _with_gradients(ctx.strip, ctx.parts, asked, ctx.counts, inputs)
        return None, None, None, None, *found


def _with_gradients(
    strip: Strip, parts: list[slice], weights: Tensor, counts: tuple[int, int], inputs: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of the strips' values, ``[terms]``, and what it gives each input times ``weights``."""
    wanted = [place for place, given in enumerate(inputs) if given.requires_grad]
    kept = dict[int, Tensor]()
    cut, met = counts[0], sum(counts)
    total = torch.zeros_like(weights)
    for part in parts:
        # Detached, what a strip gives its candidates ends with them and is passed on once, for all strips.
        whole = [given[part] if place < cut else given for place, given in enumerate(inputs[:met])]
        leaves = [rows.detach().requires_grad_(place in wanted) for place, rows in enumerate(whole)]
        with torch.enable_grad():
            values = strip(part, leaves[:cut], leaves[cut:])
            value = values @ weights
        total += values.detach()
        if not value.requires_grad:
            continue
        ends = [*leaves, *inputs[met:]]
        found = torch.autograd.grad(value, [ends[place] for place in wanted], allow_unused=True)
        for place, gradient in zip(wanted, found, strict=True):
            if gradient is not None:
                if place not in kept:  # what no strip has used gets no gradient, not one of zeros
                    kept[place] = torch.zeros_like(inputs[place])
                (kept[place][part] if place < cut else kept[place]).add_(gradient)
    return total, [kept.get(place) for place in range(len(inputs))]
