"""Models of open_clip, by its own classes: published weights by name, repositories on the hub, and folders.

Whatever a checkpoint's layout, the module is open_clip's CustomTextCLIP, so that the towers are called ``visual`` and
``text`` in every model. Shapes: ``B`` rows, ``L`` tokens, ``D`` joint width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from clipdistill.data.views import Transform
from clipdistill.errors import ModelError
from clipdistill.models.bundle import save_bundle
from clipdistill.models.encoder import Inputs
from clipdistill.models.fingerprints import hash_model, tokenizer_text
from clipdistill.models.hub import OPEN_CLIP_CONFIG
from clipdistill.models.open_clip_origin import (
    LOCAL,
    WEIGHTS,
    Origin,
    check_weights,
    fetch,
    find,
    first_line,
    in_folder,
    library,
)
from clipdistill.models.own_code import refuse_map
from clipdistill.models.preprocessing import prove
from clipdistill.models.tokenizing import OpenClipTokenizing
from clipdistill.models.vocabulary import read_tokenizer, write_tokenizer
from clipdistill.models.weights import model_type

#: Settings that say where a part came from, not what it computes.
_ORIGINS = frozenset({"hf_tokenizer_name", "timm_model_pretrained", "hf_model_pretrained", "custom_text"})


class OpenClipEncoder:
    """A model of open_clip behind the one interface of :class:`clipdistill.models.encoder.DualEncoder`.

    ``module`` is a CustomTextCLIP with its preprocessing on it, ``config`` its ``model_cfg``, ``tokenize`` what
    ``open_clip.get_tokenizer`` gives. ``tokenizer`` is the same vocabulary as a tokenizer of transformers, for
    students to take over. Raises :class:`ModelError`.
    """

    sides = "IT"
    classes: tuple[str, ...] = ()

    def __init__(self, uri: str, module: Any, config: Mapping[str, Any], tokenize: Any) -> None:
        self.uri = uri
        self.config = config
        self.width = int(config["embed_dim"])
        self._model, self._tokenize = module, tokenize
        self.preprocessing: dict[str, Any] = dict(module.visual.preprocess_cfg)
        self.transform: Transform | None = _transform(self.preprocessing, uri)
        self.tokenize = OpenClipTokenizing(tokenize)
        self.tokenizer: Any = _as_transformers(tokenize)
        _check_vocabulary(tokenize, module, uri)

    @property
    def module(self) -> nn.Module:
        """The model of open_clip: what is trained, moved and counted."""
        module: nn.Module = self._model
        return module

    @property
    def log_scale(self) -> nn.Parameter | None:
        """The logarithm of the logit scale, ``[]`` or ``[1]``."""
        parameter: nn.Parameter = self._model.logit_scale
        return parameter

    @property
    def bias(self) -> nn.Parameter | None:
        """SigLIP's logit bias; None for the others."""
        parameter: nn.Parameter | None = self._model.logit_bias
        return parameter

    @property
    def scale(self) -> float:
        """The logit scale as a number."""
        return math.exp(self._model.logit_scale.item())

    @property
    def patch_tokens(self) -> nn.Module | None:
        """The module that gives a picture's tokens, in a vision transformer on a square; None in any other tower."""
        tower = self._model.visual
        height, width = self.transform.size if self.transform else (0, 0)
        if height != width:
            return None
        if hasattr(tower, "ln_pre"):
            return tower.ln_pre if isinstance(tower.patch_dropout, nn.Identity) else None
        trunk: Any = getattr(tower, "trunk", None)
        return trunk.norm_pre if type(trunk).__name__ == "VisionTransformer" else None

    def images(self, pixels: Inputs) -> Tensor:
        """Embed pictures, batched as the transform gives them: ``{"pixel_values": [B, 3, h, w]} -> [B, D]``."""
        rows: Tensor = self._model.encode_image(pixels["pixel_values"])
        return rows

    def images_and_logits(self, pixels: Inputs) -> tuple[Tensor, Tensor]:
        """Refuse: a dual encoder has no classifier head."""
        raise ModelError(f"{self.uri} has no classifier head: it compares pictures with captions.")

    def texts(self, tokens: Inputs) -> Tensor:
        """Embed captions as :meth:`tokenize` gives them: ``{"input_ids": [B, L]} -> [B, D]``."""
        rows: Tensor = self._model.encode_text(tokens["input_ids"])
        return rows

    @property
    def fingerprint(self) -> str:
        """A hash of weights, architecture, tokenizer and transform, computed anew: it follows training."""
        rules = json.dumps([self.input_rules(), _settings(self.config)], sort_keys=True)
        return hash_model(self._model, rules, tokenizer_text(self.tokenizer))

    def input_rules(self) -> dict[str, Any]:
        """Return transform and text rules as plain values for JSON."""
        assert self.transform is not None
        text = self.config["text_cfg"]
        rules = {"tokenizer": type(self._tokenize).__name__, "mode": text.get("tokenizer_mode") or ""}
        lengths = {"padding": "max_length", "length": self._tokenize.context_length}
        return {
            "transform": self.transform.to_dict(),
            "text": {**rules, **lengths, **(text.get("tokenizer_kwargs") or {})},
        }

    def write_files(self, folder: Path) -> None:
        """Write weights, configuration and tokenizer into a folder, as open_clip opens it with ``local-dir:``."""
        described = {"model_cfg": self.config, "preprocess_cfg": self.preprocessing}
        (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
        state = {name: value.detach().cpu().clone() for name, value in self._model.state_dict().items()}
        save_file(_as_published(state, self.config), folder / WEIGHTS, {"format": "pt"})
        if self.config["text_cfg"].get("hf_tokenizer_name"):  # else open_clip brings it
            write_tokenizer(self.tokenizer, folder)

    def save(self, folder: Path, card: Mapping[str, Any] | None = None) -> None:
        """Write a folder of open_clip with card, whole or not at all; see :func:`bundle.save_bundle`."""
        save_bundle(self, folder, {**(card or {}), "library": "open_clip"})


def load(uri: str, device: str = "cpu") -> OpenClipEncoder:
    """Open a model that a name beginning with one of :data:`hub.OPEN_CLIP` names, in evaluation mode and float32.

    ``open_clip:ARCHITECTURE/TAG`` is published weights, ``open_clip:ARCHITECTURE/PATH`` a local checkpoint, prepared
    for as all published weights of that architecture are where they agree, else by open_clip's default.
    ``hf-hub:org/name`` and ``local-dir:FOLDER`` say themselves what they are. Raises :class:`ModelError`.
    """
    return _open(uri, find(uri), device)


def load_folder(uri: str, folder: Path, device: str = "cpu") -> OpenClipEncoder:
    """Open a folder with ``open_clip_config.json`` in it; ``uri`` names it. Raises :class:`ModelError`."""
    return _open(uri, in_folder(folder, f"{LOCAL}{folder}"), device)


def look_up(uri: str) -> None:
    """Find what describes a model, without its weights; raises :class:`ModelError` where that cannot be had."""
    find(uri, weights=False)


def lend_tokenizer(uri: str) -> Any:
    """Return a model's tokenizer as one of transformers, without its weights; raises :class:`ModelError`."""
    return _as_transformers(_tokenizer(uri, find(uri, weights=False)))


def _open(uri: str, origin: Origin, device: str) -> OpenClipEncoder:
    """Build a model, fill it, and check that nothing in it was drawn at random."""
    if "multimodal_cfg" in origin.config:
        raise ModelError(f"{uri} is a CoCa, which also writes captions; expected a model of two towers alone.")
    check_weights(origin)
    if tower := fetch(origin.config["text_cfg"].get("hf_model_name")):
        model_type(tower)  # is there a configuration at all?
        refuse_map(json.loads((tower / "config.json").read_text(encoding="utf-8")), tower / "config.json")
    tokenize = _tokenizer(uri, origin)
    try:
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are all replaced
            module = library().create_model(
                origin.name,
                **origin.arguments,
                force_custom_text=True,
                require_pretrained=True,
                precision="fp32",
                weights_only=True,
            )
    except Exception as error:  # tensors that are missing or of other shapes, unknown settings, damaged files
        raise ModelError(
            f"{uri}: open_clip {library().__version__} cannot open it ({type(error).__name__}: {first_line(error)}). "
            "Expected the weights that belong to its configuration."
        ) from error
    return OpenClipEncoder(uri, module.to(device).eval(), origin.config, tokenize)


def _tokenizer(uri: str, origin: Origin) -> Any:
    """Make open_clip's tokenizer; a folder's own files come first, as open_clip has it."""
    text = origin.config["text_cfg"]
    if (text.get("tokenizer_kwargs") or {}).get("reduction_mask"):
        raise ModelError(f"{uri}: its tokenizer leaves out words at random (reduction_mask); set it to ''.")
    if (text.get("tokenizer_kwargs") or {}).get("trust_remote_code"):
        raise ModelError(f"{uri} asks for code of its tokenizer's own to be run (trust_remote_code); set it to false.")
    if text.get("hf_tokenizer_name"):
        local = origin.tokenizer.startswith(LOCAL)
        read_tokenizer(origin.folder if local and origin.folder else fetch(text["hf_tokenizer_name"]) or Path())
    try:
        return library().get_tokenizer(origin.tokenizer)
    except Exception as error:  # a broken file: the library's backends raise bare classes of every kind
        raise ModelError(f"{uri}: its tokenizer cannot be loaded ({first_line(error)}).") from error


def _as_transformers(tokenize: Any) -> Any:
    """Return the tokenizer of transformers behind one of open_clip's; its own becomes a CLIPTokenizer."""
    if hasattr(tokenize, "tokenizer"):
        return tokenize.tokenizer
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(entry, entry): number for entry, number in tokenize.encoder.items()}
    merges = [merge for merge in tokenize.bpe_ranks if len(merge) == 2]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokenize.context_length)


