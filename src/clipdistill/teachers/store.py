"""A store: a folder of embeddings that outlives the run, read by memory maps, found by id or caption.

docs/formats.md describes the files. Rows are unit length; row ``sample * V + view`` of a shard is view ``view`` of
its sample. Shapes: ``B`` keys asked for, ``N`` samples of a side, ``V`` views of each, ``D`` width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.views import Drawn, View, Views
from clipdistill.errors import StoreError
from clipdistill.teachers.manifest import FOLDERS, MANIFEST, Manifest, read_records
from clipdistill.teachers.shards import (
    ENTRY,
    INDEX,
    add_up,
    alone,
    files_of,
    keys64,
    mapped,
    put,
    read_keys,
    write_index,
    write_shard,
)

JOB = "embed.json"
#: So many shards are kept open: each costs a file descriptor.
MAX_OPEN = 400


def finish(folder: Path, manifest: Manifest) -> EmbeddingStore:
    """Index the shards in ``folder``, write the manifest, and open the store; a finished store is left as it is.

    Raises:
        StoreError: shards are missing or do not fit ``manifest``, there is no row, or an id is there twice.
            Captions may be there more than once: the first counts.
    """
    if not folder.is_dir():
        raise StoreError(f"{folder}: there is nothing to store: no shard holds a row.")
    with alone(folder):
        if not (folder / MANIFEST).is_file():  # others may have finished at the same moment
            _finish(folder, manifest)
        (folder / ".lock").unlink(missing_ok=True)
    return EmbeddingStore.open(folder)


def _finish(folder: Path, manifest: Manifest) -> None:
    sides, skipped = {}, 0
    for side in FOLDERS.values():
        records = read_records(folder, side)
        if not records:
            continue
        by = manifest.sides[side].by if side in manifest.sides else "id" if side == "image" else "caption"
        sides[side] = add_up(folder / side, records, by, manifest)
        skipped += sum(len(record.skipped) for record in records.values())
        write_index(folder / side, sides[side])
    if not any(side.rows for side in sides.values()):
        raise StoreError(f"{folder}: there is nothing to store: no shard holds a row.")
    if "image" in sides and not sides["image"].rows:
        raise StoreError(
            f"{folder}: none of the {skipped} pictures could be read. See why with 'clipdistill data check', delete "
            "the folder, and embed again."
        )
    text = replace(manifest, sides=sides, skipped=skipped).to_json()
    put(folder / MANIFEST, lambda file: file.write(text.encode()))
    for left in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:
        left.unlink(missing_ok=True)


class EmbeddingStore:
    """Stored rows of one model, found by id or caption; see :meth:`open`.

    ``width`` and ``scale`` are the model's, ``sides`` is ``"IT"``, ``"I"`` or ``"T"``. Opening reads the manifest and
    maps the indexes; rows are mapped when first asked for. A copy sent to another process opens its own maps.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.width, self.scale, self.bias = manifest.width, manifest.scale, manifest.bias
        self.sides = "".join(side for side, name in FOLDERS.items() if name in manifest.sides)
        self._index = {side: mapped(path / FOLDERS[side] / INDEX) for side in self.sides}
        for side, index in self._index.items():
            _check_index(path / FOLDERS[side] / INDEX, index, manifest.sides[FOLDERS[side]].samples)
        held = {side: [shard.samples for shard in manifest.sides[FOLDERS[side]].shards] for side in self.sides}
        self._starts = {side: np.cumsum([0, *samples[:-1]]) for side, samples in held.items()}
        self._open: dict[tuple[str, int, bool], NDArray[Any]] = {}

    @classmethod
    def open(cls, path: Path | str) -> EmbeddingStore:
        """Open a finished store; raises StoreError that tells what is there instead."""
        folder = Path(path)
        try:
            text = (folder / MANIFEST).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(_unfinished(folder)) from None
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{folder / MANIFEST} cannot be read ({error}). Copy or make the store again.") from error
        return cls(folder, Manifest.from_json(text, folder / MANIFEST))

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddingStore, (self.path, self.manifest)

    def __len__(self) -> int:
        """How many pictures there are."""
        return self.manifest.sides["image"].samples if "I" in self.sides else 0

    @cached_property
    def fingerprint(self) -> str:
        """A hash that changes when any row or setting does."""
        return self.manifest.fingerprint

    @property
    def views(self) -> Views | None:
        """What a student must be shown to see what the teacher saw; None is whole pictures.

        Raises StoreError if nobody knows.
        """
        plan = self.manifest.views
        if not plan.known:
            raise StoreError(
                f"the store {self.path} does not say which views of the pictures its rows are of. "
                f"Write {self.path}?views=any to go on with views of the run's own."
            )
        if plan.augmentation is not None and plan.count:
            return Drawn(plan.augmentation, plan.seed, plan.count)
        return WrittenViews(self) if plan.count else None

    def rows(self, side: str, keys: Sequence[str], view: int = 0) -> NDArray[Any]:
        """The rows of ids (or captions), ``[B, D]``, in the order asked for; ``view`` counts modulo V.

        Raises :class:`StoreError` with the number of those that are not there, and the first five.
        """
        positions = self.find(side, keys)
        if len(positions) and positions.min() < 0:
            raise StoreError(self._not_there([key for key, at in zip(keys, positions, strict=True) if at < 0], side))
        return self.take(side, positions, view)

    def find(self, side: str, keys: Sequence[str]) -> NDArray[np.int64]:
        """Positions of ids (or captions) among the samples of a side, ``[B]``; -1 for those that are not there."""
        index = self._of(side, self._index)
        if not len(index):
            return np.full(len(keys), -1, np.int64)
        wanted = keys64(keys)
        order = np.argsort(wanted)  # in order, neighbouring searches go the same way: half the time of random ones
        places = np.empty(len(wanted), np.int64)
        places[order] = np.minimum(np.searchsorted(index["key"], wanted[order]), len(index) - 1)
        found = index[places]
        return np.where(found["key"] == wanted, found["sample"], np.int64(-1))

    def take(self, side: str, positions: NDArray[np.int64], view: int = 0) -> NDArray[Any]:
        """The rows at positions among the samples of a side, ``[B, D]``; raises IndexError outside of them."""
        starts, per_sample = self._of(side, self._starts), self._per_sample(side)
        order = np.argsort(positions)  # shard by shard, and forwards within a shard
        ordered = np.asarray(positions, np.int64)[order]
        if len(ordered) and (ordered[0] < 0 or ordered[-1] >= self.manifest.sides[FOLDERS[side]].samples):
            raise IndexError(f"positions {ordered[0]} to {ordered[-1]} are outside of the store {self.path}")
        cuts = np.append(np.searchsorted(ordered, starts), len(ordered))
        shards = np.flatnonzero(np.diff(cuts))
        local = (ordered - np.repeat(starts[shards], np.diff(cuts)[shards])) * per_sample + view % per_sample
        out = np.empty((len(ordered), self.width), self.manifest.dtype)
        for shard, first, last in zip(shards.tolist(), cuts[shards].tolist(), cuts[shards + 1].tolist(), strict=True):
            out[order[first:last]] = self._shard(side, shard).take(local[first:last], axis=0, mode="clip")
        return out

    def missing(self, side: str, keys: Sequence[str]) -> list[str]:
        """Those of ``keys`` that have no row."""
        return [key for key, at in zip(keys, self.find(side, keys), strict=True) if at < 0]

    def keys(self, side: str) -> Iterator[str]:
        """All ids (or captions), in stored order."""
        for shard in self.manifest.sides[FOLDERS[side]].shards:
            yield from read_keys(files_of(self.path / FOLDERS[side] / shard.file)[1])

    def blocks(self, side: str, view: int = 0, size: int = 65536) -> Iterator[NDArray[Any]]:
        """All rows of one view, in stored order, at most ``size`` at a time."""
        per_sample = self._per_sample(side)
        for number, shard in enumerate(self.manifest.sides[FOLDERS[side]].shards):
            for start in range(0, shard.samples, size):
                yield self._shard(side, number)[view % per_sample :: per_sample][start : start + size]

    def _per_sample(self, side: str) -> int:
        stored = self.manifest.sides[FOLDERS[side]]
        return stored.rows // max(stored.samples, 1)

    def written_view(self, sample_id: str, view: int) -> View:
        """An explicit view of a picture; raises StoreError for an id that is not there."""
        position = int(self.find("I", [sample_id])[0])
        if position < 0:
            raise StoreError(self._not_there([sample_id], "I"))
        number = int(np.searchsorted(self._starts["I"], position, side="right")) - 1
        row = (position - self._starts["I"][number]) * self.manifest.views.count + view % self.manifest.views.count
        x0, y0, x1, y1, flip, gain, *bias = self._shard("I", number, views=True)[row].tolist()
        return View((x0, y0, x1, y1), bool(flip), gain, (bias[0], bias[1], bias[2]))

    def _of(self, side: str, values: dict[str, NDArray[Any]]) -> NDArray[Any]:
        if side not in values:
            held = " and ".join(FOLDERS[one] for one in self.sides)
            raise StoreError(
                f"the store {self.path} holds {held} embeddings only, and {FOLDERS.get(side, side)} embeddings are "
                "asked for. Embed them too (clipdistill embed ... --sides image,text), in another folder."
            )
        return values[side]

    def _not_there(self, keys: Sequence[str], side: str) -> str:
        noun = "captions" if self.manifest.sides[FOLDERS[side]].by == "caption" else "ids"
        first = ", ".join(repr(key) for key in keys[:5]) + (", ..." if len(keys) > 5 else "")
        return (
            f"the store {self.path} has no row for {len(keys)} of the {noun} asked for: {first}. It was made from "
            f"{self.manifest.source.uri}. Embed these data, or write {self.path}?missing=skip to leave them out."
        )

    def _shard(self, side: str, number: int, views: bool = False) -> NDArray[Any]:
        """The rows of a shard, or its explicit views, mapped when first asked for."""
        key = side, number, views
        if key not in self._open:
            if len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open)))
            folder = FOLDERS[side]
            rows, _, written = files_of(self.path / folder / self.manifest.sides[folder].shards[number].file)
            path, width = (written, 9) if views else (rows, self.width)
            array = np.asarray(mapped(path))  # a plain array is quicker than a memmap
            expected = (self.manifest.sides[folder].shards[number].rows, width)
            if array.shape != expected:  # of a shorter file, other rows would be read
                raise StoreError(
                    f"{path} is {list(array.shape)}, the manifest says {list(expected)}: the store is damaged. Copy or "
                    "make it again."
                )
            self._open[key] = array
        return self._open[key]


