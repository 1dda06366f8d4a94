"""One tower kept whole: a student takes it from a bigger model, and its other tower is new.

Frozen, the kept tower is the fixed side of the joint space that the new one is tuned to (LiT, arXiv 2111.07991).
"""

from __future__ import annotations

import copy
from typing import Any, Literal

from transformers import (
    BertConfig,
    ChineseCLIPTextConfig,
    ChineseCLIPVisionConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
    ViTConfig,
)

from clipdistill.errors import ConfigError
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.presets import Preset

Side = Literal["image", "text"]

#: What a new tower is made of, by the family of the model that the other one is kept from.
_NEW: dict[str, dict[Side, Any]] = {
    "clip": {"image": CLIPVisionConfig, "text": CLIPTextConfig},
    "chinese_clip": {"image": ChineseCLIPVisionConfig, "text": ChineseCLIPTextConfig},
    "siglip": {"image": SiglipVisionConfig, "text": SiglipTextConfig},
    "vision-text-dual-encoder": {"image": ViTConfig, "text": BertConfig},
}
_CONFIG: dict[Side, str] = {"image": "vision_config", "text": "text_config"}
_TENSORS: dict[Side, tuple[str, ...]] = {
    "image": ("vision_model.", "visual_projection."),
    "text": ("text_model.", "text_projection."),
}


def config_beside(donor: HuggingFaceEncoder, kept: Side, shape: Preset) -> Any:
    """Return the configuration of a student with the donor's ``kept`` tower and a new other one of ``shape``'s sizes.

    The new tower ends at the donor's joint width. Raises :class:`ConfigError` where the donor's architecture does not
    allow that.
    """
    config = copy.deepcopy(donor.module.config)
    family = str(config.model_type)  # type: ignore[union-attr]
    if family not in _NEW:
        raise ConfigError(
            f"student.keep={kept}: a student cannot be built around a tower of {donor.uri}, which is of kind {family}; "
            f"expected one of {', '.join(_NEW)}. Name another model as student.inherit_from."
        )
    if kept == "text":
        _check_siglip(family, donor, shape)
        vision = _sizes(shape.width, shape.layers, shape.heads)
        vision |= {"image_size": shape.image_size, "patch_size": shape.patch_size}
        config.vision_config = _new(_NEW[family]["image"], vision, donor.width)  # type: ignore[union-attr]
    else:
        text = _sizes(shape.text_width, shape.text_layers, shape.text_heads)
        text |= {"max_position_embeddings": shape.context_length}
        config.text_config = _new(_NEW[family]["text"], text, donor.width)  # type: ignore[union-attr]
    return config


def _check_siglip(family: str, donor: HuggingFaceEncoder, shape: Preset) -> None:
    if family == "siglip" and shape.width != donor.width:
        raise ConfigError(
            f"student.keep=text: SigLIP's image tower ends without a projection, so it must be as wide as the joint "
            f"space of {donor.uri}, {donor.width}; student.width is {shape.width}. Set student.width={donor.width}."
        )


def _sizes(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
    }


def _new(kind: Any, sizes: dict[str, Any], width: int) -> Any:
    """Make a tower's configuration; where the family says the joint width in it, that is ``width``."""
    config = kind(**sizes)
    for name in ("projection_dim", "projection_size"):
        if hasattr(config, name):
            setattr(config, name, width)
    return config


def copy_tower(student: HuggingFaceEncoder, donor: HuggingFaceEncoder, kept: Side) -> None:
    """Give a student made by :func:`config_beside` the donor's weights of the kept tower and its projection."""
    ours, theirs = student.module, donor.module
    ours.load_state_dict(
        {name: value for name, value in theirs.state_dict().items() if name.startswith(_TENSORS[kept])}, strict=False
    )
    # Other attention code would move the last bits.
    tower, original = (getattr(module.config, _CONFIG[kept]) for module in (ours, theirs))
    tower._attn_implementation = original._attn_implementation
