"""A Matryoshka student at one of its widths: an ordinary model whose projections have fewer outputs."""

from __future__ import annotations

import copy

from torch import nn

from clipdistill.errors import ModelError
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.huggingface import HuggingFaceEncoder

_PROJECTIONS = ("visual_projection", "text_projection")


def narrow(encoder: DualEncoder, width: int) -> HuggingFaceEncoder:
    """Return a copy of a model that gives the first ``width`` channels of its rows; the model stays as it is.

    Raises:
        ModelError: the width is not below the model's, or its towers meet without projections (SigLIP).
    """
    module = getattr(encoder, "module", None)
    if not isinstance(encoder, HuggingFaceEncoder) or not all(hasattr(module, name) for name in _PROJECTIONS):
        raise ModelError(f"{encoder.uri} cannot be cut to another width: its towers do not end in projections.")
    if not 0 < width < encoder.width:
        raise ModelError(f"{encoder.uri} is {encoder.width} wide; it can be cut to less, found {width}.")
    small = copy.deepcopy(encoder.module)
    for name in _PROJECTIONS:
        whole: nn.Linear = getattr(small, name)
        part = nn.Linear(whole.in_features, width, bias=False, dtype=whole.weight.dtype, device=whole.weight.device)
        part.weight.data.copy_(whole.weight.data[:width])
        setattr(small, name, part)
    config = small.config
    for section in (config, config.text_config, config.vision_config):  # type: ignore[union-attr]
        if hasattr(section, "projection_dim"):
            section.projection_dim = width
    uri = f"{encoder.uri} @{width}"
    return HuggingFaceEncoder(uri, small.eval(), copy.deepcopy(encoder.tokenizer), copy.deepcopy(encoder.processor))
