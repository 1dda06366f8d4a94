"""How Chinese-CLIP names and arranges its weights, and how transformers' ChineseCLIPModel does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from clipdistill.errors import ModelError

#: Beginnings of names, theirs and ours.
_NAMES = (
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("visual.proj", "visual_projection.weight"),
    ("text_projection", "text_projection.weight"),
    ("bert.", "text_model."),
)
#: Parts of names within a block of the image tower.
_IN_BLOCK = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)
#: Flash attention's names in the blocks of the two towers, and the usual ones.
_FLASH = (
    (".attn.Wqkv.weight", ".attn.in_proj_weight"),
    (".attn.Wqkv.bias", ".attn.in_proj_bias"),
    (".attention.self.out_proj.", ".attention.output.dense."),
)
_TRANSPOSED = {"visual_projection.weight", "text_projection.weight"}


def plain_names(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the weights under the names that Chinese-CLIP gives them on one device without flash attention.

    Wrappers' prefixes and what takes no part in an embedding are dropped. Raises :class:`ModelError` for a ResNet.
    """
    plain: dict[str, Tensor] = {}
    for name, value in weights.items():
        for prefix in ("module.", "clip_model."):
            name = name.removeprefix(prefix)
        for flash, usual in _FLASH:
            name = name.replace(flash, usual)
        if name.startswith("bert.pooler.") or name == "bert.embeddings.position_ids":
            continue
        if ".attention.self.Wqkv." in name:
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                plain[name.replace("Wqkv", part)] = rows
        else:
            plain[name] = value
    if any(name.startswith(("visual.layer1.", "visual.attnpool.")) for name in plain):
        raise ModelError(
            f"{path} has a ResNet as image tower (RN50), which transformers' Chinese-CLIP does not have. "
            "Expected ViT-B-16, ViT-L-14, ViT-L-14-336 or ViT-H-14."
        )
    return plain


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, split and transpose Chinese-CLIP's weights to those of a ChineseCLIPModel."""
    converted = {}
    for theirs, value in weights.items():
        name = _renamed(theirs)
        if ".attn.in_proj_" in name:
            for letter, rows in zip("qkv", value.chunk(3), strict=True):
                converted[name.replace(".attn.in_proj_", f".self_attn.{letter}_proj.")] = rows
        else:
            converted[name] = value.T.contiguous() if name in _TRANSPOSED else value
    return converted


def to_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename, join and transpose a ChineseCLIPModel's state dict to Chinese-CLIP's: :func:`to_transformers` undone."""
    converted = {}
    for name, value in with_joined_attention(weights):
        converted[original_name(name)] = value.T.contiguous() if name in _TRANSPOSED else value
    return converted


def with_joined_attention(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield a state dict of transformers with queries, keys and values as one tensor, under the queries' name."""
    for name, value in weights.items():
        if ".self_attn.q_proj." in name:
            yield name, torch.cat([weights[name.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"])
        elif ".self_attn.k_proj." not in name and ".self_attn.v_proj." not in name:
            yield name, value


def original_name(name: str) -> str:
    """Transformers' name to Chinese-CLIP's; those of queries, keys and values to that of the tensor that joins them."""
    if name.startswith("vision_model."):
        for letter in "qkv":
            name = name.replace(f".self_attn.{letter}_proj.", ".attn.in_proj_")
        for theirs, ours in _IN_BLOCK:
            name = name.replace(ours, theirs)
    for theirs, ours in _NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _renamed(name: str) -> str:
    """Chinese-CLIP's name to transformers' name."""
    for theirs, ours in _NAMES:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    if name.startswith("vision_model."):
        for theirs, ours in _IN_BLOCK:
            name = name.replace(theirs, ours)
    return name
