"""Models of captions alone: BERT, RoBERTa, MPNet and their like, sentence-transformers folders, CLIP's text tower.

Shapes: ``B`` rows, ``L`` tokens, ``W`` width of the transformer, ``D`` width of a row.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    CLIPTextModelWithProjection,
)

from clipdistill.data.views import Transform
from clipdistill.errors import ModelError
from clipdistill.models import sentences
from clipdistill.models.bundle import save_bundle
from clipdistill.models.encoder import Inputs
from clipdistill.models.fingerprints import hash_model, settings_text, tokenizer_text
from clipdistill.models.own_code import refuse_code
from clipdistill.models.quiet import quiet
from clipdistill.models.sentences import SentenceModel, Sentences
from clipdistill.models.tokenizing import TextRules, Tokenizing, positions
from clipdistill.models.vocabulary import read_tokenizer, write_tokenizer
from clipdistill.models.weights import model_type, read_weights

_TOKENS = ("input_ids", "attention_mask", "token_type_ids")
#: What is cut to where neither weights nor tokenizer set a limit.
_LONGEST = 512
#: Text towers that pool for themselves, at the end of the caption.
_POOLS = ("clip_text_model",)


class TextEncoder:
    """A model of captions behind :class:`clipdistill.models.encoder.DualEncoder`, without an image tower.

    ``layout`` says what its folder does around the transformer: prompt, letters, length and pooling.
    """

    sides = "T"
    classes: tuple[str, ...] = ()
    processor: Any = None
    transform: Transform | None = None

    def __init__(self, uri: str, module: SentenceModel, tokenizer: Any, layout: Sentences) -> None:
        self.uri = uri
        self._model = module
        self.tokenizer: Any = tokenizer
        self.layout = layout
        transformer = module.transformer
        self._tokens = [name for name in _TOKENS if name in inspect.signature(transformer.forward).parameters]
        self.rules = TextRules("longest", _longest(transformer, tokenizer, layout), layout.lower_case)
        self.tokenize = Tokenizing(tokenizer, self.rules, tuple(self._tokens), layout.prompt)
        self.width = self._try()

    @property
    def module(self) -> nn.Module:
        """Transformer, pooling and what follows: what is trained, moved and counted."""
        return self._model

    @property
    def log_scale(self) -> nn.Parameter | None:
        """None: there is nothing to compare a caption with."""
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
        """None: there are no pictures."""
        return None

    def images(self, pixels: Inputs) -> Tensor:
        """Refuse with a :class:`ModelError`."""
        self._refuse_pictures()

    def images_and_logits(self, pixels: Inputs) -> tuple[Tensor, Tensor]:
        """Refuse with a :class:`ModelError`."""
        self._refuse_pictures()

    def _refuse_pictures(self) -> NoReturn:
        kind = type(self._model.transformer).__name__
        raise ModelError(f"{self.uri} has no image tower: it is a {kind}, a model of captions alone.")

    def texts(self, tokens: Inputs) -> Tensor:
        """Embed captions as :meth:`tokenize` gives them: ``{"input_ids": [B, L], ...} -> [B, D]``."""
        rows: Tensor = self._model({name: tokens[name] for name in self._tokens if name in tokens})
        return rows

    @torch.no_grad()
    def _try(self) -> int:
        """Embed one caption, and return the width of its row."""
        device = next(self._model.parameters()).device
        try:
            tokens = self.tokenize(["a photo of a cat"])
            rows = self.texts({name: value.to(device) for name, value in tokens.items()})
        except Exception as error:  # no padding token, a decoder's inputs: whatever tokenizer and class make of it
            raise ModelError(
                f"{self.uri}: its {type(self._model.transformer).__name__} does not embed a caption "
                f"({type(error).__name__}: {error}). Expected a text encoder such as BERT, RoBERTa or MPNet."
            ) from error
        return int(rows.shape[1])

    @property
    def fingerprint(self) -> str:
        """A hash of weights, settings, tokenizer and text rules, computed anew: it follows training."""
        steps = [type(part).__name__ for part in self._model.steps.modules()]
        rules = json.dumps([self.input_rules(), steps], sort_keys=True)
        settings = settings_text(self._model.transformer.config)
        return hash_model(self._model, settings, rules, tokenizer_text(self.tokenizer))

    def input_rules(self) -> dict[str, Any]:
        """Return how captions are read and pooled as plain values for JSON."""
        return {"text": asdict(self.rules) | {"prompt": self.layout.prompt, "pooling": self.layout.pooling}}

    def write_files(self, folder: Path) -> None:
        """Write a folder that transformers reads, and sentence-transformers unless the model pools for itself."""
        with quiet():
            self._model.transformer.save_pretrained(folder)
        write_tokenizer(self.tokenizer, folder)
        if self.layout.pooling:
            sentences.write(folder, self._model, self.layout, self.rules.length)

    def save(self, folder: Path, card: Mapping[str, Any] | None = None) -> None:
        """Write a standard model folder with card, whole or not at all; see :func:`bundle.save_bundle`."""
        library = {"library": "sentence-transformers"} if self.layout.pooling else {}
        save_bundle(self, folder, {**library, **(card or {})})


def opens(folder: Path) -> bool:
    """Tell whether a folder holds a model of captions alone, as :func:`load` opens it."""
    if sentences.is_layout(folder):
        return True
    kind = model_type(folder)
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind].sub_configs:
        return False  # of several parts, such as a dual encoder that is not known
    model = _class_for(CONFIG_MAPPING[kind], ())
    return getattr(model, "main_input_name", None) == "input_ids"


def load(uri: str, folder: Path, device: str = "cpu") -> TextEncoder:
    """Load the text encoder in ``folder``, in evaluation mode and float32; ``uri`` names it.

    A folder of sentence-transformers (modules.json) says how it pools. Any other model gives the mean of its last
    hidden states over the caption, as sentence-transformers does with such a folder; CLIP's text tower the state of
    the end token, projected where the folder has the projection. Raises :class:`ModelError`.
    """
    layout = sentences.read(folder) if sentences.is_layout(folder) else Sentences(folder)
    config = _read_config(layout.folder)
    if config.model_type in _POOLS:
        layout = sentences.pooled_by_itself(layout)
    tokenizer = read_tokenizer(layout.folder)
    model = _class_for(type(config), config.architectures or ())
    # BERT's pooler is for another task; most folders of sentence models come without its weights.
    more = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model.__init__).parameters else {}
    transformer = read_weights(model, config, layout.folder, device, **more)
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{layout.folder}: the tokenizer has {len(tokenizer)} entries, the model reads {config.vocab_size} "
            "(config.json, vocab_size). Copy the tokenizer files that belong to these weights."
        )
    module = SentenceModel(transformer, layout.pooling, sentences.read_steps(layout))
    return TextEncoder(uri, module.to(device).eval(), tokenizer, layout)


def _read_config(folder: Path) -> Any:
    path, kind = folder / "config.json", model_type(folder)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # an unknown model type, a value of the wrong type: the library's own classes
        refuse_code(error, folder)
        raise ModelError(f"{path} is not a valid {kind} configuration: {error}") from error
    if config.is_encoder_decoder and type(config) not in MODEL_FOR_TEXT_ENCODING_MAPPING:
        raise ModelError(f"{path}: a {kind} has no encoder of its own in transformers. Choose an encoder such as BERT.")
    return config


def _class_for(config: type[Any], architectures: Sequence[str]) -> Any:
    """Return the class for a class of configurations: the encoder of what has a decoder too; None if there is none."""
    if "CLIPTextModelWithProjection" in architectures:
        return CLIPTextModelWithProjection
    mappings = (MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING)
    return next((mapping[config] for mapping in mappings if config in mapping), None)


def _longest(transformer: Any, tokenizer: Any, layout: Sentences) -> int:
    """Return how many tokens a caption may have: as the folder says, but no more than there are positions for."""
    limits = [tokenizer.model_max_length, layout.longest or tokenizer.model_max_length]
    shortest = int(min(*limits, *positions(transformer)))
    return shortest if shortest < 10**6 else _LONGEST
