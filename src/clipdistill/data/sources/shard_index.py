"""Where everything is in a tar: read once, kept beside it as ``NAME.tar.index.json``, made again when the tar changes.

Of a tar elsewhere it is kept in the cache, with a copy of the texts as ``NAME.tar.texts``: what its samples are is then
known without the tar.

Pictures are passed over by their headers. Texts are small and lie next to their headers, so they are read as well:
what is wrong with them is said at once, and the fingerprint of a source costs nothing later.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.images import IMAGE_SUFFIXES
from clipdistill.data.remote import Remote, cache_folder
from clipdistill.errors import DataError
from clipdistill.files import write_text
from clipdistill.progress import console, progress

_FIRST = ("jpg", "png", "jpeg", "webp")
#: Endings of pictures, the first of which that a sample has is its picture.
IMAGES = (*_FIRST, *sorted(suffix[1:] for suffix in IMAGE_SUFFIXES if suffix[1:] not in _FIRST))
TEXTS = ("txt", "json", "syn.json", "cls")

_VERSION = 1
_NAME = re.compile(r"(?:\./)*((?:.*/|)[^.]+)\.([^/]*)", re.DOTALL)  # webdataset's: key, first dot, ending
_META = re.compile(r"__[^/]*__($|/)")  # webdataset keeps these names for itself
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_RENAMES = re.compile(rb" (?:path|size|GNU\.sparse[.\w]*)=")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22": "lz4"}


@dataclass(frozen=True)
class Shard:
    """What is where in one tar.

    ``places`` maps an ending to ``int64 [N, 2]``: where the member of each of the ``N`` keys begins and how many bytes
    it has, -1 for a sample without it. ``fields`` are the keys met in JSON files, ``others`` the endings that mean
    nothing here, ``digest`` changes with keys, sizes and texts. ``copied`` is the file that the places of texts are
    in, if it is not the tar.
    """

    path: Path | Remote
    keys: list[str]
    places: dict[str, NDArray[np.int64]]
    fields: list[str]
    others: list[str]
    digest: str
    copied: Path | None = None

    def place(self, ending: str, row: int) -> tuple[int, int] | None:
        """Where a sample's member with this ending is, or None if it has none."""
        if ending not in self.places:
            return None
        start, size = self.places[ending][row].tolist()
        return None if start < 0 else (start, size)

    def texts(self, row: int) -> dict[str, Any]:
        """Read a sample's texts by ending, JSON as what it says; raises :class:`DataError` if the tar has changed."""
        found = {ending: place for ending in TEXTS if (place := self.place(ending, row)) is not None}
        if not found:
            return {}
        try:
            with (self.copied or self.path).open("rb") as file:
                return {ending: _value(_bytes(file, *place), ending) for ending, place in found.items()}
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: {self.keys[row]} cannot be read any more ({error}); the shard has changed since it was "
                "opened. Start again with it as it is now."
            ) from error


def index_shards(paths: Sequence[Path | Remote]) -> list[Shard]:
    """Return what is where in each tar, from its index or by reading it through; those elsewhere are fetched for it.

    An index is kept beside the tar, else in the user's cache, else in memory alone, which is said. Raises
    :class:`DataError` for what is not a whole, uncompressed tar, naming file and offset.
    """
    known = {path: shard for path in paths if (shard := _load(path)) is not None}
    missing = [path for path in paths if path not in known]
    if missing:
        lost: list[Path | Remote] = []
        with progress("index shards", len(missing), "shards") as advance:
            for number, path in enumerate(missing, 1):
                known[path], kept = _build_elsewhere(path) if isinstance(path, Remote) else _build(path)
                lost += [] if kept else [path]
                advance(number, "")
        if lost:
            console.print(
                f"{lost[0]}: its index can be written neither beside it nor to {_cache(lost[0]).parent}, and is "
                f"kept in memory ({len(lost)} of {len(paths)} shards): the next start reads the shards again.",
                markup=False,
            )
    return [known[path] for path in paths]


def _beside(path: Path | Remote, ending: str = "index.json") -> Path:
    copy = path.cached if isinstance(path, Remote) else path
    return copy.with_name(f"{copy.name}.{ending}")


