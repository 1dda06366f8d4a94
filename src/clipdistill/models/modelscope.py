"""Model folders in ModelScope's layouts, read without its package: Chinese-CLIP, TEAM and RLEG.

Chinese-CLIP's distillation takes these three as teachers. A folder's own JSON files tell them apart. TEAM and RLEG have
the weights of Chinese-CLIP's towers under other names; what they have on top takes no part in an embedding, and is left
out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.image_utils import PILImageResampling

from clipdistill.errors import ModelError
from clipdistill.models.chinese_clip import (
    assemble,
    bert_tokenizer,
    configure,
    fill,
    json_object,
    square_processor,
)
from clipdistill.models.chinese_clip_layout import plain_names
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.torch_files import read_tensors
from clipdistill.models.vision import VisionEncoder
from clipdistill.models.vocabulary import TEAM, TEAM_MARK, read_word_pieces

_WEIGHTS = "pytorch_model.bin"


def is_modelscope(folder: Path) -> bool:
    """Tell whether a folder has one of ModelScope's layouts, known or not, rather than that of transformers."""
    if (folder / "config.json").is_file():  # ModelScope also has models in the layout of transformers
        return False
    marks = ("configuration.json", *(files[0] for files, _ in _LAYOUTS.values()))
    return any((folder / name).is_file() for name in marks)


def load(uri: str, folder: Path, device: str = "cpu") -> DualEncoder:
    """Open a folder in ModelScope's layout, in evaluation mode and float32; ``uri`` names it.

    Raises :class:`ModelError` for another layout than the known three.
    """
    for files, reader in _LAYOUTS.values():
        if all((folder / name).is_file() for name in files):
            return reader(uri, folder, device)
    found = ", ".join(sorted(item.name for item in folder.iterdir())[:12]) or "nothing"
    expected = "; ".join(f"{name}: {', '.join(files)}" for name, (files, _) in _LAYOUTS.items())
    raise ModelError(
        f"{folder} is a folder of ModelScope in no known layout (found: {found}). Expected one of: {expected}. "
        "Copy what is missing into it."
    )


def _load_clip(uri: str, folder: Path, device: str) -> DualEncoder:
    """Chinese-CLIP: its checkpoint with its two JSON files and its vocabulary."""
    path = folder / _WEIGHTS
    weights = plain_names(read_tensors(path), path)
    given = json_object(folder / "vision_model_config.json") | json_object(folder / "text_model_config.json")
    config = configure(weights, given, path)
    return assemble(uri, weights, config, bert_tokenizer(folder, config), path, device)


def _load_team(uri: str, folder: Path, device: str) -> DualEncoder:
    """TEAM: CLIP's image tower and a BERT that keeps case, without its cross-attention between the two."""
    path = folder / _WEIGHTS
    weights = _team_names(read_tensors(path))
    bert = json_object(folder / TEAM_MARK)
    keys = (
        "num_attention_heads",
        "hidden_act",
        "layer_norm_eps",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
    )
    # Its code cuts the image tower into heads of 64, whatever the width.
    given = {f"text_{key}": bert[key] for key in keys if key in bert} | {"vision_head_width": 64}
    config = configure(weights, given, path)
    tokenizer = read_word_pieces(folder / "vocab.txt", **TEAM)
    return assemble(uri, weights, config, tokenizer, path, device)


def _team_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {"logit_scale": torch.tensor(math.log(1 / 0.07))}  # it compares without one
    for name, value in weights.items():
        if name.startswith("image_model.vision_transformer."):
            named[name.replace("image_model.vision_transformer.", "visual.")] = value
        elif name.startswith("text_model.bert.") and not name.endswith(".position_ids"):
            named[name.removeprefix("text_model.")] = value
        elif name == "text_model.projector.weight":
            named["text_projection"] = value.T
    return named


def _load_rleg(uri: str, folder: Path, device: str) -> DualEncoder:
    """RLEG: CLIP's image tower. Pictures alone: that is what it teaches."""
    path, settings = folder / _WEIGHTS, folder / "encoder_config.json"
    prefix = "image_encoder.visual."
    weights = {
        name.replace(prefix, "visual."): value for name, value in read_tensors(path).items() if name.startswith(prefix)
    }
    config = _rleg_config(settings)
    module = fill(CLIPVisionModelWithProjection, config, weights, path, device)
    return VisionEncoder(uri, module, square_processor(config.image_size, PILImageResampling.BILINEAR))


def _rleg_config(path: Path) -> CLIPVisionConfig:
    """Read the image tower's sizes from ``{name: [width of rows, pixels, layers, width, patch, ...]}``."""
    sizes = next(iter(json_object(path).values()), None)
    if not isinstance(sizes, list) or len(sizes) < 5 or not all(isinstance(size, int) for size in sizes[:5]):
        raise ModelError(
            f"{path} does not describe RLEG; expected a name with a list that begins with the width of a row, "
            "pixels, layers, width and patch size."
        )
    rows, pixels, layers, width, patch = sizes[:5]
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=rows,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        image_size=pixels,
        patch_size=patch,
        hidden_act="quick_gelu",
    )


Reader = Callable[[str, Path, str], DualEncoder]

#: By name, the files of a layout, first the one that tells it from the others.
_LAYOUTS: dict[str, tuple[tuple[str, ...], Reader]] = {
    "Chinese-CLIP": (("vision_model_config.json", "text_model_config.json", _WEIGHTS, "vocab.txt"), _load_clip),
    "RLEG": (("encoder_config.json", _WEIGHTS), _load_rleg),
    "TEAM": ((TEAM_MARK, _WEIGHTS, "vocab.txt"), _load_team),
}
