"""The layout of immich's machine learning: two ONNX graphs, ``textual`` and ``visual``, each with its rules beside it.

Shapes: ``B`` rows, ``L`` tokens, ``D`` joint width.
"""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from clipdistill.data.views import Transform
from clipdistill.errors import ModelError
from clipdistill.export.graphs import Side, write_graph
from clipdistill.export.layout_rows import Rows, unit, unmended
from clipdistill.export.layout_tokens import write_lowered
from clipdistill.export.reading import TOKENIZER, write_tokenizer
from clipdistill.models.encoder import DualEncoder, Inputs
from clipdistill.models.vocabulary import write_tokenizer as write_tokenizer_files
from clipdistill.search.pixels import read_pixels
from clipdistill.search.tokens import TextRules

_CONFIG, _PREPROCESS, _TOKENIZER_CONFIG = "config.json", "preprocess_cfg.json", "tokenizer_config.json"
_GRAPHS: dict[Side, str] = {"image": "visual/model.onnx", "text": "textual/model.onnx"}
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def refuse_for_immich(encoder: DualEncoder) -> str | None:
    """Say why immich cannot hold a model; None if it can."""
    if encoder.sides != "IT" or encoder.transform is None:
        return "it is no pair of towers, expected one for pictures and one for captions"
    if preprocess_cfg(encoder.transform) is None:
        return "its pictures are prepared in a way immich has no setting for, expected a square resize or a squash"
    return None


def preprocess_cfg(transform: Transform) -> dict[str, Any] | None:
    """Write a transform as immich, and open_clip, describe one; None for one they cannot.

    They resize the shorter side and cut a square of the same size out of the middle (``shortest``), or make the whole
    picture square (``squash``).
    """
    side = transform.size[0]
    square = (side, side)
    if transform.resize == side and transform.crop == square:
        mode = "shortest"
    elif transform.resize == square and transform.crop in (None, square):
        mode = "squash"
    else:
        return None
    if transform.rescale != 1 / 255 or transform.patch_size is not None:
        return None
    return {
        "size": [side, side],
        "mode": "RGB",
        "mean": list(transform.mean or (0.0,) * 3),
        "std": list(transform.std or (1.0,) * 3),
        "interpolation": Image.Resampling(transform.resample).name.lower(),
        "resize_mode": mode,
    }


class _Towers:
    """A model whose inputs are called, and typed, as immich gives them.

    ``image [B, 3, h, w]`` is the pixels, ``text int32 [B, L]`` the ids, of which those equal to ``pad_id`` are masked
    where the tower takes a mask.
    """

    def __init__(self, encoder: DualEncoder, rules: TextRules) -> None:
        self.uri, self.module, self.sides = encoder.uri, encoder.module, encoder.sides
        self._encoder, self._rules = encoder, rules

    def images(self, pixels: Inputs) -> Tensor:
        return self._encoder.images({"pixel_values": pixels["image"]})

    def texts(self, tokens: Inputs) -> Tensor:
        ids = tokens["text"].long()
        given = {
            "input_ids": ids,
            "attention_mask": (ids != self._rules.pad_id).long(),
            "token_type_ids": torch.zeros_like(ids),
        }
        return self._encoder.texts({name: given[name] for name in self._rules.inputs})


def write_immich(encoder: DualEncoder, folder: Path) -> Rows:
    """Write both graphs and their rules, and return what onnxruntime makes of them.

    Raises :class:`ModelError` for a model whose captions immich cannot prepare.
    """
    assert encoder.transform is not None
    for side in ("textual", "visual"):
        (folder / side).mkdir()
    rules = _write_text_rules(encoder, folder / "textual")
    towers = cast(DualEncoder, _Towers(encoder, rules))
    size = encoder.transform.size
    write_graph(towers, "image", {"image": torch.zeros(2, 3, *size)}, folder / _GRAPHS["image"], own_length=False)
    ids = torch.from_numpy(_Reader(folder)(["a photo of two dogs", "a red circle"]))
    write_graph(towers, "text", {"text": ids}, folder / _GRAPHS["text"], own_length=False)
    _put(folder / "visual" / _PREPROCESS, preprocess_cfg(encoder.transform))
    cleaning = {"tokenizer_kwargs": {"clean": rules.clean}} if rules.clean == "canonicalize" else {}
    text = {"context_length": rules.length, "vocab_size": len(encoder.tokenizer), **cleaning}
    _put(folder / _CONFIG, {"embed_dim": encoder.width, "vision_cfg": {"image_size": size[0]}, "text_cfg": text})
    return _open(encoder, folder)


