"""Models of pictures alone, by transformers' own classes: ViT, DINOv2, ResNet, Swin, ConvNeXt..., bare or with a head.

Shapes: ``B`` rows, ``D`` width, ``K`` classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTForImageClassification,
)

from clipdistill.data.views import Transform
from clipdistill.errors import ConfigError, ModelError, did_you_mean
from clipdistill.models.bundle import save_bundle
from clipdistill.models.encoder import Inputs
from clipdistill.models.fingerprints import hash_model, settings_text
from clipdistill.models.huggingface import FAMILIES
from clipdistill.models.preprocessing import clip_processor, read_processor, transform_of
from clipdistill.models.presets import Preset
from clipdistill.models.quiet import quiet
from clipdistill.models.timm import import_for
from clipdistill.models.weights import attention_for, model_type, read_weights

#: Transformers whose last hidden states are normed and begin with the class token, and what their bare classes are
#: built with: the tanh layer that some have on top takes no part in the embedding.
_CLASS_TOKEN: dict[str, dict[str, bool]] = {
    "vit": {"add_pooling_layer": False},
    "deit": {"add_pooling_layer": False},
    "vit_msn": {},
    "dinov2": {},
    "dinov2_with_registers": {},
}


class VisionEncoder:
    """A backbone or classifier behind :class:`clipdistill.models.encoder.DualEncoder`, without a text tower.

    ``module`` is any model of transformers that AutoModel or AutoModelForImageClassification opens and that gives one
    row for a picture: the class token after the final norm where there is one, else the pooled output, flattened;
    of CLIP's image tower with its projection the joint embedding.
    """

    sides = "I"

    def __init__(self, uri: str, module: Any, processor: Any) -> None:
        self.uri = uri
        self._model = module
        self._backbone = module.base_model if _is_classifier(module) else module
        self.processor = processor
        self.tokenizer: Any = None
        self.transform: Transform | None = transform_of(processor, uri)
        self.classes = _class_names(module.config) if _is_classifier(module) else ()
        self.width = self._try()

    @property
    def module(self) -> nn.Module:
        """The transformers model with its head: what is trained, moved and counted."""
        module: nn.Module = self._model
        return module

    @property
    def log_scale(self) -> nn.Parameter | None:
        """None: there is nothing to compare a picture with."""
        return None

    @property
    def bias(self) -> nn.Parameter | None:
        """None, as for :attr:`log_scale`."""
        return None

    @property
    def scale(self) -> float:
        """1 / 0.07, as for every model without a logit scale."""
        return 1 / 0.07

    @property
    def patch_tokens(self) -> nn.Module | None:
        """The module that turns a picture into tokens, where a class token gathers them; None for any other."""
        tokens: nn.Module | None = self._backbone.embeddings if self._has_class_token else None
        return tokens

    @property
    def _has_class_token(self) -> bool:
        return self._model.config.model_type in _CLASS_TOKEN

    def images(self, pixels: Inputs) -> Tensor:
        """Embed pictures, batched as the transform gives them: ``{"pixel_values": [B, 3, h, w]} -> [B, D]``."""
        return self._rows(self._backbone(pixel_values=pixels["pixel_values"]))

    def images_and_logits(self, pixels: Inputs) -> tuple[Tensor, Tensor]:
        """Embed and classify pictures in one pass: ``[B, D]`` and ``[B, K]``; :class:`ModelError` without a head."""
        if not self.classes:
            raise ModelError(f"{self.uri} has no classifier head: its config.json names {type(self._model).__name__}.")
        seen: list[Any] = []
        hook = self._backbone.register_forward_hook(lambda module, arguments, output: seen.append(output))
        try:
            logits: Tensor = self._model(pixel_values=pixels["pixel_values"]).logits
        finally:
            hook.remove()
        return self._rows(seen[0]), logits

    def texts(self, tokens: Inputs) -> Tensor:
        """Refuse with a :class:`ModelError`."""
        self._refuse_texts()

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Refuse with a :class:`ModelError`."""
        self._refuse_texts()

    def _refuse_texts(self) -> NoReturn:
        raise ModelError(
            f"{self.uri} has no text tower: it is a {type(self._model).__name__}, a model of pictures alone."
        )

    def _rows(self, output: Any) -> Tensor:
        rows: Tensor
        if self._has_class_token:
            rows = output.last_hidden_state[:, 0]
        elif "image_embeds" in output:
            rows = output.image_embeds
        else:
            rows = output.pooler_output.flatten(1)
        return rows

    @torch.no_grad()
    def _try(self) -> int:
        """Embed one black picture, and return the width of its row: configurations name it in many ways."""
        assert self.transform is not None
        height, width = self.transform.size
        pixels = self.transform(Image.new("RGB", (width, height)))
        device = next(self._model.parameters()).device
        try:
            rows = self.images({name: torch.from_numpy(value)[None].to(device) for name, value in pixels.items()})
        except Exception as error:  # no pooled output, a picture of the wrong size: whatever the class makes of it
            raise ModelError(
                f"{self.uri}: its {type(self._model).__name__} does not embed a picture of {height} x {width} pixels, "
                f"as its image processor makes them ({type(error).__name__}: {error}). Expected a model with a class "
                "token or a pooled output, such as ViT, DINOv2, ResNet, Swin or ConvNeXt."
            ) from error
        return int(rows.shape[1])

    @property
    def fingerprint(self) -> str:
        """A hash of weights, settings, transform and class names, computed anew: it follows training."""
        rules = json.dumps([self.input_rules(), self.classes], sort_keys=True)
        return hash_model(self._model, settings_text(self._model.config), rules)

    def input_rules(self) -> dict[str, Any]:
        """Return the transform as plain values for JSON."""
        assert self.transform is not None
        return {"transform": self.transform.to_dict()}

    def write_files(self, folder: Path) -> None:
        """Write weights, configuration and image processor into a folder, as transformers reads them."""
        with quiet():
            self._model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def save(self, folder: Path, card: Mapping[str, Any] | None = None) -> None:
        """Write a standard model folder with card, whole or not at all; see :func:`bundle.save_bundle`."""
        save_bundle(self, folder, card or {})


