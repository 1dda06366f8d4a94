"""The rows of a Hugging Face dataset as samples by position: Arrow mapped into memory, pictures left encoded in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.samples import Picture, Sample
from clipdistill.data.sources.arrow_columns import captions, check_known, choose_columns, picture_form
from clipdistill.data.sources.listed import picture_size
from clipdistill.data.sources.tables import OWN_ID, Columns
from clipdistill.errors import DataError, need
from clipdistill.progress import console

_BLOCK = 10_000  # rows hashed at a time


@dataclass(frozen=True, eq=False)
class ArrowPicture:
    """The encoded picture in the column ``column`` of row ``row``; ``form`` says how the column holds it."""

    uri: str
    rows: Any
    column: str
    form: str
    row: int

    @property
    def size(self) -> int:
        """Its bytes, counted without reading them."""
        return int(self._value().as_buffer().size)

    def read_bytes(self) -> bytes:
        """Read it now, and nothing else of the table."""
        return bytes(self._value().as_py())

    def _value(self) -> Any:
        value = self.rows[self.row].column(self.column)[0]
        return value["bytes"] if self.form == "struct" else value

    def __str__(self) -> str:
        return f"{self.uri}: row {self.row}"


@dataclass(frozen=True)
class Files:
    """Which files the paths of pictures mean: those from ``folder`` on, or what lies where it was ``fetched`` to.

    Rows that came from elsewhere could name any file of this machine.
    """

    folder: Path | None = None
    fetched: tuple[Path, ...] = ()

    def find(self, path: str | None) -> Path | None:
        """The file that a path means, None for one that is nobody's to name."""
        if path is None:
            return None
        if self.folder is not None:
            return self.folder / path
        found = Path(os.path.normpath(path))
        return found if any(found.is_relative_to(root) for root in self.fetched) else None


@dataclass
class ArrowRows:
    """The rows that have a picture, in their order; all of them where pictures are left aside.

    ``rows`` is a :class:`datasets.Dataset` of the chosen columns alone, which gives Arrow tables; ``splits`` is how
    many of them each split has, in their order, and empty where there is only one; ``kept`` are the numbers of the
    rows, ``int64 [N]``; ``form`` is how pictures are held, None where only their sizes are told; ``names`` is what
    the numbers of a column of labels mean, ``files`` what paths of pictures mean. Captions too stay in the files
    until they are asked for.
    """

    uri: str
    rows: Any
    splits: Mapping[str, int]
    columns: Columns
    id: str | None
    kept: NDArray[np.int64]
    form: str | None
    names: Mapping[str, list[str]]
    files: Files

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Sample:
        row = int(self.kept[index])
        table = self.rows[row]
        told = {name: table.column(name)[0].as_py() for name in self._words}
        views = (("", self.columns.caption), ("syn", self.columns.synthetic))
        texts = {view: list(dict.fromkeys(captions(told[name]))) for view, name in views if name}
        return Sample(
            self._place(row) if self.id is None else str(told[self.id]),
            self._picture(table, row),
            {view: found for view, found in texts.items() if found or view == ""},
            self._one(told, self.columns.label),
            self._one(told, self.columns.group),
        )

    def _place(self, row: int) -> str:
        """The number of a row in its split, behind the split's name if there are several."""
        for name, size in self.splits.items():
            if row < size:
                return f"{name}/{row}"
            row -= size
        return str(row)

    @cached_property
    def _words(self) -> list[str]:
        """The columns that are read for every sample: all but the pictures."""
        return [name for name in self.rows.column_names if name != self.columns.image]

    def _picture(self, table: Any, row: int) -> Picture | None:
        column = self.columns.image
        if column is None or self.form is None:
            return None
        value = table.column(column)[0]
        if self.form == "path" or (self.form == "struct" and not value["bytes"].is_valid):
            return self.files.find((value if self.form == "path" else value["path"]).as_py())
        return ArrowPicture(self.uri, self.rows, column, self.form, row)

    def _one(self, told: Mapping[str, Any], column: str | None) -> str | None:
        value = told[column] if column else None
        if column is None or value is None or value == "":
            return None
        if column not in self.names:
            return str(value)
        return self.names[column][value] if value >= 0 else None  # -1 stands for no label

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids, captions, labels, groups and sizes of pictures, in order: 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        names = [self.names.get(self.columns.label or ""), self.id]
        splits = [dict(self.splits)] if self.splits and self.id is None else []
        digest.update(json.dumps([astuple(self.columns), names, *splits]).encode())
        for start in range(0, self.rows.num_rows, _BLOCK):
            block = self.rows.data.slice(start, _BLOCK)
            told = [block.column(name).to_pylist() for name in self._words]
            digest.update(json.dumps([*told, list(self._sizes(block))], default=str).encode())
        return digest.hexdigest()

    def _sizes(self, block: Any) -> Iterator[Any]:
        """The size in bytes of each picture; of one that is a file its path as well."""
        for length, path in _sizes_and_paths(block, self.columns.image, self.form):
            file = self.files.find(path) if length is None else None
            yield length if file is None else [path, picture_size(file)]


