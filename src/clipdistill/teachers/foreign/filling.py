"""From blocks of somebody else's rows to the shards of a store: checked, brought to unit length, written.

Shapes: ``n`` samples of a block, ``V`` views of each, ``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import StoreError
from clipdistill.progress import progress
from clipdistill.teachers.foreign.blocks import Block, Foreign, Origin
from clipdistill.teachers.foreign.known import Known
from clipdistill.teachers.shards import keys64, write_shard

#: A shard is written when it has so many bytes.
SHARD_BYTES = 1 << 26
#: Rows in float16 that are this close to unit length stay as they are, to the bit.
LENGTH_ERROR = 1e-3

#: What is kept of a block's ids: their hashes, themselves, and where they stand.
Mark = tuple[NDArray[np.uint64], list[str], Origin]


def fill(folder: Path, foreign: Foreign, columns: tuple[int, int] | None, known: Known | None) -> dict[str, int]:
    """Write every block into shards in ``folder``; returns ``{"width": D, "image": samples, "text": samples}``.

    Raises:
        StoreError: a row has no direction, a width or number of views differs, an id is there twice.
    """
    sides = {"image": SideWriter(folder, "image", True), "text": SideWriter(folder, "text", foreign.by == "id")}
    width = 0
    with progress(f"importing {foreign.name}", foreign.total, foreign.unit) as advance:
        for block in foreign.blocks:
            if known and sides[block.side].unique:
                block = _rename(block, known, foreign)
            if not sides[block.side].unique:
                block = _told(block, foreign)
            if block.keys:
                rows = unit(block, columns)
                width = width or rows.shape[1]
                if rows.shape[1] != width:
                    raise StoreError(f"{block.origin.place(0)}: rows are {rows.shape[1]} wide, those before {width}.")
                sides[block.side].add(block, rows)
            advance(block.done, "")
    counts = {name: side.close() for name, side in sides.items()}
    return {"width": width, **counts}


def unit(block: Block, columns: tuple[int, int] | None = None) -> NDArray[np.float16]:
    """Bring a block's rows (or some columns of them) to unit length, ``float16 [n * V, D]``.

    Raises StoreError for a row that has no direction: zero, or not finite.
    """
    if columns and not 0 <= columns[0] < columns[1] <= block.rows.shape[1]:
        asked, wide = f"{columns[0]}:{columns[1]}", block.rows.shape[1]
        raise StoreError(f"{block.origin.place(0)}: rows are {wide} wide, and have no columns {asked}.")
    given = block.rows[:, slice(*columns)] if columns else block.rows
    with np.errstate(over="ignore"):  # what float32 cannot hold is found out below
        rows = np.asarray(given, np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    lost = ~(np.isfinite(lengths) & (lengths > 0)).ravel()
    if lost.any():
        first = int(np.flatnonzero(lost)[0])
        sample = first * len(block.keys) // len(rows)
        what = "zero" if lengths[first] == 0 else "not finite"
        raise StoreError(
            f"{block.origin.place(sample)}: the row of {block.keys[sample]!r} is {what}, so it has no direction "
            f"({int(lost.sum())} such rows here). Remove it with its id, or embed it again."
        )
    scaled: NDArray[np.float16] = (rows / lengths).astype(np.float16)
    if given.dtype != np.float16:
        return scaled
    return np.asarray(np.where(np.abs(lengths - 1) <= LENGTH_ERROR, given, scaled), np.float16)


@dataclass
class SideWriter:
    """Collects the rows of one side, and writes a shard whenever there are enough.

    ``unique`` keys are ids: the same id right again with the same row is the same sample (a picture has one line for
    each of its captions in some layouts), otherwise it is an error.
    Captions may come again: the first counts.
    """

    folder: Path
    side: str
    unique: bool
    number: int = 0
    samples: int = 0
    per_sample: int = 0
    keys: list[str] = field(default_factory=list)
    rows: list[NDArray[np.float16]] = field(default_factory=list)
    views: list[NDArray[np.float64]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _last: tuple[str, bytes] = ("", b"")

    def add(self, block: Block, rows: NDArray[np.float16]) -> None:
        """Take a block's samples that are new, with their unit rows ``[n * V, D]``."""
        views, rest = divmod(len(rows), len(block.keys))
        if rest or not views or views != (self.per_sample or views):
            each = f"expected {self.per_sample} for each, as before" if self.per_sample else "expected as many for each"
            raise StoreError(f"{block.origin.place(0)}: {len(rows)} rows for {len(block.keys)} keys, {each}.")
        self.per_sample = views
        kept = self._new(block.keys, rows.reshape(len(block.keys), -1))
        if not kept:
            return
        block = replace(block, rows=rows).only(kept, [block.keys[at] for at in kept])
        self.keys += block.keys
        self.rows.append(block.rows)
        if block.views is not None:
            self.views.append(block.views)
        if self.unique:
            self.marks.append((keys64(block.keys), block.keys, block.origin))
        if sum(part.nbytes for part in self.rows) >= SHARD_BYTES:
            self._write()

    def close(self) -> int:
        """Write what is left; returns the number of samples. Raises StoreError for an id that is there twice."""
        if self.keys:
            self._write()
        if self.marks:
            _check_unique(self.marks)
        return self.samples

    def _new(self, keys: list[str], rows: NDArray[np.float16]) -> list[int]:
        """Positions of the samples that are not there yet, ``rows [n, V * D]``."""
        kept = []
        for at, key in enumerate(keys):
            if self.unique:
                again = key == self._last[0] and rows[at].tobytes() == self._last[1]
                compared = at + 1 == len(keys) or keys[at + 1] == key
                self._last = (key, rows[at].tobytes()) if compared else ("", b"")
            else:
                again = key in self._seen
                self._seen.add(key)
            if not again:
                kept.append(at)
        return kept

    def _write(self) -> None:
        views = np.concatenate(self.views) if self.views else None
        write_shard(self.folder, self.side, self.number, self.keys, np.concatenate(self.rows), views=views)
        self.samples += len(self.keys)
        self.number += 1
        self.keys, self.rows, self.views = [], [], []
        self._seen.clear()


def _rename(block: Block, known: Known, foreign: Foreign) -> Block:
    """Give samples the ids that the data have for them, and leave out those that are not in the data."""
    names = [known.find(key) for key in block.keys]
    kept = [at for at, name in enumerate(names) if name is not None]
    foreign.left_out[f"{block.side} rows that are not in {known.source.uri}"] += len(names) - len(kept)
    return block.only(kept, [name for name in names if name is not None])


def _told(block: Block, foreign: Foreign) -> Block:
    """Leave out the rows of captions that say nothing: data have no such captions, so nobody can ask for them."""
    kept = [at for at, key in enumerate(block.keys) if key.strip()]
    foreign.left_out["text rows without a caption"] += len(block.keys) - len(kept)
    return block.only(kept, [block.keys[at] for at in kept])


def _check_unique(marks: list[Mark]) -> None:
    """Raise StoreError with both places if two samples have one id."""
    hashes = np.concatenate([mark for mark, _, _ in marks])
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if not len(again):
        return
    starts = np.cumsum([0, *(len(mark) for mark, _, _ in marks)])
    places: list[str] = []
    for sample in (int(order[again[0]]), int(order[again[0] + 1])):
        number = int(np.searchsorted(starts, sample, side="right")) - 1
        _, keys, origin = marks[number]
        places.append(f"{origin.place(sample - int(starts[number]))}: the id {keys[sample - int(starts[number])]!r}")
    raise StoreError(
        f"{places[1]} is there before, at {places[0]}. Ids must differ: choose another column of ids, or remove one."
    )
