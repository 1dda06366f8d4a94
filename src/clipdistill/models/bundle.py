"""A model folder that every tool of the field opens, with a record of where the model came from."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from clipdistill.errors import ModelError
from clipdistill.files import object_in
from clipdistill.models.hub import is_hub_name
from clipdistill.models.layout_cards import USAGES

RECORD = "clipdistill.json"
SCHEMA = 1
_PACKAGES = (
    *("clipdistill", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow"),
    *("open_clip_torch", "timm"),
)


#: Licences that the hub has an identifier for.
_IDENTIFIERS = re.compile(
    r"mit|apache-2\.0|apple-(amlr|ascl)|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[234]\.0|bsd(-[23]-clause)?|isc|unlicense"
    r"|a?gpl-3\.0|gpl(-2\.0)?|lgpl(-[23]\.[01])?|openrail(\+\+)?|bigscience-openrail-m|gemma|etalab-2\.0"
)


class Saveable(Protocol):
    """What a bundle needs of an encoder: its files, its fingerprint and its input rules."""

    uri: str
    width: int
    classes: tuple[str, ...]

    @property
    def fingerprint(self) -> str: ...

    def input_rules(self) -> dict[str, Any]: ...

    def write_files(self, folder: Path) -> None: ...


def save_bundle(encoder: Saveable, folder: Path, card: Mapping[str, Any]) -> None:
    """Write the encoder's standard files, ``clipdistill.json`` and a model card, whole or not at all.

    ``card`` goes into the record as it is. The model card shows the keys ``name``, ``teachers`` ({letter: uri}),
    ``recipe`` (a name, or a mapping with one), ``data`` ({"uri", "fingerprint"}), ``training``, ``metrics``
    ({metric: value}, or {model: {metric: value}}), ``licence``, ``licences`` ({what: licence}), ``licence_chain`` (see
    :func:`clipdistill.models.licences.as_card`), ``languages``, ``pretrained`` (the model that training started from)
    and ``library`` (transformers, or open_clip). A previous bundle at ``folder`` is replaced; any other folder that is
    not empty is refused with a :class:`ModelError`.
    """
    folder = Path(folder)
    _refuse_foreign(folder, card)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        encoder.write_files(fresh)
        record = _record(encoder, card)
        (fresh / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (fresh / "README.md").write_text(model_card(record), encoding="utf-8")
        fresh.chmod(0o777 & ~_umask())  # mkdtemp makes folders that only their owner can read
        _put_in_place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _refuse_foreign(folder: Path, card: Mapping[str, Any]) -> None:
    if folder.is_file():
        raise ModelError(f"cannot save a model to {folder}: it is a file. Give the name of a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not _is_alike(folder / RECORD, card):
        raise ModelError(
            f"will not replace {folder}: it holds files and no {RECORD} of a saved model of ours. "
            "Choose another folder, or empty this one."
        )


def _is_alike(path: Path, card: Mapping[str, Any]) -> bool:
    """Whether a record is that of a model saved as this one will be: not of an exported graph, or of an index."""
    found = object_in(path)
    return "inputs" in found and "runtime" not in found and ("layout" in found) == ("layout" in card)


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Rename the new folder to its name; a previous one steps aside first and comes back if that fails."""
    if not folder.exists():
        fresh.replace(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent)) / "previous"
    folder.replace(aside)
    try:
        fresh.replace(folder)
    except OSError:
        aside.replace(folder)
        raise
    finally:
        shutil.rmtree(aside.parent, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _record(encoder: Saveable, card: Mapping[str, Any]) -> dict[str, Any]:
    record = {
        **card,
        "schema": SCHEMA,
        "fingerprint": encoder.fingerprint,
        "width": encoder.width,
        **({"classes": encoder.classes} if encoder.classes else {}),
        "inputs": encoder.input_rules(),
        "packages": versions(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(record, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    """Turn what JSON does not know into what it does: arrays and numbers of numpy and torch, paths."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


@cache  # reads a file of each package
def versions() -> Mapping[str, str]:
    """Return the installed versions of the packages that a model or a run depends on."""
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def model_card(record: Mapping[str, Any]) -> str:
    """Write the README.md of a bundle from its record: a YAML header for the hub, then text."""
    header = yaml.safe_dump(_header(record), sort_keys=False, allow_unicode=True)
    sections = [_what(record), _training(record), _evaluation(record), _usage(record), _licences(record)]
    return f"---\n{header}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _header(record: Mapping[str, Any]) -> dict[str, Any]:
    header: dict[str, Any] = {
        **_licence_of(record),
        "language": record.get("languages"),
        "library_name": record.get("library", "transformers"),
        "pipeline_tag": _pipeline(record),
        "tags": [
            *(["clip"] if _has_text(record) and _has_pictures(record) else []),
            *(["knowledge-distillation"] if record.get("teachers") else []),
        ],
    }
    if base := _base(str(record.get("pretrained") or "")):
        # The hub infers a relation where none is given, and often a wrong one.
        header |= {"base_model": base, "base_model_relation": "finetune"}
    elif hub := [name for uri in _teachers(record).values() if (name := _hub_name(uri))]:
        header["base_model"] = hub
    return {key: value for key, value in header.items() if value is not None}


def _licence_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The licence as the hub writes it: it has identifiers of its own, and a name of their own for all others."""
    licence = record.get("licence")
    if not licence or _IDENTIFIERS.fullmatch(licence):
        return {"license": licence}
    links = [link.get("address") for link in record.get("licence_chain") or [] if link["licence"] == licence]
    return {"license": "other", "license_name": licence, "license_link": next(filter(None, links), None)}


def _has_text(record: Mapping[str, Any]) -> bool:
    return "text" in record["inputs"]


def _has_pictures(record: Mapping[str, Any]) -> bool:
    return "transform" in record["inputs"]


def _pipeline(record: Mapping[str, Any]) -> str:
    """Return the task under which the hub lists the model."""
    if not _has_pictures(record):
        return "sentence-similarity"
    if _has_text(record):
        return "zero-shot-image-classification"
    return "image-classification" if record.get("classes") else "image-feature-extraction"


def _teachers(record: Mapping[str, Any]) -> dict[str, str]:
    return {str(letter): str(uri) for letter, uri in (record.get("teachers") or {}).items()}


def _base(uri: str) -> str | None:
    """Name what training started from as the hub does, which refuses a card that names a folder; None for a folder."""
    return _hub_name(uri) or (uri if is_hub_name(uri) and not Path(uri).exists() else None)


def _hub_name(uri: str) -> str | None:
    for scheme in ("hf:", "hf-hub:"):
        if uri.startswith(scheme):
            return uri.removeprefix(scheme)
    return None


def _what(record: Mapping[str, Any]) -> str:
    classes, width = record.get("classes") or (), record["width"]
    kind = "CLIP" if _has_text(record) else "image classifier" if classes else "image encoder"
    title = "A dual encoder of images and texts" if _has_text(record) else f"An {kind}"
    teachers = ", ".join(f"`{uri}`" for uri in _teachers(record).values())
    origin = f"distilled from {teachers}" if teachers else "trained" if record.get("recipe") else "exported"
    article = "A" if _has_text(record) else "An"
    if not _has_pictures(record):
        kind, title = "text encoder", "A text encoder"
    lines = [f"# {record.get('name') or title}", ""]
    lines.append(f"{f'A small {kind}' if teachers else f'{article} {kind}'} {origin} with clipdistill.")
    if not _has_pictures(record):
        lines.append(f"A caption becomes a row of {width} numbers; normalise before comparing.")
    elif _has_text(record):
        lines.append(f"Pictures and captions meet in {width} dimensions; normalise before comparing.")
    else:
        head = f"; its head tells {len(classes)} classes apart" if classes else ""
        lines.append(f"A picture becomes a row of {width} numbers{head}.")
    return "\n".join(lines)


def _training(record: Mapping[str, Any]) -> str:
    recipe = record.get("recipe")
    data = record.get("data") or {}
    facts = {
        "recipe": recipe.get("name", "its own") if isinstance(recipe, Mapping) else recipe,
        "data": data.get("uri") if isinstance(data, Mapping) else data,
        "started from": record.get("pretrained"),
        **(record.get("training") or {}),
    }
    rows = [f"- {key}: {value}" for key, value in facts.items() if value is not None]
    return "\n".join(["## Training", "", *rows]) if rows else ""


def _evaluation(record: Mapping[str, Any]) -> str:
    metrics = record.get("metrics") or {}
    if not metrics:
        return ""
    columns = metrics if all(isinstance(value, Mapping) for value in metrics.values()) else {"this model": metrics}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [
        f"| {name} | " + " | ".join(_cell(column.get(name)) for column in columns.values()) + " |" for name in names
    ]
    head = ["| metric | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join(["## Evaluation", "", *head, *rows])


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


_USAGE = """## Use

```python
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(".")  # this folder
processor = AutoProcessor.from_pretrained(".")
texts = ["a red circle", "a dog"]
inputs = processor(text=texts, images=Image.open("a.jpg"), {padding}, return_tensors="pt")
with torch.no_grad():
    print(model(**inputs).logits_per_image)
```"""


_USAGE_OF_OPEN_CLIP = """## Use

```python
import open_clip
import torch
from PIL import Image

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:.")  # this folder
tokenizer = open_clip.get_tokenizer("local-dir:.")
model.eval()
with torch.no_grad():
    pictures = model.encode_image(preprocess(Image.open("a.jpg"))[None], normalize=True)
    captions = model.encode_text(tokenizer(["a red circle", "a dog"]), normalize=True)
print(model.logit_scale.exp() * pictures @ captions.T)
```"""


_USAGE_OF_PICTURES = """## Use

```python
from transformers import pipeline

model = pipeline("{task}", ".")  # this folder
print(model("a.jpg"))
```"""


_USAGE_OF_TEXTS = """## Use

```python
from clipdistill.models.loading import load

model = load(".")  # this folder
print(model.texts(model.tokenize(["a red circle", "a dog"])))
```"""

_USAGE_OF_SENTENCES = """## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")  # this folder
print(model.encode(["a red circle", "a dog"]))
```"""


_USAGE_OF_GRAPHS = """## Use

```python
from clipdistill.search.runtime import Runtime

model = Runtime.open(".")  # this folder; needs no torch
{lines}
```"""


def _usage(record: Mapping[str, Any]) -> str:
    if record.get("layout") in USAGES:
        return USAGES[record["layout"]]
    if record.get("library") == "onnx":
        pictures = ['print(model.images(["a.jpg"]))'] if _has_pictures(record) else []
        captions = ['print(model.texts(["a red circle", "a dog"]))'] if _has_text(record) else []
        return _USAGE_OF_GRAPHS.replace("{lines}", "\n".join(pictures + captions))
    if not _has_pictures(record):
        return _USAGE_OF_SENTENCES if record.get("library") == "sentence-transformers" else _USAGE_OF_TEXTS
    if not _has_text(record):
        return _USAGE_OF_PICTURES.replace("{task}", _pipeline(record))
    if record.get("library") == "open_clip":
        return _USAGE_OF_OPEN_CLIP
    rules = record["inputs"]["text"]
    fixed = f'padding="max_length", max_length={rules["length"]}'
    return _USAGE.replace("{padding}", fixed if rules["padding"] == "max_length" else "padding=True")


def _licences(record: Mapping[str, Any]) -> str:
    chain = record.get("licences") or {}
    rows = [f"- {what}: {licence}" for what, licence in chain.items()]
    for link in record.get("licence_chain") or []:
        rows.append(f"- {link['role']} `{link['model']}`: {link['licence']}, {link['use']} (from {link['source']})")
    if any(link["use"] == "research only" for link in record.get("licence_chain") or []):
        rows += ["", "**For research only**: so says the licence of a model that this one was made from."]
    rows = rows or ["The licences of the teachers and of the data were not recorded; they apply to this model too."]
    return "\n".join(["## Licences", "", *rows])
