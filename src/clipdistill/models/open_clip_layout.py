"""A CLIPModel of transformers written as a folder of open_clip: names, arrangement and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from clipdistill.data.views import Transform
from clipdistill.errors import ModelError
from clipdistill.models.bundle import save_bundle
from clipdistill.models.chinese_clip_layout import with_joined_attention
from clipdistill.models.hub import OPEN_CLIP_CONFIG
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.open_clip_origin import WEIGHTS
from clipdistill.models.vocabulary import write_tokenizer

#: Beginnings of names, those of transformers and those of open_clip.
_NAMES = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_projection.weight", "text_projection"),
)
#: Parts of names within a block.
_IN_BLOCK = (
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".self_attn.q_proj.", ".attn.in_proj_"),
)
_TRANSPOSED = {"visual.proj", "text_projection"}
_ACTIVATIONS = ("quick_gelu", "gelu")
_FILTERS = {Image.Resampling.BICUBIC.value: "bicubic", Image.Resampling.BILINEAR.value: "bilinear"}
_EPSILON = 1e-5


def save_open_clip(encoder: HuggingFaceEncoder, folder: str | Path, card: Mapping[str, Any] | None = None) -> None:
    """Write a student of the family ``clip`` as a folder that open_clip opens with ``local-dir:``, whole or not at all.

    Both towers give the same rows there, up to the last bits. Before its tokenizer open_clip cleans captions, which
    changes some: curly quotes and full-width punctuation become plain. ``card`` is that of
    :func:`bundle.save_bundle`. Raises :class:`ModelError` for a model that open_clip has no settings for.
    """
    if reasons := _inexpressible(encoder):
        raise ModelError(
            f"{encoder.uri} cannot be written for open_clip: {'; '.join(reasons)}. "
            "Use it with transformers: it is a standard model folder."
        )
    save_bundle(_Converted(encoder), Path(folder), {**(card or {}), "library": "open_clip"})


class _Converted:
    """An encoder whose files are open_clip's; see :class:`bundle.Saveable`."""

    classes: tuple[str, ...] = ()

    def __init__(self, encoder: HuggingFaceEncoder) -> None:
        self.encoder, self.uri, self.width = encoder, encoder.uri, encoder.width

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    def input_rules(self) -> dict[str, Any]:
        return self.encoder.input_rules()

    def write_files(self, folder: Path) -> None:
        described = {"model_cfg": model_config(self.encoder), "preprocess_cfg": _preprocessing(self.encoder)}
        (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        length = self.encoder.rules.length
        save_file(to_open_clip(self.encoder.module.state_dict(), length), folder / WEIGHTS, {"format": "pt"})
        write_tokenizer(self.encoder.tokenizer, folder)


def to_open_clip(weights: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Rename, join and transpose a CLIPModel's state dict; its text tower keeps the first ``length`` positions."""
    converted = {}
    for name, value in with_joined_attention(weights):
        theirs = _renamed(name)
        value = value[:length] if theirs == "positional_embedding" else value
        converted[theirs] = (value.T if theirs in _TRANSPOSED else value).detach().cpu().contiguous().clone()
    return converted


def _renamed(name: str) -> str:
    for ours, theirs in _IN_BLOCK:
        name = name.replace(ours, theirs)
    for ours, theirs in _NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def model_config(encoder: HuggingFaceEncoder) -> dict[str, Any]:
    """Describe a model of the family ``clip`` as open_clip's ``model_cfg`` does."""
    config: Any = encoder.module.config
    vision, text = config.vision_config, config.text_config
    # An end token with id 2 is how transformers marks models that pool at the highest id.
    pooling = {"pool_type": "argmax"} if text.eos_token_id == 2 else {"pool_type": "eos", "eos_id": text.eos_token_id}
    return {
        "embed_dim": encoder.width,
        **({"quick_gelu": True} if vision.hidden_act == "quick_gelu" else {}),
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            **_sizes(vision),
        },
        "text_cfg": {
            "context_length": encoder.rules.length,
            "vocab_size": text.vocab_size,
            "heads": text.num_attention_heads,
            **_sizes(text),
            **pooling,
            # Something must be named for open_clip to read the tokenizer in the folder.
            "hf_tokenizer_name": "name-of-this-repository",
        },
    }


def _sizes(tower: Any) -> dict[str, Any]:
    epsilon = {} if tower.layer_norm_eps == _EPSILON else {"norm_kwargs": {"eps": tower.layer_norm_eps}}
    return {
        "width": tower.hidden_size,
        "layers": tower.num_hidden_layers,
        "mlp_ratio": _ratio(tower.intermediate_size, tower.hidden_size),
        **epsilon,
    }


def _ratio(inner: int, width: int) -> float:
    """Return a ratio of which open_clip's ``int(width * ratio)`` makes the inner width again."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else (inner + 0.5) / width


def _preprocessing(encoder: HuggingFaceEncoder) -> dict[str, Any]:
    transform = encoder.transform
    assert transform is not None
    return {
        "size": transform.size[0],
        "mode": "RGB",
        "mean": list(transform.mean or (0.0,) * 3),
        "std": list(transform.std or (1.0,) * 3),
        "interpolation": _FILTERS[transform.resample],
        "resize_mode": "squash" if isinstance(transform.resize, tuple) else "shortest",
    }


def _inexpressible(encoder: HuggingFaceEncoder) -> list[str]:
    """Say what in a model open_clip has no setting for; nothing if it can hold the model."""
    config: Any = encoder.module.config
    if config.model_type != "clip":
        return [f"it is a {config.model_type}, expected a clip"]
    acts, tokenizer = (config.vision_config.hidden_act, config.text_config.hidden_act), encoder.tokenizer
    assert encoder.transform is not None
    checks = {
        f"its activations are {acts[0]} and {acts[1]}, expected twice one of {', '.join(_ACTIVATIONS)}": (
            acts[0] == acts[1] and acts[0] in _ACTIVATIONS
        ),
        "it prepares pictures in another way": _is_plain(encoder.transform, config.vision_config.image_size),
        "its captions are padded on the left": tokenizer.padding_side == "right",
    }
    return [reason for reason, holds in checks.items() if not holds]


def _is_plain(transform: Transform, size: int) -> bool:
    """Whether a transform is a square resize with a centre crop to the same size, or a squash, of ``size`` pixels."""
    square = (size, size)
    plain = (transform.resize == size and transform.crop == square) or (
        transform.resize == square and transform.crop in (None, square)
    )
    return plain and transform.resample in _FILTERS and transform.rescale == 1 / 255