def _check_vocabulary(tokenize: Any, module: Any, uri: str) -> None:
    highest, rows = int(tokenize(["a photo of two dogs"]).max()), int(module.vocab_size)
    if highest >= rows:
        raise ModelError(
            f"{uri}: its tokenizer gives id {highest}, the text tower reads {rows} ids (text_cfg.vocab_size). Name the "
            "tokenizer that belongs to these weights as text_cfg.hf_tokenizer_name."
        )


def _transform(given: Mapping[str, Any], uri: str) -> Transform:
    """Read our transform from a ``preprocess_cfg``, and prove that both give the same numbers."""
    size = given["size"]
    height, width = size if isinstance(size, Sequence) else (size, size)
    mode = given["resize_mode"]
    around: dict[str, Any] = {"resize": (height, width)}
    if mode == "longest":
        around |= {"keep": "longest", "crop": (height, width), "fill": given["fill_color"], "halves": "even"}
    elif mode == "shortest" and height == width:
        around = {"resize": height, "crop": (height, width), "halves": "even"}
    elif mode == "shortest":
        around |= {"keep": "shortest", "crop": (height, width), "halves": "even"}
    # On other shapes than squares, and for anything but 'bilinear', open_clip is bicubic.
    bilinear = given["interpolation"] == "bilinear" and around.get("keep") != "shortest"
    resample = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
    transform = Transform(**around, resample=resample.value, mean=_three(given["mean"]), std=_three(given["std"]))
    module = library().transform
    theirs = module.image_transform_v2(module.PreprocessCfg(**given), is_train=False)
    prove(transform, lambda picture: {"pixel_values": theirs(picture).numpy()}, "open_clip", uri)
    return transform


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = values if isinstance(values, Sequence) else (values,) * 3
    return float(red), float(green), float(blue)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a ``model_cfg`` says about the computation."""
    return {
        key: _settings(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _ORIGINS
    }


def _as_published(state: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Name weights as the configuration has open_clip expect them: without ``text.`` where CLIP is one module."""
    if config.get("custom_text") or config["text_cfg"].get("hf_model_name"):
        return state
    return {name.removeprefix("text."): value for name, value in state.items()}