def _write_text_rules(encoder: DualEncoder, folder: Path) -> TextRules:
    """Write the tokenizer with the padding immich is to use; raises :class:`ModelError` for rules it does not have."""
    write_tokenizer_files(encoder.tokenizer, folder)
    rules = write_lowered(folder, write_tokenizer(encoder, folder))
    if rules.prompt or rules.blank is not None or {rules.pad_side, rules.cut_side} != {"right"}:
        raise ModelError(
            f"{encoder.uri}: immich pads and cuts captions on the right and puts nothing before them, which this "
            "model's captions need otherwise. Use the layout transformers.js, or no --layout."
        )
    path = folder / _TOKENIZER_CONFIG
    pad = Tokenizer.from_file(str(folder / TOKENIZER)).id_to_token(rules.pad_id)
    # immich looks the padding up by its name: of open_clip's own tokenizer that is not what its files say.
    _put(path, {**json.loads(path.read_text(encoding="utf-8")), "pad_token": pad, "model_max_length": rules.length})
    return replace(rules, fixed=True)


def _put(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class _Reader:
    """Captions to ``int32 [B, L]`` by a folder's files, as immich reads them."""

    def __init__(self, folder: Path) -> None:
        text = folder / "textual"
        self._tokenizer = Tokenizer.from_file(str(text / TOKENIZER))
        about = json.loads((text / _TOKENIZER_CONFIG).read_text(encoding="utf-8"))
        length, pad = about["model_max_length"], about["pad_token"]
        self._tokenizer.enable_padding(length=length, pad_token=pad, pad_id=self._tokenizer.token_to_id(pad))
        self._tokenizer.enable_truncation(max_length=length)

    def __call__(self, captions: Sequence[str]) -> NDArray[np.int32]:
        return np.array([one.ids for one in self._tokenizer.encode_batch(list(captions))], np.int32)


def _open(encoder: DualEncoder, folder: Path) -> Rows:
    """Open both graphs with onnxruntime, and feed them what immich does: clean captions, ids, prepared pixels."""
    import onnxruntime as library

    sessions = {
        side: library.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        for side, name in _GRAPHS.items()
    }
    reader = _Reader(folder)
    canonical = "tokenizer_kwargs" in json.loads((folder / _CONFIG).read_text(encoding="utf-8"))["text_cfg"]

    def images(pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
        assert encoder.transform is not None
        pixels = read_pixels(encoder.transform, list(pictures))["pixel_values"]
        return unit(sessions["image"].run(None, {"image": pixels})[0])

    def texts(captions: Sequence[str]) -> NDArray[np.float32]:
        return unit(sessions["text"].run(None, {"text": reader([_tidy(one, canonical) for one in captions])})[0])

    return Rows(images, texts, lambda captions: _clean_ones(encoder, captions, canonical))


def _tidy(caption: str, canonical: bool) -> str:
    """Do to a caption what immich does before its tokenizer."""
    caption = " ".join(caption.split())
    return caption.translate(_NO_PUNCTUATION).lower() if canonical else caption


def _clean_ones(encoder: DualEncoder, captions: Sequence[str], canonical: bool) -> list[str]:
    """Tidy captions, and leave out those that open_clip would mend besides: immich does not."""
    tidy = list(dict.fromkeys(_tidy(caption, canonical) for caption in captions))
    described: Any = encoder
    return unmended(tidy) if "tokenizer" in described.input_rules()["text"] else tidy
