"""A store as a folder that clip-retrieval reads, and so does anything with numpy and pandas."""

from __future__ import annotations

import math
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.remote import no_commands
from clipdistill.data.samples import Source
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, DataError, StoreError, did_you_mean, need
from clipdistill.files import flush
from clipdistill.progress import console, progress
from clipdistill.teachers.foreign.clip_retrieval import AS_IT_IS
from clipdistill.teachers.manifest import FOLDERS
from clipdistill.teachers.rows import told
from clipdistill.teachers.store import EmbeddingStore

LAYOUTS = ("clip-retrieval",)
#: Samples of a partition.
SAMPLES = 65536


@dataclass(frozen=True)
class Part:
    """One partition: row i of each array belongs to entry i of each column."""

    columns: dict[str, list[str]]
    rows: dict[str, NDArray[np.float16]]
    samples: int


@dataclass
class Pairs:
    """Captions by picture id, from the data that were embedded."""

    source: Source
    positions: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.positions = {self.source[index].id: index for index in range(len(self.source))}

    def captions(self, name: str) -> list[str]:
        """All captions of a picture; raises DataError for one that is not there."""
        if name not in self.positions:
            raise DataError(f"{self.source.uri} has no picture '{name}', which the store has. Name the data embedded.")
        return told(self.source[self.positions[name]])


def export_store(
    store: EmbeddingStore | str | Path,
    out: str | Path,
    layout: str = "clip-retrieval",
    data: str | Path | Source | None = None,
    sides: str | None = None,
) -> None:
    """Write a store as img_emb/*.npy, text_emb/*.npy and metadata/*.parquet, row by row. Whole or not at all.

    Rows are float16, of view 0. With both ``sides`` there is a row for each caption, and a picture with five captions
    is there five times; which captions a picture has is read from ``data``, by default those the store was made from.

    Raises:
        ConfigError: the layout or a side is unknown or not stored.
        DataError: the data cannot be opened, or are others.
        StoreError: the store cannot be opened, or ``out`` is not empty.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout '{layout}'.{did_you_mean(layout, LAYOUTS)}")
    store = EmbeddingStore.open(store) if isinstance(store, (str, Path)) else store
    wanted = _wanted(store, sides)
    folder = Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise StoreError(f"{folder} is there already. Name another folder.")
    left_out: Counter[str] = Counter()
    parts = _parts(store, wanted, _pairs(store, wanted, data), left_out)
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    beside.mkdir(parents=True)
    try:
        rows = _write(store, wanted, beside, parts)
        if folder.is_dir():
            folder.rmdir()
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    lost = "".join(f"; left out: {count} {what}" for what, count in left_out.items() if count)
    views = store.manifest.views.count if "I" in wanted else 0
    view = f", view 0 of {views} drawn ones, which this layout cannot say: they are no whole pictures" if views else ""
    console.print(
        f"{folder}: {rows:,} rows of {' and '.join(FOLDERS[side] for side in wanted)}{view}{lost}", markup=False
    )


def _wanted(store: EmbeddingStore, sides: str | None) -> str:
    wanted = store.sides if sides is None else sides
    if not wanted or not set(wanted) <= set(store.sides):
        raise ConfigError(f"sides {sides!r} are asked for, the store {store.path} has {store.sides!r}.")
    return wanted


def _by_caption(store: EmbeddingStore) -> bool:
    return "T" in store.sides and store.manifest.sides["text"].by == "caption"


def _pairs(store: EmbeddingStore, wanted: str, data: str | Path | Source | None) -> Pairs | None:
    """Open the data that say which captions a picture has, if that must be known."""
    if set(wanted) != {"I", "T"} or not _by_caption(store):
        return None
    try:
        uri = store.manifest.source.uri if data is None else data
        with no_commands() if data is None else nullcontext():
            source = pairs(uri) if isinstance(uri, (str, Path)) else uri
    except DataError as error:
        raise DataError(
            f"which captions a picture has is read from the data, and they cannot be opened: {error} "
            "Name them with --data, or write one side alone with --sides image."
        ) from error
    return Pairs(source)


def _parts(store: EmbeddingStore, wanted: str, paired: Pairs | None, left_out: Counter[str]) -> Iterator[Part]:
    lead = "I" if "I" in wanted else "T"
    keys = store.keys(lead)
    for block in store.blocks(lead, size=SAMPLES):
        names, rows = list(islice(keys, len(block))), block.astype(np.float16)
        if paired:
            yield _pair(store, names, rows, paired, left_out)
        elif lead == "T":
            column = "caption" if _by_caption(store) else "image_path"
            yield Part({column: names}, {"text": rows}, len(names))
        elif "T" in wanted:
            at = np.flatnonzero(store.find("T", names) >= 0)
            left_out["pictures without a text row"] += len(names) - len(at)
            kept = [names[index] for index in at]
            texts = store.rows("T", kept).astype(np.float16)
            yield Part({"image_path": kept}, {"image": rows[at], "text": texts}, len(names))
        else:
            yield Part({"image_path": names}, {"image": rows}, len(names))


def _pair(
    store: EmbeddingStore, names: list[str], rows: NDArray[np.float16], paired: Pairs, left_out: Counter[str]
) -> Part:
    """A row for each caption of some pictures, ``rows [n, D]``."""
    said = [paired.captions(name) for name in names]
    left_out["pictures without a caption"] += sum(not captions for captions in said)
    at = [index for index, captions in enumerate(said) for _ in captions]
    captions = [caption for one in said for caption in one]
    texts = store.rows("T", captions).astype(np.float16)
    columns = {"image_path": [names[index] for index in at], "caption": captions}
    return Part(columns, {"image": rows[at], "text": texts}, len(names))


def _write(store: EmbeddingStore, wanted: str, folder: Path, parts: Iterator[Part]) -> int:
    """Write the partitions, named as clip-retrieval does: with so many digits that they sort; returns the rows."""
    shards = store.manifest.sides[FOLDERS["I" if "I" in wanted else "T"]].shards
    planned = sum(math.ceil(shard.samples / SAMPLES) for shard in shards)
    digits = int(math.log10(max(planned, 1))) + 1
    number = total = done = 0
    samples = sum(shard.samples for shard in shards)
    with progress(f"exporting {store.path}", samples, "samples") as advance:
        for part in parts:
            done += part.samples
            advance(done, "")
            count = len(next(iter(part.rows.values())))
            if count:
                _write_part(folder, str(number).zfill(digits), part)
                number, total = number + 1, total + count
    if not total:
        raise StoreError(f"{store.path}: there is nothing to export: no picture has a caption.")
    for inside in folder.iterdir():
        flush(inside)
    return total


def _write_part(folder: Path, number: str, part: Part) -> None:
    pyarrow, parquet = need("pyarrow", "train"), need("pyarrow.parquet", "train")
    for side, rows in part.rows.items():
        name = {"image": "img_emb", "text": "text_emb"}[side]
        (folder / name).mkdir(exist_ok=True)
        np.save(folder / name / f"{name}_{number}.npy", rows)
    (folder / "metadata").mkdir(exist_ok=True)
    table = pyarrow.table(part.columns, metadata=AS_IT_IS)
    parquet.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