def open_rows(
    dataset: Any,
    splits: Mapping[str, int],
    columns: Columns,
    name: str | None,
    uri: str,
    files: Files,
    schema: Any = None,
) -> ArrowRows:
    """Make a source of a :class:`datasets.Dataset`; ``name`` is the column of ids, without any they are row numbers.

    ``splits`` is how many rows each split has, where there are several: ids then begin with the split's name. Paths of
    pictures mean ``files``; without their folder, a column of paths is not taken for pictures. ``schema`` is that of
    the files where ``dataset`` has the sizes of pictures in their place. Raises :class:`DataError` for columns that
    are not there or hold something else, ids that repeat, and no rows.
    """
    schema = dataset.data.schema if schema is None else schema
    chosen = choose_columns(schema, columns, uri, files.folder is not None)
    if name is None and OWN_ID in schema.names:
        name = OWN_ID
    if name is not None:
        check_known(schema, "id", name, uri)
    wanted = [*astuple(chosen), name]
    rows = dataset.with_format("arrow").select_columns([one for one in dataset.column_names if one in wanted])
    form = picture_form(dataset.data.schema.field(chosen.image).type) if chosen.image else None
    kept = _with_picture(rows, chosen.image, form, files)
    if not len(kept):
        raise DataError(f"{uri}: none of the {rows.num_rows:,} rows has a picture")
    if lost := rows.num_rows - len(kept):
        console.print(f"{uri}: {lost:,} of {rows.num_rows:,} rows have no picture and are left out", markup=False)
    if name is not None:
        _check_ids(rows, name, kept, uri)
    return ArrowRows(uri, rows, splits, chosen, name, kept, form, _label_names(dataset), files)


def _label_names(dataset: Any) -> dict[str, list[str]]:
    datasets = need("datasets", "data")
    features = dataset.features.items()
    return {name: list(feature.names) for name, feature in features if isinstance(feature, datasets.ClassLabel)}


def _with_picture(rows: Any, column: str | None, form: str | None, files: Files) -> NDArray[np.int64]:
    """The numbers of the rows whose picture is there; nothing of the pictures is read."""
    if column is None:
        return np.arange(rows.num_rows)
    given = (
        length is not None or files.find(path) is not None
        for start in range(0, rows.num_rows, _BLOCK)
        for length, path in _sizes_and_paths(rows.data.slice(start, _BLOCK), column, form)
    )
    return np.flatnonzero(np.fromiter(given, bool))


def _sizes_and_paths(block: Any, column: str | None, form: str | None) -> Iterator[tuple[int | None, str | None]]:
    """The size of each picture in bytes where its bytes are there, and its path where it has one."""
    compute = need("pyarrow.compute", "data")
    if column is None:
        return
    values = block.column(column)
    none = [None] * len(values)
    if form == "path":
        yield from zip(none, values.to_pylist(), strict=True)
        return
    if form is None:
        yield from zip(values.to_pylist(), none, strict=True)
        return
    data = compute.struct_field(values, "bytes") if form == "struct" else values
    paths = compute.struct_field(values, "path").to_pylist() if form == "struct" else none
    yield from zip(compute.binary_length(data).to_pylist(), paths, strict=True)


def _check_ids(rows: Any, name: str, kept: NDArray[np.int64], uri: str) -> None:
    values = rows.data.column(name).to_pylist()
    times = Counter(str(values[row]) for row in kept if values[row] is not None)
    if times.total() < len(kept):
        raise DataError(f"{uri}: {len(kept) - times.total()} rows have no id in the column '{name}'")
    most, count = times.most_common(1)[0]
    if count > 1:
        raise DataError(f"{uri}: {count} rows have the id '{most}' in the column '{name}'; ids must differ")
