"""Dual encoders of transformers: CLIP, Chinese-CLIP, SigLIP, SigLIP 2 and VisionTextDualEncoder, by their own files.

Shapes: ``B`` rows, ``L`` tokens, ``D`` joint width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    ChineseCLIPModel,
    CLIPModel,
    Siglip2Model,
    SiglipModel,
    VisionTextDualEncoderModel,
)

from clipdistill.data.views import Transform
from clipdistill.errors import ModelError, did_you_mean
from clipdistill.models.bundle import save_bundle
from clipdistill.models.encoder import Inputs
from clipdistill.models.fingerprints import hash_model, settings_text, tokenizer_text
from clipdistill.models.own_code import refuse_map
from clipdistill.models.preprocessing import read_processor, transform_of
from clipdistill.models.quiet import quiet
from clipdistill.models.timm import import_for
from clipdistill.models.tokenizing import TextRules, Tokenizing, positions
from clipdistill.models.vocabulary import read_tokenizer, write_tokenizer
from clipdistill.models.weights import image_tokens, model_type, read_weights


@dataclass(frozen=True)
class Family:
    """What sets one architecture apart.

    ``sticky_end`` marks SigLIP: it pools the last position, so captions are padded to the one length it was
    trained with. ``longest`` is the convention for a text tower that has more positions than training used.
    """

    model: Any
    pixels: tuple[str, ...] = ("pixel_values",)
    tokens: tuple[str, ...] = ("input_ids", "attention_mask")
    sticky_end: bool = False
    longest: int | None = None


_BERT_TOKENS = ("input_ids", "attention_mask", "token_type_ids")
_PATCHES = ("pixel_values", "pixel_attention_mask", "spatial_shapes")

#: By ``model_type`` in config.json.
FAMILIES: dict[str, Family] = {
    "clip": Family(CLIPModel),
    "chinese_clip": Family(ChineseCLIPModel, tokens=_BERT_TOKENS, longest=52),
    "siglip": Family(SiglipModel, sticky_end=True),
    "siglip2": Family(Siglip2Model, pixels=_PATCHES, sticky_end=True),
    "vision-text-dual-encoder": Family(VisionTextDualEncoderModel, tokens=_BERT_TOKENS),
}


class HuggingFaceEncoder:
    """A dual encoder of transformers behind the one interface of :class:`clipdistill.models.encoder.DualEncoder`.

    ``module`` is one of the classes in :data:`FAMILIES`; tokenizer and image processor are the model's own.
    """

    sides = "IT"
    classes: tuple[str, ...] = ()

    def __init__(self, uri: str, module: Any, tokenizer: Any, processor: Any) -> None:
        self.uri = uri
        self._model = module
        self._family = FAMILIES[module.config.model_type]
        self.tokenizer: Any = tokenizer
        self.processor = processor
        self.transform: Transform | None = transform_of(processor, uri)
        self.rules = _text_rules(module, self._family, tokenizer)
        self.tokenize = Tokenizing(tokenizer, self.rules, self._family.tokens)
        self.width = _width(module.config)

    @property
    def module(self) -> nn.Module:
        """The transformers model: what is trained, moved and counted."""
        module: nn.Module = self._model
        return module

    @property
    def log_scale(self) -> nn.Parameter | None:
        """The logarithm of the logit scale: ``[]``, or ``[1]`` in SigLIP."""
        parameter: nn.Parameter | None = getattr(self._model, "logit_scale", None)
        return parameter

    @property
    def bias(self) -> nn.Parameter | None:
        """SigLIP's logit bias, ``[1]``; None for the others."""
        parameter: nn.Parameter | None = getattr(self._model, "logit_bias", None)
        return parameter

    @property
    def scale(self) -> float:
        """The logit scale as a number; 1 / 0.07 for a model that has none."""
        return 1 / 0.07 if self.log_scale is None else math.exp(self.log_scale.item())

    @property
    def patch_tokens(self) -> nn.Module | None:
        """The module that turns a picture into tokens, in a vision transformer; None in any other tower."""
        tower = self._model.vision_model
        tower = getattr(tower, "vision_model", tower)
        tokens: nn.Module | None = getattr(tower, "embeddings", None)
        # Towers of several depths (Swin, ConvNeXt) need every patch in its place.
        whole = hasattr(tower.config, "depths") or image_tokens(tower.config) is None
        return None if whole else tokens

    def images(self, pixels: Inputs) -> Tensor:
        """Embed pictures, batched as the transform gives them: ``{"pixel_values": [B, 3, h, w]} -> [B, D]``."""
        return _pooled(self._model.get_image_features(**{name: pixels[name] for name in self._family.pixels}))

    def images_and_logits(self, pixels: Inputs) -> tuple[Tensor, Tensor]:
        """Refuse: a dual encoder has no classifier head."""
        raise ModelError(f"{self.uri} has no classifier head: it compares pictures with captions.")

    def texts(self, tokens: Inputs) -> Tensor:
        """Embed captions as :meth:`tokenize` gives them: ``{"input_ids": [B, L], ...} -> [B, D]``."""
        known = {name: tokens[name] for name in self._family.tokens if name in tokens}
        return _pooled(self._model.get_text_features(**known))

    @property
    def fingerprint(self) -> str:
        """A hash of weights, settings, tokenizer, text rules and transform, computed anew: it follows training.

        About one second for a gigabyte of weights.
        """
        rules = json.dumps(self.input_rules(), sort_keys=True)
        return hash_model(self._model, settings_text(self._model.config), rules, tokenizer_text(self.tokenizer))

    def input_rules(self) -> dict[str, Any]:
        """Return transform and text rules as plain values for JSON."""
        assert self.transform is not None
        return {"transform": self.transform.to_dict(), "text": asdict(self.rules)}

    def write_files(self, folder: Path) -> None:
        """Write weights, configuration, tokenizer and image processor into a folder, as transformers reads them."""
        with quiet():
            self._model.save_pretrained(folder)
        write_tokenizer(self.tokenizer, folder)
        self.processor.save_pretrained(folder)

    def save(self, folder: Path, card: Mapping[str, Any] | None = None) -> None:
        """Write a standard model folder with card, whole or not at all; see :func:`bundle.save_bundle`."""
        save_bundle(self, folder, card or {})


