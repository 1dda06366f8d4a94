"""Parquet files elsewhere that hold pictures: each is fetched when its pictures are read, and nothing is converted.

::

    hf://datasets/org/name/data/train-{00000..00003}-of-00004.parquet     as the hub stores them
    https://host/cc3m/{00000..00331}.parquet                              as img2dataset writes them

A row group is the least that can be read of such a file, so a process keeps those that it has read last.
"""

from __future__ import annotations

import os
import re
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from clipdistill.data.remote import Remote, is_remote, look_up, warn_if_small
from clipdistill.data.samples import Sample
from clipdistill.data.sources.arrow_rows import ArrowRows, Files, open_rows
from clipdistill.data.sources.parquet_index import Indexed, index_files, open_file, read_group, readable
from clipdistill.data.sources.shard_names import expand
from clipdistill.data.sources.tables import Columns
from clipdistill.errors import DataError, need
from clipdistill.progress import console

_NAME = re.compile(r"\.parquet(?=[,}]|$)", re.IGNORECASE)
_FOOTERS = 32  # of files, kept by each process
_ROOM = 256 * 2**20  # bytes of row groups kept by each process, the last one whatever its size


@dataclass(frozen=True)
class RemotePicture:
    """The encoded picture in the column ``column`` of row ``row`` of a parquet file elsewhere: ``size`` bytes."""

    path: Remote
    column: str
    row: int
    size: int

    def read_bytes(self) -> bytes:
        """Read it now with the row group that holds it, fetching the file if it is not there.

        Raises :class:`DataError` for what cannot be fetched, and for a file that is not as it was when it was opened.
        """
        return _READ.picture(self)

    def __str__(self) -> str:
        return f"{self.path}: row {self.row}"


class _LastRead:
    """What this process has read last, for all of its threads: footers, and pictures by file, column and row group."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Know nothing, with a lock that is open."""
        self._lock = threading.Lock()
        self._footers: OrderedDict[Remote, tuple[Any, list[int]]] = OrderedDict()
        self._groups: OrderedDict[tuple[Remote, str, int], Any] = OrderedDict()

    def picture(self, picture: RemotePicture) -> bytes:
        """The bytes of a picture."""
        with self._lock, readable(picture.path):
            footer, ends = self._footer(picture.path)
            group = bisect_right(ends, picture.row)
            pictures = self._pictures(picture, footer, group)
            return bytes(pictures[picture.row - ends[group] + len(pictures)].as_py())

    def _footer(self, path: Remote) -> tuple[Any, list[int]]:
        """The metadata of a file, and how many rows end with each of its row groups."""
        if path not in self._footers:
            with path.open("rb") as file:
                footer = open_file(file).metadata
            rows = (footer.row_group(group).num_rows for group in range(footer.num_row_groups))
            self._footers[path] = footer, list(accumulate(rows))
            if len(self._footers) > _FOOTERS:
                self._footers.popitem(last=False)
        self._footers.move_to_end(path)
        return self._footers[path]

    def _pictures(self, picture: RemotePicture, footer: Any, group: int) -> Any:
        """The pictures of a row group, a chunked array of their bytes."""
        key = picture.path, picture.column, group
        if key not in self._groups:
            with picture.path.open("rb") as file:
                self._groups[key] = read_group(open_file(file, footer), picture.column, group)
            while len(self._groups) > 1 and sum(one.nbytes for one in self._groups.values()) > _ROOM:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]


_READ = _LastRead()
if hasattr(os, "register_at_fork"):  # a lock that another thread holds would never open in the new process
    os.register_at_fork(after_in_child=_READ.clear)


