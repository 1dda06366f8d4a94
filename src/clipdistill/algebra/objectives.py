"""The objectives: what a row of similarities, or a pair of rows, is asked to be.

Legend: ``B`` rows, ``N`` candidates, ``D`` width. Logits are ``scale * similarity``. Every function returns the
mean over rows, a scalar ``[]``.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Scalar = Float[Tensor, ""]


def infonce(logits: Float[Tensor, "B N"], positives: Bool[Tensor, "B N"]) -> Scalar:
    """InfoNCE with several positives: cross entropy against a target shared equally by each row's positives.

    With one positive per row this is the CLIP loss of one direction (METHODS section 0,
    ``-1/B sum_i log P_ii``); with several it is ``L_out`` of supervised contrastive learning (arXiv 2004.11362).
    """
    log_p = logits.log_softmax(dim=1)
    chosen = positives.to(logits.dtype)
    share = chosen / chosen.sum(dim=1, keepdim=True)
    return -(share * log_p).sum(dim=1).mean()


def sigmoid(logits: Float[Tensor, "B N"], positives: Bool[Tensor, "B N"]) -> Scalar:
    """The SigLIP loss: every pair is a yes-or-no question, summed over candidates, averaged over rows.

    Source: Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, equation 1.
    """
    sign = positives.to(logits.dtype) * 2 - 1
    return -F.logsigmoid(sign * logits).sum(dim=1).mean()


def relation_ce(logits: Float[Tensor, "B N"], target: Float[Tensor, "B N"]) -> Scalar:
    """Cross entropy of the row softmax against the target's row softmax: TinyCLIP's affinity mimicking."""
    return -(target.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()


def relation_kl(logits: Float[Tensor, "B N"], target: Float[Tensor, "B N"]) -> Scalar:
    """Kullback-Leibler divergence from the target's row softmax to the row softmax: CLIP-KD's CRD.

    ``KL(Q; Z) = CE(Q; Z) - H(Q)``: the same gradient as :func:`relation_ce` when the target is constant.
    """
    log_q = target.log_softmax(dim=1)
    return (log_q.exp() * (log_q - logits.log_softmax(dim=1))).sum(dim=1).mean()


def relation_mse(logits: Float[Tensor, "B N"], target: Float[Tensor, "B N"]) -> Scalar:
    """Mean squared difference over all ``B x N`` entries: ConaCLIP's similarity distillation (SD)."""
    return (logits - target).square().mean()


def feature_mse(rows: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Scalar:
    """Mean squared difference over all ``B x D`` entries: CLIP-KD's FD as published, whose weight depends on D."""
    return (rows - target).square().mean()


def feature_l2(rows: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Scalar:
    """Squared distance per row, ``D`` times :func:`feature_mse`: the same weight means the same at every width."""
    return (rows - target).square().sum(dim=1).mean()


def feature_cosine(rows: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Scalar:
    """One minus the cosine of unit rows: Chinese-CLIP's image-side distillation; half of :func:`feature_l2`."""
    return 1 - (rows * target).sum(dim=1).mean()


def stretch(rows: Float[Tensor, "B D"], width: int) -> Float[Tensor, "B W"]:
    """Resample rows to ``W`` channels, linearly: channel j is read at ``(j + 0.5) D / W - 0.5``, kept in [0, D - 1].

    Chinese-CLIP's rule for a student and a teacher of different width (cosineSimilarityLoss in its training code, which
    resizes the ``[B, D]`` matrix as a picture). It gives the order of channels a meaning that it does not have.
    """
    return F.interpolate(rows[:, None, :], size=width, mode="linear", align_corners=False)[:, 0]


def contrast_gradients(
    anchor: Float[Tensor, "B D"],
    other: Float[Tensor, "N D"],
    scale: float | Tensor,
    positives: Bool[Tensor, "B N"],
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "N D"]]:
    """The gradients of :func:`infonce` with respect to both ends, in closed form.

    ``dL/danchor = (g/B)(P - Q) other`` and ``dL/dother = (g/B)(P - Q)^T anchor``, with ``P`` the row softmax of
    ``g anchor other^T`` and ``Q`` the target. Rows are free variables: the Jacobian of normalising is left out.
    Source: CLIP-KD (arXiv 2307.12732), section 3.3. The published code divides by the logit scale ``g`` instead.
    """
    chosen = positives.to(anchor.dtype)
    share = chosen / chosen.sum(dim=1, keepdim=True)
    error = (scale * anchor @ other.T).softmax(dim=1) - share
    return scale * error @ other / len(anchor), scale * error.T @ anchor / len(anchor)


CONTRAST = {"softmax": infonce, "sigmoid": sigmoid}
RELATION = {"ce": relation_ce, "kl": relation_kl, "mse": relation_mse}
FEATURE = {"mse": feature_mse, "l2": feature_l2, "cosine": feature_cosine}
