"""The layout of sentence-transformers (5.4 and later): a dual encoder whose ``encode`` takes texts and pictures."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdistill.errors import ConfigError
from clipdistill.export.layout_rows import Rows, unit
from clipdistill.models.encoder import DualEncoder

_FEATURES = {"text": "get_text_features", "image": "get_image_features"}
_NORMALIZE = "1_Normalize"
_BASE = "sentence_transformers.base.modules."


def write_sentences(encoder: DualEncoder, folder: Path) -> Rows:
    """Write a dual encoder of transformers and how its towers are called, and return what the library makes of it.

    Rows come out at unit length. Raises :class:`ConfigError` where the library is not installed.
    """
    library = _library()
    described: Any = encoder  # its files and rules are not in the interface
    described.write_files(folder)
    _put(folder / "sentence_bert_config.json", _transformer(described.input_rules()["text"]))
    _put(folder / "config_sentence_transformers.json", {"model_type": "SentenceTransformer", "prompts": {}})
    _put(folder / _NORMALIZE / "config.json", {"module_input_name": "sentence_embedding"})
    modules = (("", f"{_BASE}transformer.Transformer"), (_NORMALIZE, f"{_BASE}normalize.Normalize"))
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": kind} for place, (path, kind) in enumerate(modules)
    ]
    _put(folder / "modules.json", listed)
    return _open(library, folder)


def _transformer(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Say which methods embed, and how captions are cut and padded: left alone, the library would do it its own way."""
    padding = "max_length" if rules["padding"] == "max_length" else True
    return {
        "transformer_task": "feature-extraction",
        "modality_config": {
            side: {"method": method, "method_output_name": "pooler_output"} for side, method in _FEATURES.items()
        },
        "module_output_name": "sentence_embedding",
        "processing_kwargs": {"text": {"padding": padding, "truncation": True, "max_length": rules["length"]}},
        "do_lower_case": bool(rules.get("lower_case")),
    }


def _put(path: Path, values: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _library() -> Any:
    try:
        return importlib.import_module("sentence_transformers")
    except ImportError as error:
        raise ConfigError(
            "the layout sentence-transformers is published only after that library opened it, and it could not be "
            f"imported ({error}). Install it with: pip install 'sentence-transformers>=5.4'"
        ) from error


def _open(library: Any, folder: Path) -> Rows:
    model: Any = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)

    def encode(inputs: Any) -> Any:
        return unit(model.encode(list(inputs), batch_size=len(inputs), show_progress_bar=False))

    return Rows(images=encode, texts=encode)