@dataclass
class RemoteRows:
    """The rows of parquet files elsewhere that have a picture, in order; ``rows`` knows all of them but their pictures.

    ``files`` follow each other, each with its number of rows, those without a picture too.
    """

    uri: str
    rows: ArrowRows
    files: Sequence[tuple[Remote, int]]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(rows for _, rows in self.files))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.uri} has {len(self)} samples, asked for position {index}")
        sample, column = self.rows[index], self.rows.columns.image
        if column is None:
            return sample
        row = int(self.rows.kept[index])
        number = bisect_right(self._ends, row)
        path, rows = self.files[number]
        size = self.rows.rows[row].column(column)[0].as_py()
        return replace(sample, image=RemotePicture(path, column, row - self._ends[number] + rows, size))

    @cached_property
    def blocks(self) -> list[int] | None:
        """How many samples lie in each file, if files have to be fetched for their pictures; else None."""
        if self.rows.columns.image is None:
            return None
        blocks: list[int] = np.diff(np.searchsorted(self.rows.kept, [0, *self._ends])).tolist()
        return blocks

    @property
    def fingerprint(self) -> str:
        """Hash of ids, captions, labels, groups and sizes of pictures, in order: that of the same files here."""
        return self.rows.fingerprint


def is_parquet(name: str) -> bool:
    """Whether a name means parquet files elsewhere."""
    pieces = [piece for piece in name.split("::") if is_remote(piece) and not piece.startswith("pipe:")]
    return any(_NAME.search(Remote(piece).place.name) for piece in pieces)


def find_parquet(name: str) -> list[str]:
    """The URLs that such a name means, in order; raises :class:`DataError` if others are named with them."""
    urls = [url for piece in name.split("::") for url in expand(piece)]
    for url in urls:
        if not is_parquet(url):
            hint = "" if is_remote(url) else f" A file here is file://{Path(url).absolute()}"
            raise DataError(f"{name}: found {url}, expected URLs of parquet files alone.{hint}")
    return urls


def open_parquet(urls: Mapping[str, Sequence[str]], columns: Columns, name: str | None, uri: str) -> RemoteRows:
    """Open parquet files as one source; each is fetched once, and indexed, when it is first opened.

    ``urls`` are those of each split, of ``""`` where there is only one; columns and ids are those of the same files
    here. Raises :class:`DataError` for files that cannot be fetched or are no parquet, for columns that differ between
    them, that are not there or hold something else, and for no pictures.
    """
    every = [url for split in urls.values() for url in split]
    twice = [url for url, count in Counter(every).items() if count > 1]
    if twice:
        raise DataError(f"{uri}: {twice[0]} is named twice")
    found = index_files(look_up(every))
    words = _joined(found, uri)
    schema = found[0].schema
    if name in schema.names and name not in words.column_names:
        kind = schema.field(name).type
        raise DataError(f"{uri}: the column '{name}' chosen by id= holds {kind}, expected a name or a number")
    rows = open_rows(words, _split_sizes(urls, found), columns, name, uri, Files(), schema)
    source = RemoteRows(uri, rows, [(file.path, file.words.num_rows) for file in found])
    if source.blocks:
        warn_if_small([file.path for file in found])
        _warn_of_large_groups(found)
    return source


def _split_sizes(urls: Mapping[str, Sequence[str]], found: Sequence[Indexed]) -> dict[str, int]:
    """The rows of each split, none where there is only one."""
    rows = iter([file.words.num_rows for file in found])
    return {split: sum(next(rows) for _ in files) for split, files in urls.items() if split}


def _joined(found: Sequence[Indexed], uri: str) -> Any:
    """The words of all files, one after the other."""
    first = found[0]
    for file in found:
        if set(file.schema.names) != set(first.schema.names):
            raise DataError(
                f"{uri}: {file.path} has the columns {', '.join(file.schema.names)}, expected those of {first.path}: "
                f"{', '.join(first.schema.names)}. Open them apart, and mix them."
            )
    try:
        return need("datasets", "data").concatenate_datasets([file.words for file in found])
    except ValueError as error:
        raise DataError(f"{uri}: its files hold columns of different kinds: {error}") from error


def _warn_of_large_groups(found: Sequence[Indexed]) -> None:
    """Say so if a row group is more than a process keeps, and every picture is read with all of it."""
    largest = max(found, key=lambda file: file.group)
    if largest.group > _ROOM:
        console.print(
            f"warning: {largest.path} has a row group of {largest.group / 10**9:.2f} GB, and all of it is read for "
            "each picture in random order. Write the files with row groups of about 100 rows, or download them first.",
            markup=False,
        )