def _cache(path: Path | Remote) -> Path:
    if isinstance(path, Remote):
        return _beside(path)
    name = hashlib.blake2b(os.path.realpath(path).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cache_folder() / f"{name}.index.json"


def _state(path: Path | Remote) -> list[int]:
    """What tells that a tar is the one that was indexed; of one elsewhere its mark does, a part of the index's name."""
    if isinstance(path, Remote):
        return [_VERSION]
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    return [_VERSION, found.st_size, found.st_mtime_ns]


def _load(path: Path | Remote) -> Shard | None:
    """Read the index of a tar, or None if there is none that fits it."""
    state = _state(path)
    for index in (_beside(path), _cache(path)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            stored = json.loads(index.read_text(encoding="utf-8"))
            if stored["state"][: len(state)] == state:
                return _from_record(path, stored)
    return None


def _from_record(path: Path | Remote, stored: dict[str, Any]) -> Shard:
    size, copied = stored["state"][1], None
    if isinstance(path, Remote):
        path, copied = replace(path, size=size, content=stored["state"][3]), _beside(path, "texts")
        if copied.stat().st_size != stored["state"][2]:
            raise ValueError("the texts are not whole")
    keys = [str(key) for key in stored["keys"]]
    places = {
        str(ending): np.array(numbers, dtype=np.int64).reshape(len(keys), 2)
        for ending, numbers in stored["places"].items()
    }
    if any(((table < -1) | (table > size)).any() for table in places.values()):
        raise ValueError("members outside the tar")
    return Shard(path, keys, places, list(stored["fields"]), list(stored["others"]), str(stored["digest"]), copied)


def _build(path: Path) -> tuple[Shard, bool]:
    """Index a tar; the second value says whether the index was kept."""
    state = _state(path)  # before reading: a tar that is still growing is read again next time
    shard = _read(path, state[1])
    text = _record(shard, state)
    return shard, any(_keep(index, text) for index in (_beside(path), _cache(path)))


def _build_elsewhere(path: Remote) -> tuple[Shard, bool]:
    """Fetch a tar, index it and copy its texts, unless another process has done so by now."""
    if indexed := _load(path):
        return indexed, True
    copied = _beside(path, "texts")
    beside = copied.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        known = path.known()
        with beside.open("wb") as texts:
            shard = _read(known, known.size or 0, texts)
            state = [_VERSION, known.size, texts.tell(), known.content]
        beside.replace(copied)
    except DataError:
        path.forget()  # cut off on the way without a word: fetched again next time
        raise
    except OSError as error:
        raise DataError(
            f"{path}: its captions cannot be kept in {copied.parent} ({error}). Make room there."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    return replace(shard, copied=copied), _keep(_beside(path), _record(shard, state))


def _record(shard: Shard, state: Sequence[int | str | None]) -> str:
    record = {
        "state": state,
        "digest": shard.digest,
        "fields": shard.fields,
        "others": shard.others,
        "keys": shard.keys,
        "places": {ending: table.ravel().tolist() for ending, table in shard.places.items()},
    }
    return json.dumps(record, separators=(",", ":"))


def _keep(index: Path, text: str) -> bool:
    """Whether an index could be written; several processes may do so at once."""
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        write_text(index, text)
    except OSError:
        return False
    return True


def _read(path: Path | Remote, total: int, copy: IO[bytes] | None = None) -> Shard:
    """Read a tar of ``total`` bytes through; texts are written to ``copy``, if there is one, and found there."""
    rows: dict[str, int] = {}
    found: dict[str, dict[int, tuple[int, int]]] = {}
    fields: dict[str, None] = {}
    others: set[str] = set()
    digest = hashlib.blake2b(digest_size=16)
    for file, name, start, size in _members(path, total):
        match = _NAME.fullmatch(name)
        if match is None or _META.match(name):
            continue
        key, ending = match[1], match[2].lower()
        if ending not in IMAGES and ending not in TEXTS:
            others.add(ending)
            continue
        row = rows.setdefault(key, len(rows))
        if row in found.setdefault(ending, {}):
            first = found[ending][row][0]
            raise DataError(f"{path}: {name} at byte {start} is there already at byte {first}; keep one of them")
        found[ending][row] = (copy.tell() if copy and ending in TEXTS else start, size)
        digest.update(json.dumps([key, ending, size]).encode())
        if ending in TEXTS:
            data = _bytes(file, start, size)
            digest.update(data)
            if copy:
                copy.write(data)
            fields.update(dict.fromkeys(_look(data, ending, f"{path}: {name} at byte {start}")))
    places = {ending: _table(members, len(rows)) for ending, members in found.items()}
    return Shard(path, list(rows), places, list(fields), sorted(others), digest.hexdigest())


def _table(members: dict[int, tuple[int, int]], count: int) -> NDArray[np.int64]:
    table = np.full((count, 2), -1, dtype=np.int64)
    table[list(members)] = list(members.values())
    return table


def _members(path: Path | Remote, total: int) -> Iterator[tuple[IO[bytes], str, int, int]]:
    """Yield the open file, and name, start and size of each regular file in a tar; links and folders are none."""
    with _opened(path) as file:
        tar = _tar(file, path)
        tar.offset, tar.firstmember = 0, None
        while found := _plain(tar.fileobj, tar.offset) or _any(tar, path):
            name, start, size = found
            tar.offset = start + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if start + size > total:
                raise _cut(path, f"in {name}, which begins", start)
            yield tar.fileobj, name, start, size
        # The library takes a header it does not understand for the end of the archive.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise _cut(path, "at the header", tar.offset)


def _opened(path: Path | Remote) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or str(error)).lower()}") from error


def _tar(file: IO[bytes], path: Path | Remote) -> Any:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _no_tar(file, path, error) from error


def _plain(file: IO[bytes], offset: int) -> tuple[str, int, int] | None:
    """Read the header of a regular file as most writers make it, six times as fast as the library; None for others.

    A header of extended attributes may stand before it, as webdataset's writer puts there for the time of day.
    """
    file.seek(offset)
    header = file.read(tarfile.BLOCKSIZE)
    if header[156:157] == tarfile.XHDTYPE and (size := _size(header)) is not None:
        padded = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        told = file.read(padded)
        if _RENAMES.search(told):
            return None
        offset += tarfile.BLOCKSIZE + padded
        header = file.read(tarfile.BLOCKSIZE)
    if header[156:157] != tarfile.REGTYPE or (size := _size(header)) is None:
        return None
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == tarfile.POSIX_MAGIC[:6] else b""
    whole = prefix + b"/" + name if prefix else name
    return whole.decode("utf-8", "surrogateescape"), offset + tarfile.BLOCKSIZE, size


def _size(header: bytes) -> int | None:
    """The size a header gives in octal digits; None for a header that is damaged or writes it in another way."""
    found = _OCTAL.fullmatch(header, 124, 136)
    told = _OCTAL.fullmatch(header, 148, 156)
    if found is None or told is None or sum(header) - sum(header[148:156]) + 8 * 32 != int(told[1], 8):
        return None
    return int(found[1], 8)


def _any(tar: Any, path: Path | Remote) -> tuple[str, int, int] | None:
    """Read the next regular file with the library, whatever its header is like; None at the end."""
    tar.fileobj.seek(tar.offset)
    while True:
        try:
            member = tar.next()
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            raise _cut(path, f"({error}) at the header", tar.offset) from error
        tar.members = []  # it would remember all of them
        if member is None:
            return None
        if member.issparse():
            raise DataError(f"{path}: {member.name} at byte {member.offset} is a sparse file, which is not read")
        if member.isreg():
            return member.name, member.offset_data, member.size


def _cut(path: Path | Remote, place: str, offset: int) -> DataError:
    return DataError(
        f"{path}: damaged or cut off {place} at byte {offset}. Write or download the shard again, or leave it out "
        "by naming the others."
    )


def _no_tar(file: IO[bytes], path: Path | Remote, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{path}: {error.strerror.lower()}")
    file.seek(0)
    begin = file.read(8)
    kind = next((name for magic, name in _COMPRESSED.items() if begin.startswith(magic)), None)
    if kind:
        return DataError(
            f"{path}: found a {kind} file, expected a plain tar: a compressed one cannot be read from the middle. "
            "Decompress it first; pictures hardly shrink by compression."
        )
    return DataError(f"{path}: not a tar, or its first header at byte 0 is damaged ({error})")


def _bytes(file: IO[bytes], start: int, size: int) -> bytes:
    file.seek(start)
    data = file.read(size)
    if len(data) < size:
        raise ValueError(f"it ends {size - len(data)} bytes too early")
    return data


def _value(data: bytes, ending: str) -> Any:
    text = data.decode("utf-8-sig")
    return json.loads(text) if ending.endswith("json") else text


def _look(data: bytes, ending: str, where: str) -> list[str]:
    """Check a text, and return the keys of a JSON object."""
    try:
        value = _value(data, ending)
    except UnicodeDecodeError as error:
        found = f"byte 0x{data[error.start]:02x}"
        raise DataError(f"{where}: found {found}, expected UTF-8 text; write the shard as UTF-8") from error
    except (ValueError, RecursionError) as error:
        found = data[:60].decode("utf-8", "replace")
        raise DataError(f"{where}: not JSON ({error}): found {found!r}") from error
    return list(value) if isinstance(value, dict) else []