def load(uri: str, folder: Path, device: str) -> HuggingFaceEncoder:
    """Load a folder whose model is of one of :data:`FAMILIES`, called ``uri``; raises :class:`ModelError`."""
    family, config = read_config(folder)
    processor, tokenizer = read_processor(folder), read_tokenizer(folder)
    _check_vocabulary(tokenizer, config, folder)
    module = read_weights(family.model, config, folder, device)
    encoder = HuggingFaceEncoder(uri, module.to(device).eval(), tokenizer, processor)
    if family.model is VisionTextDualEncoderModel:
        _try(encoder, device)
    return encoder


def _try(encoder: HuggingFaceEncoder, device: str) -> None:
    """Embed a caption: any towers may stand side by side, and not all of them give a row."""
    tokens = {name: rows.to(device) for name, rows in encoder.tokenize(["a"]).items()}
    try:
        with torch.no_grad():
            encoder.texts(tokens)
    except Exception as error:  # no pooled output, an input of another name: whatever the class says
        tower = type(encoder.module.text_model).__name__
        raise ModelError(
            f"{encoder.uri}: its text tower, a {tower}, gives no row for a caption ({type(error).__name__}: {error}). "
            "Expected a tower with a pooled output, such as a BertModel."
        ) from error


def read_config(folder: Path) -> tuple[Family, Any]:
    """Read a model folder's config.json; raises :class:`ModelError` unless it is of a known family."""
    path, kind = folder / "config.json", model_type(folder)
    if kind not in FAMILIES:
        raise ModelError(f"{path}: model_type '{kind}' is not a known dual encoder.{did_you_mean(kind, FAMILIES)}")
    import_for(path)
    for part in json.loads(path.read_text(encoding="utf-8")).values():
        if isinstance(part, Mapping):  # a tower's own configuration
            refuse_map(part, path)
    try:
        with quiet():
            return FAMILIES[kind], FAMILIES[kind].model.config_class.from_pretrained(folder)
    except Exception as error:  # a value of the wrong type: the library's own validation classes
        raise ModelError(f"{path} is not a valid {kind} configuration: {error}") from error


def _check_vocabulary(tokenizer: Any, config: Any, folder: Path) -> None:
    rows = config.text_config.vocab_size
    if len(tokenizer) > rows:
        raise ModelError(
            f"{folder}: the tokenizer has {len(tokenizer)} entries, the text tower reads {rows} (config.json, "
            "text_config.vocab_size). Copy the tokenizer files that belong to these weights."
        )


def _text_rules(module: Any, family: Family, tokenizer: Any) -> TextRules:
    config = module.config
    room = config.text_config.max_position_embeddings
    if family.sticky_end:
        return TextRules("max_length", room, _must_lower(config, tokenizer))
    room = min([room, *positions(module.text_model)])
    return TextRules("longest", min(room, tokenizer.model_max_length, family.longest or room), False)


def _must_lower(config: Any, tokenizer: Any) -> bool:
    """Tell whether captions must be lower-cased before a SigLIP tokenizer sees them.

    SigLIP 2 was trained on lower case with Gemma's tokenizer, which keeps case; its square models say
    model_type siglip and ``do_lower_case``, and some versions of the library heed neither.
    """
    wanted = (
        config.model_type == "siglip2"
        or tokenizer.init_kwargs.get("do_lower_case") is True
        or "Gemma" in type(tokenizer).__name__
    )
    capitals = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG"
    return wanted and tokenizer(capitals)["input_ids"] != tokenizer(capitals.lower())["input_ids"]


def _width(config: Any) -> int:
    """Return the joint width: SigLIP's towers meet without a projection, the others say projection_dim."""
    return int(getattr(config, "projection_dim", None) or config.vision_config.hidden_size)


def _pooled(output: Any) -> Tensor:
    """Take the embedding from what get_image_features and get_text_features return: an object since version 5."""
    rows: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return rows
