"""Rows of pictures that somebody embedded before, whatever the files: in blocks, with what is said of each picture.

Shapes: ``n`` rows of a block, ``D`` width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import StoreError, did_you_mean
from clipdistill.teachers.foreign import open_foreign
from clipdistill.teachers.foreign.blocks import ROWS, Block, Choice, as_caption, as_ids, load_rows
from clipdistill.teachers.foreign.clip_retrieval import is_clip_retrieval, partitions, tables
from clipdistill.teachers.manifest import MANIFEST
from clipdistill.teachers.store import EmbeddingStore

#: What export of an index leaves beside clip-retrieval's files: the model's fingerprint.
RECORD = "clipdistill.json"
#: Columns that are taken for ids, for the place of the picture, and for its caption: the first that is there.
ID_COLUMNS = ("id", "ids", "image_id", "image_path", "file_name", "key", "uid", "url")
PLACES = ("image_path", "file_name", "path", "url")
CAPTIONS = ("caption", "text", "title")
_SIZES = ("width", "height")


@dataclass(frozen=True)
class Said:
    """What the files say of a picture; ``place`` is a path or an address, "" where they do not.

    ``url`` is the address where ``place`` is something else, as clip-retrieval writes the key in a shard.
    """

    place: str = ""
    caption: str = ""
    tags: tuple[str, ...] = ()
    hash: str = ""
    width: int = 0
    height: int = 0
    url: str = ""


@dataclass(frozen=True)
class Rows:
    """Some rows ``[n, D]`` as they were written, with ids, what is said of each, and where they stand."""

    ids: list[str]
    rows: NDArray[Any]
    said: list[Said]
    where: str


@dataclass
class Embedded:
    """Files of one layout, opened: ``total`` rows, to be read once, of the model with ``fingerprint``, if they say so.

    ``data`` is the URI of the pictures, where the files name it.
    """

    layout: str
    blocks: Iterator[Rows]
    total: int
    fingerprint: str = ""
    data: str = ""
    remarks: list[str] = field(default_factory=list)


def open_rows(path: Path, id_column: str | None = None) -> Embedded:
    """Recognise what was embedded by what is there, and open it: a store, clip-retrieval's folder, arrays with a table.

    Raises :class:`StoreError` for other files, for rows that are not of whole pictures, and for what does not fit.
    """
    if (path / MANIFEST).is_file():
        return _open_store(EmbeddingStore.open(path))
    if is_clip_retrieval(path):
        return _open_clip_retrieval(path, id_column)
    if path.suffix == ".npy" and (table := _table_beside(path)):
        return _open_array(path, table, id_column)
    foreign = open_foreign(path, Choice(id_column))
    if foreign.views.count:
        raise StoreError(_drawn(str(path), foreign.views.count))
    return Embedded(foreign.name, map(_block, (one for one in foreign.blocks if one.side == "image")), foreign.total)


def _open_store(store: EmbeddingStore) -> Embedded:
    if "I" not in store.sides:
        raise StoreError(f"the store {store.path} holds captions, and an index is of pictures.")
    if store.manifest.views.count:
        raise StoreError(_drawn(str(store.path), store.manifest.views.count))

    def blocks() -> Iterator[Rows]:
        keys = store.keys("I")
        for rows in store.blocks("I", size=ROWS):
            ids = list(islice(keys, len(rows)))
            yield Rows(ids, rows, [Said()] * len(ids), str(store.path))

    about = store.manifest
    return Embedded("a store", blocks(), len(store), about.model.fingerprint, about.source.uri)


def _drawn(where: str, views: int) -> str:
    return (
        f"{where} holds {views} drawn views of each picture, and an index is of whole pictures. "
        "Embed them with: clipdistill embed PHOTOS --model MODEL --views 0 --out STORE"
    )


def _open_clip_retrieval(path: Path, id_column: str | None) -> Embedded:
    parts = partitions(path)
    if "image" not in parts[0].arrays:
        raise StoreError(f"{path} holds text_emb alone, and an index is of pictures: there is no img_emb.")

    def blocks() -> Iterator[Rows]:
        for part in parts:
            array = load_rows(part.arrays["image"])
            for start, table in tables(part.table, _names(part.table)):
                columns = {name: table.column(name).to_pylist() for name in table.schema.names}
                yield _joined(array[start : start + table.num_rows], columns, id_column, part.table, start)

    return Embedded("a clip-retrieval folder", blocks(), sum(part.rows for part in parts), _fingerprint(path / RECORD))


def _names(table: Path) -> list[str]:
    """Those columns of a table that an index has a use for, or could have ids in."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    flat = pa.types.is_string, pa.types.is_large_string, pa.types.is_integer
    schema = parquet.read_schema(table)
    return [one.name for one in schema if one.name == "tags" or any(is_one(one.type) for is_one in flat)]