def load(uri: str, folder: Path, device: str = "cpu") -> VisionEncoder:
    """Load the backbone or classifier in ``folder``, in evaluation mode and float32; ``uri`` names it.

    config.json's ``architectures`` decide which of the two it is. Raises :class:`ModelError`.
    """
    config = _read_config(folder)
    processor = read_processor(folder)
    architectures = config.architectures or ()
    if any("ForImageClassification" in name for name in architectures):
        module = read_weights(AutoModelForImageClassification, config, folder, device)
    elif "CLIPVisionModelWithProjection" in architectures:
        module = read_weights(CLIPVisionModelWithProjection, config, folder, device)
    else:
        module = read_weights(AutoModel, config, folder, device, **_CLASS_TOKEN.get(config.model_type, {}))
    return VisionEncoder(uri, module.to(device).eval(), processor)


def _read_config(folder: Path) -> Any:
    """Read the configuration of a model whose input is pictures; raises :class:`ModelError` for any other."""
    path, kind = folder / "config.json", model_type(folder)
    config = None
    import_for(path)
    try:
        with quiet():
            if kind in CONFIG_MAPPING:
                config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a value of the wrong type: the library's own validation classes
        raise ModelError(f"{path} is not a valid {kind} configuration: {error}") from error
    if not _takes_pictures(config):
        raise ModelError(
            f"{path}: model_type '{kind}' is neither a known dual encoder nor a model of pictures that transformers "
            f"knows.{did_you_mean(kind, FAMILIES)}"
        )
    return config


def _takes_pictures(config: Any) -> bool:
    """Whether the class for a configuration has pictures as its main input."""
    mappings = (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_MAPPING)
    model = next((mapping[type(config)] for mapping in mappings if type(config) in mapping), None)
    model = model[0] if isinstance(model, tuple) else model  # a few have several heads to choose from
    return getattr(model, "main_input_name", None) == "pixel_values"


def build(
    name: str, shape: Preset, classes: Sequence[str], seed: int, teacher_transform: Transform | None = None
) -> VisionEncoder:
    """Build a ViT with random weights and a head over ``classes`` on the CPU; the same arguments give the same weights.

    It prepares pictures as CLIP does, at its own size, with the teacher's mean and deviation if a
    ``teacher_transform`` is given. Raises :class:`ConfigError` for fewer than two classes.
    """
    if len(set(classes)) < 2:
        raise ConfigError(
            f"student {name} has a classifier head, which needs labels: the data have {len(set(classes))} different "
            "ones, expected two at least. Use labelled data, or a preset with a text tower."
        )
    config = ViTConfig(
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        id2label=dict(enumerate(classes)),
        label2id={label: number for number, label in enumerate(classes)},
    )
    config._attn_implementation = attention_for(config, "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU as well
        module = ViTForImageClassification(config)
    return VisionEncoder(name, module.eval(), clip_processor(shape.image_size, teacher_transform))


def _is_classifier(module: Any) -> bool:
    return "ForImageClassification" in type(module).__name__


def _class_names(config: Any) -> tuple[str, ...]:
    """Return the names of a head's classes in the order of its logits."""
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))
