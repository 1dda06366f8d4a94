"""Towers to be timed, by name: every preset, and a CLIP of the size of ViT-L/14; with random weights.

A batch holds one picture or one caption, as the towers take them. A vocabulary's size is no matter for time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clipdistill.errors import ConfigError, did_you_mean
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.presets import PRESETS, StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import SMALLEST_VOCABULARY, train_tokenizer

#: Sizes of OpenAI's ViT-L/14, which is no preset.
_LARGE = {
    **{"preset": "vit-base-16", "patch_size": 14, "width": 1024, "layers": 24, "heads": 16},
    **{"text_width": 768, "text_heads": 12, "embed_dim": 768},
}
SPECS: Mapping[str, Mapping[str, Any]] = {**{name: {"preset": name} for name in PRESETS}, "clip-l-14": _LARGE}


def check_names(names: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for a name that is none of :data:`SPECS`."""
    for name in names:
        if name not in SPECS:
            raise ConfigError(f"there are no towers '{name}'.{did_you_mean(name, SPECS)}")


def make(name: str) -> DualEncoder:
    """Build a pair of towers with random weights and the smallest vocabulary, in evaluation mode.

    Raises :class:`ModelError` or :class:`ConfigError` where a library that it needs is not there.
    """
    spec = StudentSpec(**SPECS[name])
    shape = spec.shape()
    tokenizer = train_tokenizer([], SMALLEST_VOCABULARY, shape.context_length) if shape.has_text else None
    encoder = build(spec, tokenizer, classes=() if shape.has_text else ("a", "b"))
    encoder.module.eval().requires_grad_(False)
    return encoder


def picture(encoder: DualEncoder, rows: int = 1) -> dict[str, Tensor]:
    """Pictures as the image tower takes them: ``{"pixel_values": [rows, 3, h, w]}``, drawn at random."""
    assert encoder.transform is not None
    height, width = encoder.transform.size
    return {"pixel_values": torch.rand(rows, 3, height, width, generator=torch.Generator().manual_seed(0))}


def caption(encoder: DualEncoder, length: int, rows: int = 1) -> dict[str, Tensor]:
    """Captions of ``length`` tokens, the last of which ends them: ``{"input_ids": [rows, length], ...}``."""
    tokens = encoder.tokenize(["a " * length] * rows)
    return {name: torch.cat([ids[:, : length - 1], ids[:, -1:]], dim=1) for name, ids in tokens.items()}


def longest(encoder: DualEncoder) -> int:
    """How many tokens a caption may have; 0 for a model of pictures alone."""
    return int(encoder.tokenizer.model_max_length) if "T" in encoder.sides else 0
