"""Tiny random models of open_clip, written by itself in the layout of the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from clipdistill.models.vocabulary import train_tokenizer

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
OWN_TOKENIZER = {**TEXT, "vocab_size": 64, "hf_tokenizer_name": "nowhere/on-the-hub"}
PLAIN = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
#: What the hub holds, in small: OpenAI's and LAION's, SigLIP, MobileCLIP2, RN50, BERT as text tower, a last one with
#: every rule for captions that a configuration can have.
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": PLAIN,
    "quickgelu": {**PLAIN, "quick_gelu": True},
    "siglip": {
        **{"embed_dim": 64, "init_logit_bias": -10, "custom_text": True},
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none"},
        "text_cfg": {
            **OWN_TOKENIZER,
            "tokenizer_kwargs": {"clean": "canonicalize"},
            **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
        },
    },
    "mobileclip": {
        **{"embed_dim": 20, "custom_text": True},
        "vision_cfg": {
            **{"image_size": 64, "timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": None},
            **{"timm_drop": 0.0, "timm_drop_path": 0.0},
        },
        "text_cfg": {**TEXT, "no_causal_mask": True},
    },
    "resnet": {**PLAIN, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}},
    "bert": {
        "embed_dim": 24,
        "vision_cfg": VISION,
        "text_cfg": {
            **{"hf_model_name": "to be named", "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"},
            **{"context_length": 20, "hf_tokenizer_name": "nowhere/on-the-hub"},
        },
    },
    "bpe": {**PLAIN, "text_cfg": {**OWN_TOKENIZER, "vocab_size": 520, "pool_type": "argmax"}},
    "strip": {
        **PLAIN,
        "text_cfg": {
            **{**OWN_TOKENIZER, "vocab_size": 128, "pool_type": "eos", "eos_id": 0},
            "tokenizer_kwargs": {"strip_sep_token": True, "clean": "whitespace"},
        },
    },
}
#: The family whose tokenizer a configuration's folder holds.
TOKENIZERS = {"siglip": "siglip", "bert": "chinese_clip", "strip": "chinese_clip"}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
PREPARED: dict[str, dict[str, Any]] = {
    "siglip": {**HALF, "interpolation": "bicubic"},
    "mobileclip": {**HALF, "mean": [0.0] * 3, "std": [1.0] * 3, "resize_mode": "shortest"},
    "strip": {**HALF, "resize_mode": "longest", "fill_color": 127},
}


def make(folder: Path, kind: str, families: Mapping[str, Path] = {}, name: str = "open_clip_model.safetensors") -> Path:
    """Write a random model in the layout of the hub; ``families`` are folders of transformers to take tokenizers of."""
    folder.mkdir(parents=True)
    config = json.loads(json.dumps(CONFIGS[kind]))
    if kind == "bpe":
        train_tokenizer(["a red circle", "a blue square"], 520, 20).save_pretrained(folder)
    if kind in TOKENIZERS:
        for path in families[TOKENIZERS[kind]].glob("*token*"):
            shutil.copy(path, folder)
    if kind == "bert":
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        hf.BertConfig(**sizes, vocab_size=128).save_pretrained(folder.parent / f"{folder.name}-text")
        config["text_cfg"]["hf_model_name"] = str(folder.parent / f"{folder.name}-text")
    about = {"model_cfg": config, "preprocess_cfg": PREPARED.get(kind, {"mean": open_clip.OPENAI_DATASET_MEAN})}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    torch.manual_seed(len(kind))
    module = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    with torch.no_grad():  # else the captions of so small a model would all look alike
        for key, parameter in module.named_parameters():
            if parameter.ndim > 1 and not key.startswith("visual"):
                parameter.mul_(4.0)
    if name.endswith(".safetensors"):
        save_file(module.state_dict(), folder / name)
    else:
        torch.save(module.state_dict(), folder / name)
    return folder


@torch.no_grad()
def rows_of_open_clip(name: str, pictures: list[Image.Image], captions: list[str]) -> tuple[Tensor, Tensor]:
    """What open_clip alone makes of pictures and captions."""
    module, preprocess = open_clip.create_model_from_pretrained(name)
    pixels = torch.stack([preprocess(picture) for picture in pictures])
    module.eval()
    return module.encode_image(pixels), module.encode_text(open_clip.get_tokenizer(name)(captions))


@torch.no_grad()
def our_rows(encoder: Any, pictures: list[Image.Image], captions: list[str]) -> tuple[Tensor, Tensor]:
    pixels = np.stack([encoder.transform(picture)["pixel_values"] for picture in pictures])
    return encoder.images({"pixel_values": torch.from_numpy(pixels)}), encoder.texts(encoder.tokenize(captions))


def check_same(encoder: Any, name: str, pictures: list[Image.Image], captions: list[str]) -> None:
    for ours, theirs in zip(
        our_rows(encoder, pictures, captions), rows_of_open_clip(name, pictures, captions), strict=True
    ):
        assert ours.shape == (4, encoder.width)
        assert torch.equal(ours, theirs)
        assert (ours[0] - ours[1]).abs().max() > 1e-3
