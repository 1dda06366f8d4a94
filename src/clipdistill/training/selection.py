"""Choosing what to learn from: the pairs of a super-batch that are hard for the student and easy for a reference.

Legend: ``N`` pairs in the super-batch, ``n`` of them already chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clipdistill.errors import ConfigError, TrainingError, did_you_mean

Metric = Literal["softmax", "sigmoid"]


@torch.no_grad()
def select(
    student: Float[Tensor, "N N"],
    reference: Float[Tensor, "N N"] | None,
    size: int,
    rng: np.random.Generator,
    blocks: int = 16,
    metric: Metric = "softmax",
) -> NDArray[np.int64]:
    """Choose ``size`` distinct pairs of a super-batch jointly, and give their positions in the order drawn.

    Joint example selection (JEST, arXiv 2406.17711), which ACID (arXiv 2411.18674) uses with a larger teacher as the
    reference: ``blocks`` blocks of nearly equal size are drawn one after another. Within a block rows are drawn without
    replacement, with probability proportional to ``exp(learnability)`` given the rows of the blocks before; see
    :func:`learnability`. So the chosen pairs are hard together, as each other's negatives. Super-batches of five times
    the batch (a filtering ratio of 0.8) are what both papers mostly use.

    The authors published no code. With ``sigmoid`` the rule is the paper's; the softmax form of a conditional loss, and
    the score of its first block, are chosen here.

    Args:
        student: the student's logits, image by text, as its loss takes them: scale and bias included.
        reference: the reference's logits for the same pairs, in the same sense; None picks what is merely hard for the
            student, noise included.
        rng: the same state gives the same pairs.
        blocks: more blocks follow the dependence between pairs more closely, and cost more; at most one per row.

    Raises:
        ConfigError: a size, number of blocks or metric that makes no sense.
        TrainingError: logits of unequal shapes, or that are not finite.
    """
    _check(student, reference, size, blocks, metric)
    chosen = np.empty(0, np.int64)
    for block in np.array_split(np.arange(size), min(blocks, size)):
        score = learnability(student, reference, chosen.tolist(), metric).double().cpu().numpy()
        if not np.isfinite(score).all():
            raise TrainingError(f"pair {int(np.isfinite(score).argmin())} of the super-batch has logits not finite.")
        # The largest of log-weights plus Gumbel noise are a draw without replacement, and no exponential overflows.
        score += rng.gumbel(size=len(score))
        score[chosen] = -np.inf
        chosen = np.concatenate([chosen, np.argsort(-score, kind="stable")[: len(block)]])
    return chosen


def learnability(
    student: Float[Tensor, "N N"],
    reference: Float[Tensor, "N N"] | None,
    chosen: Sequence[int],
    metric: Metric = "softmax",
) -> Float[Tensor, "N"]:
    """What is left to learn of every pair: student loss minus reference loss, the ``chosen`` pairs as negatives.

    ``softmax``: the two-way InfoNCE loss that pair i has in a batch of itself and the chosen; while none is chosen,
    in the whole super-batch, because a batch of one has no loss::

        loss_i = (log sum_j exp z_ij + log sum_j exp z_ji) / 2 - z_ii,    j over chosen and i

    ``sigmoid``: what pair i adds to the summed loss of the chosen::

        loss_i = softplus(-z_ii) + sum_j (softplus z_ij + softplus z_ji),    j over chosen but i

    Without a reference it is the student's loss alone.
    """
    rows = torch.as_tensor(list(chosen), dtype=torch.int64, device=student.device)
    losses = _LOSSES[metric]
    return losses(student, rows) if reference is None else losses(student, rows) - losses(reference, rows)


def _softmax_losses(logits: Tensor, chosen: Tensor) -> Tensor:
    own = logits.diagonal().float()
    others = logits.float().clone().fill_diagonal_(-torch.inf)
    if len(chosen):
        to_texts, to_images = others[:, chosen], others[chosen]
    else:
        to_texts, to_images = others, others
    return (torch.logaddexp(to_texts.logsumexp(1), own) + torch.logaddexp(to_images.logsumexp(0), own)) / 2 - own


def _sigmoid_losses(logits: Tensor, chosen: Tensor) -> Tensor:
    others = F.softplus(logits.float()).fill_diagonal_(0)
    return F.softplus(-logits.diagonal().float()) + others[:, chosen].sum(1) + others[chosen].sum(0)


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"softmax": _softmax_losses, "sigmoid": _sigmoid_losses}


def _check(student: Tensor, reference: Tensor | None, size: int, blocks: int, metric: str) -> None:
    if metric not in _LOSSES:
        raise ConfigError(f"selection knows no metric '{metric}'.{did_you_mean(metric, _LOSSES)}")
    if student.ndim != 2 or student.shape[0] != student.shape[1]:
        raise TrainingError(f"selection: expected the student's logits as [N, N], found {list(student.shape)}.")
    if reference is not None and reference.shape != student.shape:
        raise TrainingError(
            f"selection: the student's logits are {list(student.shape)}, the reference's {list(reference.shape)}: "
            f"both must score the same pairs."
        )
    if not 1 <= size <= len(student):
        raise ConfigError(f"selection: cannot choose {size} of {len(student)} pairs: expected 1 to {len(student)}.")
    if blocks < 1:
        raise ConfigError(f"selection: {blocks} blocks: expected at least 1.")
