"""Other people's embedding files behind one function: ``import_store(path, out)``.

One file reads each layout into blocks of rows (``blocks.py``); ``filling.py`` makes a store of them.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from clipdistill.data.samples import Source
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, StoreError
from clipdistill.progress import console
from clipdistill.teachers.foreign import arrays, clip_retrieval, features, reinforced
from clipdistill.teachers.foreign.blocks import Choice, Foreign
from clipdistill.teachers.foreign.filling import fill
from clipdistill.teachers.foreign.known import Known
from clipdistill.teachers.manifest import Data, Manifest, Model, Side
from clipdistill.teachers.store import EmbeddingStore, finish

LAYOUTS = (clip_retrieval.LAYOUT, reinforced.LAYOUT, features.LAYOUT, arrays.LAYOUT)
#: The logit scale of OpenAI's CLIP models, and of nearly all trained since: the most their training allows.
CLIP_SCALE = 100.0


@dataclass(frozen=True)
class Facts:
    """What the manifest says of the model that gave the rows; width None where nobody knows it beforehand."""

    fingerprint: str
    scale: float
    bias: float | None
    width: int | None


def import_store(
    path: str | Path,
    out: str | Path,
    model: str = "",
    scale: float | None = None,
    id_column: str | None = None,
    columns: tuple[int, int] | None = None,
    data: str | Path | Source | None = None,
) -> EmbeddingStore:
    """Make a store, of float16 unit rows, from what another program embedded; ``out`` appears whole or not at all.

    ``model`` is the model that gave them: without ``scale`` it is loaded for its logit scale, and compared in width.
    ``columns`` (0, 768) takes one teacher's part of rows that hold several. With ``data``, the data that were
    embedded, pictures get the ids that these have for them, and rows of other pictures are left out.

    Raises:
        StoreError: ``path`` is of no known layout or malformed (with file, line or row), or ``out`` is not empty.
        ConfigError: an argument does not fit the layout.
        ModelError: ``model`` cannot be loaded.
    """
    folder = Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise StoreError(f"{folder} is there already. Name another folder for the store.")
    source = pairs(data) if isinstance(data, (str, Path)) else data
    choice = Choice(id_column, source, Known(source) if source else None)
    foreign = open_foreign(Path(path), choice)
    facts = _facts(model, scale)
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    beside.mkdir(parents=True)
    try:
        _make(beside, foreign, Path(path), model, facts, columns, choice)
        if folder.is_dir():
            folder.rmdir()
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    store = EmbeddingStore.open(folder)
    if scale is None and not model:
        foreign.remarks.append(f"the scale is taken to be CLIP's, {CLIP_SCALE:g}: say --model or --scale otherwise")
    _tell(store, foreign)
    return store


def open_foreign(path: Path, choice: Choice) -> Foreign:
    """Recognise the layout of ``path`` by what is there, and open it; raises StoreError with the known layouts."""
    if not path.exists() and not features.find_features(path):
        raise StoreError(f"{path}: there is no such file or folder.")
    if clip_retrieval.is_clip_retrieval(path):
        return clip_retrieval.read_clip_retrieval(path, choice)
    if reinforced.find_shards(path):
        return reinforced.read_reinforced(path, choice)
    if choice.id_column is not None and path.suffix != ".parquet":
        raise ConfigError(f"{path} has no columns to choose ids from: leave --id {choice.id_column} out.")
    if features.find_features(path):
        return features.read_features(path, choice)
    if arrays.is_arrays(path):
        return arrays.read_arrays(path, choice)
    raise StoreError(f"{path} is of no known layout. Known: {'; '.join(LAYOUTS)}.")


def _facts(model: str, scale: float | None) -> Facts:
    if scale is not None and not scale > 0:
        raise ConfigError(f"the scale is {scale}, expected a number above 0.")
    if not model or scale is not None:
        return Facts("", scale or CLIP_SCALE, None, None)
    from clipdistill.models.loading import load

    encoder = load(model)
    bias = None if encoder.bias is None else float(encoder.bias)
    return Facts(encoder.fingerprint, encoder.scale, bias, encoder.width)


def _make(
    folder: Path,
    foreign: Foreign,
    path: Path,
    model: str,
    facts: Facts,
    columns: tuple[int, int] | None,
    choice: Choice,
) -> None:
    """Fill ``folder`` and finish it."""
    counts = fill(folder, foreign, columns, choice.known)
    if not counts["image"] and not counts["text"]:
        raise StoreError(f"{path}: no row is left to import.{_left_out(foreign)}")
    if facts.width not in (None, counts["width"]):
        raise StoreError(
            f"{path}: rows are {counts['width']} wide, those of {model} {facts.width}. Name the model that gave them, "
            "or take its part of the rows with --columns FIRST:END."
        )
    source = Data(str(path), "", counts["image"] or counts["text"])
    if choice.source is not None:
        source = Data(choice.source.uri, choice.source.fingerprint, len(choice.source))
    manifest = Manifest(
        model=Model(model, facts.fingerprint),
        source=source,
        width=counts["width"],
        scale=facts.scale,
        bias=facts.bias,
        views=foreign.views,
        sides={"text": Side(by=foreign.by)},
    )
    finish(folder, manifest)


def _tell(store: EmbeddingStore, foreign: Foreign) -> None:
    """Say what was imported, and what was not."""
    held = ", ".join(f"{side.samples:,} {name} samples" for name, side in store.manifest.sides.items())
    console.print(
        f"{store.path}: {held}, width {store.width}, scale {store.scale:g}, from {foreign.name}", markup=False
    )
    for remark in [*foreign.remarks, *filter(None, [_left_out(foreign).strip()])]:
        console.print(f"{store.path}: {remark}", markup=False)


def _left_out(foreign: Foreign) -> str:
    found = [f"{count:,} {what}" for what, count in foreign.left_out.items() if count]
    return f" Left out: {'; '.join(found)}." if found else ""
