"""The files of a store: shards of rows with their keys, written whole or not at all, and the index of a side.

docs/formats.md describes them.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import StoreError
from clipdistill.files import checksum
from clipdistill.teachers.manifest import FOLDERS, MANIFEST, NOUNS, Manifest, Record, Shard, Side, read_records

INDEX = "index.npy"
#: Key (a hash) and position of every sample, sorted by key.
ENTRY = np.dtype([("key", "<u8"), ("sample", "<i8")])


def keys64(keys: Sequence[str]) -> NDArray[np.uint64]:
    """Hash ids or captions as :func:`clipdistill.data.samples.key64` does, ``[B]``."""
    digests = [blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest() for key in keys]
    return np.frombuffer(b"".join(digests), "<u8") >> np.uint64(1)


def write_shard(
    folder: Path,
    side: str,
    number: int,
    keys: Sequence[str],
    rows: NDArray[Any],
    skipped: Sequence[tuple[str, str]] = (),
    views: NDArray[np.float64] | None = None,
) -> None:
    """Write one shard of side ``image`` or ``text``, durable, and whole or not at all.

    ``rows [len(keys) * V, D]`` are float16 or float32 and of unit length. ``skipped`` are the samples left out, with
    the reason. ``views [len(keys) * V, 9]`` are explicit views: box (4), flip, gain, bias (3). A shard that is there
    already stays as it is: whoever finished it first has won.

    Raises:
        StoreError: the rows do not fit the keys, or are not finite.
    """
    _check_rows(side, number, keys, rows, views)
    stem = folder / side / f"{number:05d}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    record, (rows_file, keys_file, views_file) = stem.with_suffix(".json"), files_of(stem)
    with alone(folder):
        if record.exists():
            return
        array = np.ascontiguousarray(rows)
        put(rows_file, lambda file: np.save(file, array))
        lines = "".join(json.dumps(key) + "\n" for key in keys).encode()
        put(keys_file, lambda file: file.write(lines))
        if views is not None:
            put(views_file, lambda file: np.save(file, np.asarray(views, np.float64)))
        written = None if views is None else checksum(views_file)
        text = Record(len(keys), len(rows), checksum(rows_file), checksum(keys_file), written, tuple(skipped)).to_json()
        put(record, lambda file: file.write(text.encode()))


def files_of(shard: Path) -> tuple[Path, Path, Path]:
    """The files that belong to a shard's ``.npy``: itself, its keys, and its explicit views, which few have."""
    return shard.with_suffix(".npy"), shard.with_suffix(".ids.jsonl"), shard.with_suffix(".views.npy")


def put(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside, force it to disk, then rename: any number of processes may do so at once."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with beside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror or error}). What was stored before is whole: make room, and "
            "run the same command again."
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename too
    finally:
        os.close(folder)


def forget_lost(folder: Path) -> None:
    """Make a store unfinished again where files of it are gone: what was in them counts as not done."""
    if not _damaged(folder):
        return
    with alone(folder):
        if _damaged(folder):  # still: another process may have been finishing it
            for stem in _lost(folder):
                stem.with_suffix(".json").unlink(missing_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)


def _damaged(folder: Path) -> bool:
    sides = [folder / side for side in FOLDERS.values() if (folder / side).is_dir()]
    finished = (folder / MANIFEST).is_file()
    return any(_lost(folder)) or (finished and not all((side / INDEX).is_file() for side in sides))


def _lost(folder: Path) -> Iterator[Path]:
    """Finished shards of which a file is gone."""
    for side in FOLDERS.values():
        for number, record in read_records(folder, side).items():
            stem = folder / side / f"{number:05d}"
            rows, keys, views = files_of(stem)
            if not all(file.is_file() for file in (rows, keys, *([views] if record.views else []))):
                yield stem


def read_keys(path: Path) -> Iterator[str]:
    """The keys of a shard, in order."""
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}): the store is damaged. Copy or make it again.") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a store. It ends with the process; a file system without locks goes without."""
    with (folder / ".lock").open("ab") as file:
        with suppress(ImportError, OSError):
            from fcntl import LOCK_EX, flock

            flock(file, LOCK_EX)
        yield


