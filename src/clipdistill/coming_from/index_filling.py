"""From rows that somebody embedded before to rows of an index: checked, of unit length, with what is known of each.

Shapes: ``n`` rows of a block, ``D`` full width.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from clipdistill.coming_from.index_rows import Embedded, Rows, Said
from clipdistill.data.images import content_hash, decode, fetch
from clipdistill.data.samples import Picture, Sample, Source, key64
from clipdistill.errors import DataError, SearchError
from clipdistill.progress import progress
from clipdistill.search.contents import vectors
from clipdistill.search.embedding import thumbnail
from clipdistill.search.manifest import Manifest
from clipdistill.search.origin import caption_of, clean, location_of, tags_of
from clipdistill.search.rescoring import cut
from clipdistill.search.runtime import Runtime
from clipdistill.search.table import Table, schema
from clipdistill.teachers.foreign.known import Known

#: Rows of the same model, embedded again, are at least this near: float16 and another engine cost less.
SAME = 0.999
#: Pictures of the first block and of every later one that are embedded again.
FIRST, LATER = 16, 1


@dataclass(frozen=True)
class Entry:
    """A row that is to be written: ``row [D]`` of unit length, and its picture, if it is at hand."""

    id: str
    row: NDArray[np.float32]
    said: Said
    picture: Picture | None


@dataclass(frozen=True)
class Seen:
    """What a look at a picture gives; nothing where it is not at hand or cannot be read."""

    hash: str = ""
    size: tuple[int, int] = (0, 0)
    thumbnail: bytes = b""


@dataclass
class Filling:
    """Puts what was embedded into a table. ``trusted`` rows are not embedded again to compare them.

    With ``source``, the data that were embedded, pictures get the ids that these have for them, and rows of other
    pictures are left out. ``left_out`` counts what is, by what it is.
    """

    embedded: Embedded
    runtime: Runtime
    table: Table
    manifest: Manifest
    source: Source | None
    root: Path
    trusted: bool
    left_out: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._known = Known(self.source) if self.source else None
        places = range(len(self.source)) if self.source else ()
        self._places = {self.source[place].id: place for place in places} if self.source else {}
        self._seen: set[int] = set()
        self._checked = 0

    def run(self) -> None:
        """Write every row; raises :class:`SearchError` for rows that are not the model's, or have no direction."""
        with progress(f"importing {self.embedded.layout}", self.embedded.total, "rows") as advance:
            done = 0
            for rows in self.embedded.blocks:
                entries = self._entries(rows)
                if entries and not self.trusted:
                    self._compare(entries, rows.where)
                if entries:
                    self.table.write(self._table(entries))
                done += len(rows.ids)
                advance(done, "")
        held = (name for batch in self.table.scan(["id"], written=True) for name in batch["id"].to_pylist())
        self.table.delete([name for name in held if key64(name) not in self._seen])  # of an import that was stopped

    def _entries(self, rows: Rows) -> list[Entry]:
        entries = []
        for name, row, said in zip(rows.ids, _unit(rows, self.runtime), rows.said, strict=True):
            sample = self._sample(name, said)
            if sample is None:
                self.left_out["rows of pictures that the data have not"] += 1
            elif (mark := key64(sample.id)) in self._seen:
                self.left_out["rows of pictures that have one already"] += 1
            else:
                self._seen.add(mark)
                entries.append(Entry(sample.id, row, self._told(sample, said), sample.image))
        return entries

    def _sample(self, name: str, said: Said) -> Sample | None:
        """What the data have for a picture, else what lies where the files say that it is."""
        if self._known is None or self.source is None:
            path = Path(said.place).absolute()
            there = said.place and os.access(path, os.R_OK) and path.is_file()  # a colleague's may not be read
            return Sample(clean(name), path if there else None)
        found = self._known.find(name) or self._known.find(said.place or name)
        return None if found is None else self.source[self._places[found]]

    def _told(self, sample: Sample, said: Said) -> Said:
        place = location_of(sample.image, self.root) if self.source else str(sample.image or "")
        place = clean(place or said.url or said.place)  # where the picture is not here, its address says more
        tags = tuple(tags_of(sample)) or tuple(map(clean, said.tags))
        return replace(said, place=place, caption=caption_of(sample) or clean(said.caption), tags=tags)

    def _compare(self, entries: Sequence[Entry], where: str) -> None:
        """Embed some pictures again; raises :class:`SearchError` if other rows come out, or no picture is at hand."""
        pictures: list[Image.Image] = []
        rows: list[NDArray[np.float32]] = []
        for entry in entries:
            if len(pictures) == (LATER if self._checked else FIRST):
                break
            if entry.picture is not None:
                with suppress(DataError):
                    pictures.append(decode(fetch(entry.picture)))
                    rows.append(entry.row)
        if not pictures and not self._checked:
            raise SearchError(
                f"nothing says that {where} were made by {self.runtime.folder}: no model is recorded with them that is "
                "this one, and no picture is at hand to embed again. Name the pictures with --data, or say --unchecked "
                "if you know it."
            )
        if pictures:
            cosines = (self.runtime.images(pictures) * np.stack(rows)).sum(axis=1)
            if cosines.min() < SAME:
                raise SearchError(
                    f"{where} are not rows of {self.runtime.folder}: {len(rows)} pictures were embedded again, and "
                    f"their cosines are {cosines.min():.4f} at worst and {np.median(cosines):.4f} in the median, "
                    f"expected at least {SAME}. Name the model that made them; quantised, it gives other rows."
                )
            self._checked += len(pictures)

    def _table(self, entries: Sequence[Entry]) -> pa.Table:
        with ThreadPoolExecutor() as pool:  # decoding leaves Python's lock
            seen = list(pool.map(_look, [entry.picture for entry in entries]))
        self.left_out["thumbnails of pictures that are not at hand"] += sum(not one.thumbnail for one in seen)
        rows = np.stack([entry.row for entry in entries])
        said = [entry.said for entry in entries]
        columns = {
            "id": [entry.id for entry in entries],
            "vector": vectors(cut(rows, self.manifest.width)),
            "full": vectors(rows),
            "hash": [look.hash or one.hash for look, one in zip(seen, said, strict=True)],
            "location": [one.place for one in said],
            "caption": [one.caption for one in said],
            "tags": [list(one.tags) for one in said],
            "width": [look.size[0] or one.width for look, one in zip(seen, said, strict=True)],
            "height": [look.size[1] or one.height for look, one in zip(seen, said, strict=True)],
            "thumbnail": [look.thumbnail for look in seen],
        }
        names = schema(self.manifest.width, self.manifest.full)
        return pa.table({name: columns[name] for name in names.names}, schema=names)


def _look(picture: Picture | None) -> Seen:
    if picture is None:
        return Seen()
    try:
        fetched = fetch(picture)
        image = decode(fetched)
    except DataError:
        return Seen()
    return Seen(content_hash(fetched), image.size, thumbnail(image))


def _unit(rows: Rows, runtime: Runtime) -> NDArray[np.float32]:
    """A block's rows at unit length, ``[n, D]``; raises :class:`SearchError` for another width or no direction."""
    if rows.rows.shape[1] != runtime.width:
        raise SearchError(
            f"{rows.where}: rows are {rows.rows.shape[1]} wide, those of {runtime.folder} {runtime.width}. "
            "Name the model that made them."
        )
    values = np.asarray(rows.rows, np.float32)
    lengths = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    good = (np.isfinite(lengths) & (lengths > 0)).ravel()
    if not good.all():
        bad = rows.ids[int(np.flatnonzero(~good)[0])]
        raise SearchError(
            f"{rows.where}: the row of {bad!r} is zero or not finite, so it has no direction ({int((~good).sum())} "
            "such rows here). Remove it with its id, or embed it again."
        )
    return np.asarray(values / lengths, np.float32)
