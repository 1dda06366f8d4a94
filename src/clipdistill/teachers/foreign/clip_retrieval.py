"""clip-retrieval's embedding folder.

::

    img_emb/img_emb_0.npy             [N, D], row i of each belongs to row i of the table; float16 as a rule
    text_emb/text_emb_0.npy
    metadata/metadata_0.parquet       image_path, caption, and what the pictures' .json files said (key, url, ...)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdistill.errors import StoreError, did_you_mean, need
from clipdistill.teachers.foreign.blocks import ROWS, Block, Choice, Foreign, Origin, as_caption, as_ids, load_rows

LAYOUT = "a clip-retrieval folder (img_emb/*.npy, text_emb/*.npy, metadata/*.parquet)"
#: Columns that are taken for ids, the first that is there.
ID_COLUMNS = ("image_path", "key", "url")
CAPTION = "caption"
#: What our own tables say of themselves: their captions are those of the data, to the last space.
AS_IT_IS = {b"clipdistill": b"captions as in the data"}
SIDES = ("image", "img_emb"), ("text", "text_emb")


@dataclass(frozen=True)
class Partition:
    """One table with the arrays that belong to it."""

    number: str
    arrays: dict[str, Path]
    table: Path
    rows: int


def is_clip_retrieval(path: Path) -> bool:
    """Whether ``path`` is such a folder."""
    return any((path / folder).is_dir() for _, folder in SIDES)


def read_clip_retrieval(path: Path, choice: Choice) -> Foreign:
    """Open such a folder; raises StoreError for arrays and tables that do not fit each other."""
    parts = partitions(path)
    names = need("pyarrow.parquet", "train").read_schema(parts[0].table).names
    column = _id_column(parts[0].table, names, choice.id_column)
    sides = {side for partition in parts for side in partition.arrays}
    by_caption = CAPTION in names and "text" in sides
    if column is None and (not by_caption or "image" in sides):
        raise StoreError(
            f"{parts[0].table}: no column of ids. Found: {', '.join(names)}. "
            f"Expected one of: {', '.join(ID_COLUMNS)}. Choose one with --id COLUMN."
        )
    total = sum(partition.rows * len(partition.arrays) for partition in parts)
    foreign = Foreign(LAYOUT, iter(()), total, "rows", "caption" if by_caption else "id")
    foreign.blocks = _blocks(parts, column, foreign)
    return foreign


def _id_column(table: Path, names: list[str], chosen: str | None) -> str | None:
    if chosen is not None and chosen not in names:
        raise StoreError(f"{table}: there is no column '{chosen}'.{did_you_mean(chosen, names)}")
    return chosen or next((name for name in ID_COLUMNS if name in names), None)


def partitions(path: Path) -> list[Partition]:
    """The tables of a folder with their arrays, in order; raises StoreError for what does not fit together."""
    found: dict[str, dict[str, Path]] = {}
    for side, folder in SIDES:
        for file in (path / folder).glob("*.npy"):
            found.setdefault(_number(file), {})[side] = file
    if not found:
        raise StoreError(f"{path}: there are no .npy files in {' or '.join(folder for _, folder in SIDES)}.")
    parts = [_partition(path, number, found[number]) for number in sorted(found, key=int)]
    sides = {tuple(sorted(partition.arrays)) for partition in parts}
    if len(sides) > 1:
        lone = min(parts, key=lambda partition: len(partition.arrays))
        raise StoreError(
            f"{path}: partition {lone.number} has {' and '.join(lone.arrays)} rows only, others have both."
        )
    return parts


def _number(file: Path) -> str:
    digits = re.search(r"(\d+)$", file.stem)
    if digits is None:
        raise StoreError(f"{file}: the name must end in the number of the partition, as img_emb_0.npy.")
    return digits[1]


def _partition(path: Path, number: str, arrays: dict[str, Path]) -> Partition:
    """Find a partition's table, and compare the numbers of rows."""
    table = path / "metadata" / f"metadata_{number}.parquet"
    if not table.is_file():
        raise StoreError(f"{table} is missing: it says whose the rows of {', '.join(map(str, arrays.values()))} are.")
    try:
        rows = int(need("pyarrow.parquet", "train").read_metadata(table).num_rows)
    except (OSError, ValueError) as error:
        raise StoreError(f"{table}: not a parquet file that can be read ({error})") from error
    for file in arrays.values():
        if len(load_rows(file)) != rows:
            raise StoreError(f"{file} has {len(load_rows(file))} rows, {table} has {rows}; they must be as many.")
    return Partition(number, arrays, table, rows)


def _blocks(parts: list[Partition], column: str | None, foreign: Foreign) -> Iterator[Block]:
    done = 0
    for partition in parts:
        arrays = {side: load_rows(file) for side, file in partition.arrays.items()}
        for start, table in tables(partition.table, [name for name in (column, CAPTION) if name]):
            stop = start + table.num_rows
            for side, rows in arrays.items():
                done += table.num_rows
                origin = Origin(partition.arrays[side], "row", range(start, stop))
                keys = _keys(table, column, partition.table, start, side == "text" and foreign.by == "caption")
                yield Block("image" if side == "image" else "text", keys, rows[start:stop], origin, done)


def tables(path: Path, columns: list[str]) -> Iterator[tuple[int, Any]]:
    """Read some columns of a table piece by piece, each with the number of its first row."""
    file = need("pyarrow.parquet", "train").ParquetFile(path)
    wanted = [name for name in dict.fromkeys(columns) if name in file.schema_arrow.names]
    for name in columns:
        if name not in wanted and name != CAPTION:
            raise StoreError(f"{path}: there is no column '{name}', which the first table has.")
    start = 0
    for batch in file.iter_batches(batch_size=ROWS, columns=wanted):
        yield start, batch
        start += batch.num_rows


def _keys(table: Any, column: str | None, path: Path, start: int, by_caption: bool) -> list[str]:
    if not by_caption:
        return as_ids(table.column(column).to_pylist(), str(path), f"column '{column}', row", start)
    if CAPTION not in table.schema.names:
        raise StoreError(f"{path}: there is no column '{CAPTION}', which the first table has.")
    captions = table.column(CAPTION).to_pylist()
    if (table.schema.metadata or {}).items() >= AS_IT_IS.items():
        return [value or "" for value in captions]
    return [as_caption(value) for value in captions]  # clip-retrieval takes whole text files, with how they end
