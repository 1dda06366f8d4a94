"""The objectives: what a row of similarities, or a pair of rows, is asked to be.

Legend: ``B`` rows, ``N`` candidates, ``D`` width, ``C`` classes. Logits are ``scale * similarity``, ``log P`` is the
logarithm of their softmax over the candidates, ``log Q`` that of a target's. Every function returns one value per row,
``[B]``; a term is their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

PerRow = Float[Tensor, "B"]


def infonce(log_p: Float[Tensor, "B N"], target: Float[Tensor, "B N"]) -> PerRow:
    """InfoNCE with several positives: cross entropy against a target shared equally by each row's positives.

    With one positive per row this is the CLIP loss of one direction (arXiv 2103.00020,
    ``-1/B sum_i log P_ii``); with several it is ``L_out`` of supervised contrastive learning (arXiv 2004.11362).
    """
    return -(target * log_p).sum(dim=1)


def sigmoid(logits: Float[Tensor, "B N"], positives: Bool[Tensor, "B N"]) -> PerRow:
    """The SigLIP loss: every pair is a yes-or-no question, summed over candidates.

    Source: Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, equation 1.
    """
    sign = positives.to(logits.dtype) * 2 - 1
    return -F.logsigmoid(sign * logits).sum(dim=1)


def relation_ce(log_p: Float[Tensor, "B N"], log_qs: Sequence[Float[Tensor, "B N"]]) -> PerRow:
    """Cross entropy of the row softmax against the targets' row softmaxes, averaged.

    With one target TinyCLIP's affinity mimicking (arXiv 2309.12314); with several MobileCLIP's ensemble
    (arXiv 2311.17049), whose softmaxes are averaged and not its similarities.
    """
    return -(_log_mean(log_qs).exp() * log_p).sum(dim=1)


def relation_kl(log_p: Float[Tensor, "B N"], log_qs: Sequence[Float[Tensor, "B N"]]) -> PerRow:
    """Kullback-Leibler divergence from the targets' mean row softmax to the row softmax: CLIP-KD's CRD.

    ``KL(Q; P) = CE(Q; P) - H(Q)``: the same gradient as :func:`relation_ce` when the target is constant.
    """
    log_q = _log_mean(log_qs)
    return (log_q.exp() * (log_q - log_p)).sum(dim=1)


def relation_mse(logits: Float[Tensor, "B N"], targets: Sequence[Float[Tensor, "B N"]]) -> PerRow:
    """Mean squared difference over the candidates: ConaCLIP's similarity distillation (SD)."""
    return (logits - _mean(targets)).square().mean(dim=1)


def relation_sigmoid(logits: Float[Tensor, "B N"], targets: Sequence[Float[Tensor, "B N"]]) -> PerRow:
    """Every pair's yes-or-no answer made like the targets' mean answer, summed over candidates.

    The soft form of :func:`sigmoid`: ``-p log s(z) - (1 - p) log s(-z)`` with ``p`` the mean of the targets' sigmoids.
    """
    p = _answers(targets)
    return -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits)).sum(dim=1)


def relation_sigmoid_reference(logits: Float[Tensor, "B N"], targets: Sequence[Float[Tensor, "B N"]]) -> PerRow:
    """What MobileCLIP2's code computes instead of :func:`relation_sigmoid`: ``-log s((2p - 1) z)``."""
    return -F.logsigmoid((2 * _answers(targets) - 1) * logits).sum(dim=1)


def _answers(targets: Sequence[Tensor]) -> Tensor:
    return _mean([target.sigmoid() for target in targets])


def _mean(matrices: Sequence[Tensor]) -> Tensor:
    """The mean of matrices; the only one as it is, which spares copies of the largest tensors there are."""
    return matrices[0] if len(matrices) == 1 else torch.stack(list(matrices)).mean(dim=0)


def _log_mean(logs: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of what logarithms are given of."""
    return logs[0] if len(logs) == 1 else torch.stack(list(logs)).logsumexp(dim=0) - math.log(len(logs))


def feature_mse(rows: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> PerRow:
    """Mean squared difference over the channels: CLIP-KD's FD as published, whose weight depends on D."""
    return (rows - target).square().mean(dim=1)


def feature_l2(rows: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> PerRow:
    """Squared distance, ``D`` times :func:`feature_mse`: the same weight means the same at every width."""
    return (rows - target).square().sum(dim=1)


def feature_cosine(rows: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> PerRow:
    """One minus the cosine of unit rows: Chinese-CLIP's image-side distillation; half of :func:`feature_l2`."""
    return 1 - (rows * target).sum(dim=1)


def classify(logits: Float[Tensor, "B C"], labels: Int[Tensor, "B"]) -> PerRow:
    """Cross entropy of a classifier's logits against labels."""
    return F.cross_entropy(logits, labels, reduction="none")


def classify_like(logits: Float[Tensor, "B C"], target: Float[Tensor, "B C"]) -> PerRow:
    """Cross entropy of a classifier's logits against another classifier's: Hinton's distillation (arXiv 1503.02531)."""
    return -(target.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)


def stretch(rows: Float[Tensor, "B D"], width: int) -> Float[Tensor, "B W"]:
    """Resample rows to ``W`` channels, linearly: channel j is read at ``(j + 0.5) D / W - 0.5``, kept in [0, D - 1].

    Chinese-CLIP's rule for a student and a teacher of different width (cosineSimilarityLoss in its training code, which
    resizes the ``[B, D]`` matrix as a picture). It gives the order of channels a meaning that it does not have.
    """
    return F.interpolate(rows[:, None, :], size=width, mode="linear", align_corners=False)[:, 0]


def shared(positives: Bool[Tensor, "B N"], like: Float[Tensor, "..."]) -> Float[Tensor, "B N"]:
    """The target of InfoNCE: each row's mass, shared equally by its positives."""
    chosen = positives.to(like.dtype)
    return chosen / chosen.sum(dim=1, keepdim=True)


def contrast_gradients(
    anchor: Float[Tensor, "B D"],
    other: Float[Tensor, "N D"],
    scale: float | Tensor,
    positives: Bool[Tensor, "B N"],
    count: int | None = None,
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "N D"]]:
    """The gradients of the mean of :func:`infonce` with respect to both ends, in closed form.

    ``dL/danchor = (g/B)(P - Q) other`` and ``dL/dother = (g/B)(P - Q)^T anchor``, with ``P`` the row softmax of
    ``g anchor other^T`` and ``Q`` the target. Rows are free variables: the Jacobian of normalising is left out.
    Where the anchors are a part of a batch of ``count`` rows, the second is that part's summand.
    Source: CLIP-KD (arXiv 2307.12732), section 3.3. The published code divides by the logit scale ``g`` instead.
    """
    error = (scale * anchor @ other.T).softmax(dim=1) - shared(positives, anchor)
    count = count or len(anchor)
    return scale * error @ other / count, scale * error.T @ anchor / count


RELATION = {"ce": relation_ce, "kl": relation_kl, "mse": relation_mse, "sigmoid": relation_sigmoid}
FEATURE = {"mse": feature_mse, "l2": feature_l2, "cosine": feature_cosine}