@dataclass(frozen=True)
class WrittenViews:
    """The explicit views of a store."""

    store: EmbeddingStore

    def view(self, sample_id: str, epoch: int, size: tuple[int, int]) -> View:
        """View number ``epoch``, modulo their count."""
        return self.store.written_view(sample_id, epoch)


def _check_index(path: Path, index: NDArray[Any], samples: int) -> None:
    """Refuse an index that is none, or of other shards; raises StoreError."""
    if index.dtype != ENTRY or index.ndim != 1 or (len(index) and not 0 <= index["sample"].max() < samples):
        raise StoreError(
            f"{path} is not the index of these shards. Delete it, and run the same clipdistill embed again, or copy "
            "the store again."
        )


def job_of(folder: Path) -> dict[str, Any] | None:
    """The settings of the job that fills a folder, if one does; raises StoreError if they cannot be read."""
    try:
        settings: dict[str, Any] = json.loads((folder / JOB).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise StoreError(f"{folder / JOB} is not JSON ({error}). Delete {folder}, and start anew.") from error
    if not isinstance(settings, dict) or not {"sides", "source", "shard_size"} <= settings.keys():
        raise StoreError(f"{folder / JOB} does not hold the settings of a job. Delete {folder}, and start anew.")
    return settings


def shards_of(samples: int, shard_size: int) -> int:
    """How many shards a source of so many samples has."""
    return -(-samples // shard_size)


def _unfinished(folder: Path) -> str:
    """Say what is at a path instead of a finished store."""
    job = job_of(folder)
    if job is None:
        return f"{folder} is not a store of embeddings: it has no {MANIFEST}. Make one with clipdistill embed."
    total = len(job["sides"]) * shards_of(job["source"]["samples"], job["shard_size"])
    done = sum(len(read_records(folder, FOLDERS[side])) for side in job["sides"])
    return (
        f"the store {folder} is unfinished: {done} of {total} shards are done. "
        "Run the same clipdistill embed again: it goes on where it stopped."
    )


__all__ = ["EmbeddingStore", "Manifest", "WrittenViews", "finish", "write_shard"]