def add_up(folder: Path, records: dict[int, Record], by: Any, manifest: Manifest) -> Side:
    """Add up the records of a side; raises StoreError if shards are missing or do not fit the manifest."""
    if list(records) != list(range(len(records))):
        gap = next(number for number in range(len(records)) if number not in records)
        raise StoreError(f"{folder}: shard {gap:05d} is missing.")
    per_sample = max(manifest.views.count, 1) if folder.name == "image" else 1
    shards = []
    for number, record in records.items():
        path = folder / f"{number:05d}.npy"
        shape, dtype = _header(path)
        expected = (record.samples * per_sample, manifest.width), np.dtype(manifest.dtype)
        if (shape, dtype) != expected:
            raise StoreError(f"{path} is {dtype} {list(shape)}, expected {expected[1]} {list(expected[0])}.")
        marks = record.checksum, record.keys, record.views
        shards.append(Shard(path.name, record.samples, record.rows, *marks))
    return Side(sum(shard.samples for shard in shards), sum(shard.rows for shard in shards), tuple(shards), by)


def build_index(folder: Path, side: Side) -> NDArray[Any]:
    """Key and position of every sample of a side, sorted by key; raises StoreError for an id that is there twice.

    A caption that is there twice is at its first place.
    """
    blocks = [np.empty(0, np.uint64)]
    for shard in side.shards:
        path = files_of(folder / shard.file)[1]
        blocks.append(keys64(list(read_keys(path))))
        if len(blocks[-1]) != shard.samples:
            raise StoreError(
                f"{path} does not hold {shard.samples} keys: the shard is damaged. Delete {Path(shard.file).stem}.json "
                "beside it, and run the same clipdistill embed again."
            )
    index = np.empty(sum(map(len, blocks)), ENTRY)
    index["key"], index["sample"] = np.concatenate(blocks), np.arange(len(index))
    index = index[np.argsort(index["key"], kind="stable")]
    again = np.flatnonzero(index["key"][1:] == index["key"][:-1]) + 1
    if side.by == "id" and len(again):
        one, other = (int(index["sample"][at]) for at in (again[0] - 1, again[0]))
        names = [_key_of(folder, side, sample) for sample in (one, other)]
        raise StoreError(
            f"{folder}: the ids {names[0]!r} and {names[1]!r} (samples {one} and {other}) have one key. "
            "Ids must differ; rename or remove one."
        )
    return np.delete(index, again)


def _key_of(folder: Path, side: Side, sample: int) -> str:
    every = (read_keys(files_of(folder / shard.file)[1]) for shard in side.shards)
    return next(islice(chain.from_iterable(every), sample, None))


def write_index(folder: Path, side: Side) -> None:
    """Write the index of a side; see :func:`build_index`."""
    index = build_index(folder, side)
    put(folder / INDEX, lambda file: np.save(file, index))


def _check_rows(
    side: str, number: int, keys: Sequence[str], rows: NDArray[Any], views: NDArray[np.float64] | None
) -> None:
    where = f"{side} shard {number}"
    if rows.ndim != 2 or rows.dtype not in (np.float16, np.float32):
        raise StoreError(f"{where}: rows are float16 or float32 [N, D], found {rows.dtype} {list(rows.shape)}.")
    if len(rows) % max(len(keys), 1) or (keys and not len(rows)):
        raise StoreError(f"{where}: {len(rows)} rows for {len(keys)} {NOUNS[side]}: expected as many for each.")
    if views is not None and views.shape != (len(rows), 9):
        raise StoreError(f"{where}: explicit views are [{len(rows)}, 9], found {list(views.shape)}.")
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0]) * len(keys) // len(rows)
        raise StoreError(f"{where}: the row of {keys[bad]!r} is not finite.")


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array on disk; raises StoreError for a file that is none."""
    array = mapped(path)
    return array.shape, array.dtype


#: How every .npy file begins.
_MAGIC = b"\x93NUMPY"


def mapped(path: Path) -> NDArray[Any]:
    """Map an array; an empty file has nothing to map, so numpy reads it. Raises StoreError."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError("it is no .npy file")
        array: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path} cannot be read ({error}): the store is damaged. Copy or make it again.") from error
    return array
