"""A student's picture with most of it hidden: patches dropped from a transformer, or greyed out for any other tower.

Masking as in MAE (arXiv 2111.06377): positions are added before patches are dropped, the class token stays.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdistill.models.encoder import DualEncoder, Inputs

#: Squares of so many pixels are greyed out where a tower has no patches to drop.
GREY_PATCH = 16


def masked_images(encoder: DualEncoder, pixels: Inputs, ratio: float) -> Tensor:
    """Embed pictures of which ``ratio`` of the patches, drawn anew for each picture, are hidden: ``[B, D]``.

    A vision transformer sees fewer tokens; SigLIP 2 has them masked in its attention; a convolutional tower sees the
    mean colour there. The draw comes from torch's global random state, which checkpoints keep.
    """
    if "pixel_attention_mask" in pixels:
        return encoder.images({**pixels, "pixel_attention_mask": _hide(pixels["pixel_attention_mask"], ratio)})
    tokens = encoder.patch_tokens
    if tokens is None:
        return encoder.images({**pixels, "pixel_values": _grey(pixels["pixel_values"], ratio)})

    def drop(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        height, width = pixels["pixel_values"].shape[2:]
        tokens = output.shape[1]  # a grid of the picture's shape, and the few that stand before it
        patches = math.isqrt(tokens * height // width) * math.isqrt(tokens * width // height)
        return _drop(output, tokens - patches, ratio)

    hook = tokens.register_forward_hook(drop)
    try:
        return encoder.images(pixels)
    finally:
        hook.remove()


def _drop(tokens: Tensor, prefix: int, ratio: float) -> Tensor:
    """Keep the ``prefix`` leading tokens and a random share of the others: ``[B, L, D] -> [B, l, D]``."""
    kept = _draw(tokens.shape[0], tokens.shape[1] - prefix, ratio).to(tokens.device) + prefix
    chosen = tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))
    return torch.cat([tokens[:, :prefix], chosen], dim=1)


def _hide(mask: Tensor, ratio: float) -> Tensor:
    hidden = torch.zeros_like(mask).scatter(1, _draw(mask.shape[0], mask.shape[1], ratio).to(mask.device), 1) * mask
    # A picture with few patches may lose all of them: it keeps its first.
    hidden[:, 0] = torch.where(hidden.sum(dim=1) > 0, hidden[:, 0], 1)
    return hidden


def _grey(pixels: Tensor, ratio: float) -> Tensor:
    """Set squares to zero, which is the mean colour after normalising: ``[B, 3, h, w]``."""
    rows, columns = (math.ceil(side / GREY_PATCH) for side in pixels.shape[2:])
    shown = torch.zeros(len(pixels), rows * columns).scatter(1, _draw(len(pixels), rows * columns, ratio), 1.0)
    grid = F.interpolate(shown.view(-1, 1, rows, columns), scale_factor=GREY_PATCH, mode="nearest")
    return pixels * grid[:, :, : pixels.shape[2], : pixels.shape[3]].to(pixels)


def _draw(count: int, patches: int, ratio: float) -> Tensor:
    """Which patches each picture keeps, in their order: ``int64 [count, kept]``."""
    kept = max(1, round(patches * (1 - ratio)))
    return torch.rand(count, patches).argsort(dim=1)[:, :kept].sort(dim=1).values
