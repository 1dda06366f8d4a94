"""Weights found by gradient norm: what a number such as CLIP-KD's 1e8 stands for, at every batch size and width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clipdistill.algebra.gather import Split, summed
from clipdistill.algebra.term import GradNorm, Term
from clipdistill.errors import RecipeError


def measure(terms: Sequence[Term], values: Mapping[str, Tensor], leaves: list[Tensor], split: Split) -> list[float]:
    """The weight of every term of ``terms`` whose weight is a :class:`GradNorm`, in their order.

    ``leaves`` are the student's unit rows, ``values`` each term's value.

    Raises:
        RecipeError: there is no gradient to measure.
    """
    measured = [term for term in terms if isinstance(term.weight, GradNorm)]
    if not leaves:
        raise RecipeError("grad_norm weights are found at the first step of training; nothing here takes a gradient.")
    fixed = [term.weight * values[term.name] for term in terms if not isinstance(term.weight, GradNorm)]
    if not fixed:
        raise RecipeError("a grad_norm weight is a share of the terms with a number as weight, and there is none here.")
    known = _norm(torch.stack(fixed).sum(), leaves, split)
    weights = []
    for term in measured:
        own = _norm(values[term.name], leaves, split)
        if not own > 0:
            raise RecipeError(f"term {term} has no gradient; give it a number as weight.")
        assert isinstance(term.weight, GradNorm)
        weights.append(term.weight.share * known / own)
    return weights


def _norm(value: Tensor, leaves: list[Tensor], split: Split) -> float:
    """The joint norm of a value's gradients with respect to ``leaves`` on all ranks."""
    gradients = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    squares = [gradient.square().sum() for gradient in gradients if gradient is not None]
    return math.sqrt(float(summed(torch.stack([*squares, value.new_zeros(())]).sum(), split)))