def _fingerprint(record: Path) -> str:
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["fingerprint"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{record} does not say a model's fingerprint ({error}). Delete it, or write it anew."
        ) from error


def _table_beside(array: Path) -> Path | None:
    stems = array.stem, "metadata"
    beside = (array.with_name(stem + ending) for stem in stems for ending in (".parquet", ".jsonl"))
    return next((path for path in beside if path.is_file()), None)


def _open_array(path: Path, table: Path, id_column: str | None) -> Embedded:
    array, lines = load_rows(path), _lines if table.suffix == ".jsonl" else _batches

    def blocks() -> Iterator[Rows]:
        start = 0
        for columns in lines(table):
            count = len(next(iter(columns.values()), []))
            if start + count > len(array):
                break
            yield _joined(array[start : start + count], columns, id_column, table, start)
            start += count
        else:
            if start == len(array):
                return
        raise StoreError(f"{path} has {len(array)} rows, and {table} not as many; they must be.")

    return Embedded(f"an array with {table.name}", blocks(), len(array))


def _batches(table: Path) -> Iterator[dict[str, list[Any]]]:
    for _, batch in tables(table, _names(table)):
        yield {name: batch.column(name).to_pylist() for name in batch.schema.names}


def _lines(table: Path) -> Iterator[dict[str, list[Any]]]:
    with table.open("rb") as file:
        numbered = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        while part := list(islice(numbered, ROWS)):
            rows = [_object(table, number, line) for number, line in part]
            yield {
                name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)
            }


def _object(table: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        row = json.loads(text := line.decode("utf-8-sig"))
    except ValueError as error:
        raise StoreError(f"{table}:{number}: not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise StoreError(f'{table}:{number}: found {text.strip()[:60]}, expected {{"id": "...", ...}}.')
    return row


def _joined(
    rows: NDArray[Any], columns: Mapping[str, Sequence[Any]], id_column: str | None, table: Path, start: int
) -> Rows:
    """Put rows and what a table says of them together; raises :class:`StoreError` for one without ids."""
    name = id_column or next((one for one in ID_COLUMNS if one in columns), None)
    if name is None or name not in columns:
        what = f"there is no column '{name}'" if name else f"no column of ids, expected {', '.join(ID_COLUMNS)}"
        raise StoreError(f"{table}: {what}.{did_you_mean(name or 'id', columns)} Choose one with --id COLUMN.")
    ids = as_ids(columns[name], str(table), f"column '{name}', row", start)
    said = [_said({one: values[at] for one, values in columns.items()}) for at in range(len(ids))]
    return Rows(ids, rows, said, f"{table}, rows {start} to {start + len(ids)}")


def _said(row: Mapping[str, Any]) -> Said:
    place, caption = (next((row[one] for one in names if row.get(one)), "") for names in (PLACES, CAPTIONS))
    tags = row.get("tags")
    width, height = (size if isinstance(size := row.get(name), int) and 0 < size < 1 << 31 else 0 for name in _SIZES)
    return Said(
        str(place),
        as_caption(caption),
        tuple(map(str, tags)) if isinstance(tags, list) else (),
        str(row.get("hash") or ""),
        width,
        height,
        str(row.get("url") or ""),
    )


def _block(block: Block) -> Rows:
    return Rows(block.keys, np.asarray(block.rows), [Said(key) for key in block.keys], block.origin.place(0))
