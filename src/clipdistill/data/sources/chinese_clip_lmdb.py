"""Chinese-CLIP's LMDB folders: a split made of two databases, read without running anything that they hold.

::

    photos/lmdb/train/imgs      1076345 -> /9j/4AAQSkZJ...      num_images -> 129380
    photos/lmdb/train/pairs     0 -> pickle of (1076345, 8428, "高级感托特包斜挎")      num_samples -> 250314

A pickle is a program. These are read by an interpreter of the few opcodes that make a tuple of numbers and texts: it
knows no other, so that nothing else can come out of them, and nothing can be called.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdistill.data.samples import Sample, from_base64
from clipdistill.errors import DataError, need
from clipdistill.progress import progress

IMAGES, PAIRS = "imgs", "pairs"
_COUNTS = {IMAGES: b"num_images", PAIRS: b"num_samples"}
_STEP = 5_000  # pairs read between two words on the progress
_LARGEST = 1 << 32  # no value of a database has more bytes

# Opcodes by the number of bytes that follow: an integer, a length and so many bytes, or a place in the memo.
_SKIPPED = {pickle.PROTO: 1, pickle.FRAME: 8}
_INTEGERS = {pickle.BININT1: 1, pickle.BININT2: 2, pickle.BININT: 4}
_LENGTHS = {pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE: 4, pickle.BINUNICODE8: 8, pickle.LONG1: 1}
_STORES = {pickle.BINPUT: 1, pickle.LONG_BINPUT: 4}
_RECALLS = {pickle.BINGET: 1, pickle.LONG_BINGET: 4}

_open: dict[Path, Any] = {}
_opening = threading.Lock()


@dataclass(frozen=True)
class LmdbPicture:
    """A picture in base64 under the key ``name`` of the database ``path``: ``size`` characters."""

    path: Path
    name: str
    size: int

    def read_bytes(self) -> bytes:
        """Read and decode it now; raises :class:`DataError` for a key that is gone and for text that is not base64."""
        with _environment(self.path).begin() as transaction:
            text = transaction.get(self.name.encode())
        if text is None:
            raise DataError("the database has changed since it was opened: it has no such key any more")
        return from_base64(text)

    def __str__(self) -> str:
        return f"{self.path}: key {self.name}"


def is_lmdb(split: Path) -> bool:
    """Whether a folder holds a split in LMDB, or half of one."""
    return any((split / name / "data.mdb").is_file() for name in (IMAGES, PAIRS))


def read_lmdb(split: Path) -> list[Sample]:
    """Read the pictures of a split, in the order of the database's keys, each with all texts that name it.

    Pictures stay in the database until they are asked for; one that no text names has no caption. Raises
    :class:`DataError` naming database and key.
    """
    for name in (IMAGES, PAIRS):
        _check_whole(split / name)
    pictures = {picture.name: picture for picture in _pictures(split / IMAGES)}
    captions: dict[str, dict[str, None]] = {name: {} for name in pictures}
    for key, name, text in _pairs(split / PAIRS):
        if name not in captions:
            raise DataError(
                f"{split / PAIRS}: key {key} names the picture {name}, which {split / IMAGES} does not hold"
            )
        captions[name][text] = None
    return [Sample(name, picture, {"": list(captions[name])}) for name, picture in pictures.items()]


def read_pair(data: bytes) -> tuple[int | str, int | str, str]:
    """Return the (image id, text id, text) that a pickle of protocol 2 or later makes.

    Raises :class:`DataError` that names the first opcode which does not belong to it, or says what it makes instead.
    """
    file = io.BytesIO(data)
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    while (code := _take(file, 1)) != pickle.STOP:
        if code in _SKIPPED:
            _take(file, _SKIPPED[code])
        elif code in _INTEGERS:
            stack.append(int.from_bytes(_take(file, _INTEGERS[code]), "little", signed=code == pickle.BININT))
        elif code in _LENGTHS:
            content = _take(file, int.from_bytes(_take(file, _LENGTHS[code]), "little"))
            stack.append(_content(content, code))
        elif code in _RECALLS:
            stack.append(memo.get(int.from_bytes(_take(file, _RECALLS[code]), "little")))
        elif code == pickle.TUPLE3:
            stack[-3:] = [tuple(stack[-3:])]
        elif code == pickle.MEMOIZE or code in _STORES:
            place = len(memo) if code == pickle.MEMOIZE else int.from_bytes(_take(file, _STORES[code]), "little")
            memo[place] = stack[-1] if stack else None
        else:
            raise DataError(f"its pickle has the opcode {_name(code)} at byte {file.tell() - 1}")
    return _checked(stack)


def _content(content: bytes, code: bytes) -> int | str:
    if code == pickle.LONG1:
        return int.from_bytes(content, "little", signed=True)
    try:
        return content.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise DataError(f"the text in its pickle is not UTF-8 ({error.reason})") from error


def _take(file: io.BytesIO, size: int) -> bytes:
    data = file.read(min(size, _LARGEST))
    if len(data) < size:
        raise DataError("its pickle is cut off")
    return data


def _name(code: bytes) -> str:
    known = {opcode.code: opcode.name for opcode in pickletools.opcodes}
    return known.get(code.decode("latin-1"), f"0x{code.hex()}, which is none")


def _checked(stack: list[Any]) -> tuple[int | str, int | str, str]:
    value = stack[0] if len(stack) == 1 else stack
    if isinstance(value, tuple) and len(value) == 3:
        image, text_id, text = value
        if type(image) in (int, str) and type(text_id) in (int, str) and type(text) is str:
            return image, text_id, text
        raise DataError(f"its pickle is a tuple of {', '.join(type(part).__name__ for part in value)}")
    raise DataError(f"its pickle is no tuple of three but makes {type(value).__name__}")


def _environment(path: Path) -> Any:
    """The database, opened once per process: read-only, without locks, it maps its file and survives forks."""
    if path in _open:
        return _open[path]
    lmdb = need("lmdb", "data")
    with _opening:
        if path not in _open:
            try:
                _open[path] = lmdb.open(str(path), readonly=True, lock=False, readahead=False, create=False)
            except lmdb.Error as error:
                raise DataError(f"{path}: not an LMDB database that can be read ({error})") from error
        return _open[path]


def _check_whole(path: Path) -> None:
    """Check that a database is there, no shorter than its pages, and finished.

    What lies behind the end of a file that is too short would end the process when it is read.
    """
    file = path / "data.mdb"
    if not file.is_file():
        raise DataError(f"{path.parent} needs {file}, which is not there. {IMAGES} and {PAIRS} together make a split.")
    environment = _environment(path)
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.stat().st_size < needed:
        raise DataError(f"{file}: cut off, found {file.stat().st_size:,} bytes of {needed:,}; copy it again")
    with environment.begin() as transaction:
        told = transaction.get(_COUNTS[path.name])
    found = environment.stat()["entries"] - 1
    if told is None or told != str(found).encode():
        raise DataError(
            f"{path}: {_COUNTS[path.name].decode()} is {None if told is None else told.decode('utf-8', 'replace')}, "
            f"but it has {found + (told is None)} entries: it was not finished, or an id came twice. Make it again."
        )


def _pictures(path: Path) -> Iterator[LmdbPicture]:
    with _environment(path).begin(buffers=True) as transaction:
        for key, value in transaction.cursor():
            name = bytes(key).decode("utf-8", "replace")
            if bytes(key) != _COUNTS[IMAGES]:
                yield LmdbPicture(path, name, len(value))


def _pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the running number of each pair, the id of its picture, and its text."""
    with _environment(path).begin() as transaction:
        total = int(transaction.get(_COUNTS[PAIRS]))
        with progress("read texts", total, "texts") as advance:
            for number in range(total):
                data = transaction.get(str(number).encode())
                if data is None:
                    raise DataError(f"{path}: there is no key {number}, expected 0 to {total - 1}")
                try:
                    image, _, text = read_pair(data)
                except DataError as error:
                    raise DataError(
                        f"{path}: key {number}: {error}; expected the tuple (image id, text id, text). "
                        "Nothing of it was run."
                    ) from error
                yield number, str(image), text
                if number % _STEP == _STEP - 1 or number == total - 1:
                    advance(number + 1, "")
