"""A text file with one caption per line: words alone, left in the file until they are asked for."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clipdistill.data.samples import Sample
from clipdistill.errors import DataError

_MARK = "\ufeff"


@dataclass
class Lines:
    """The lines of a file that are not empty, by position; the id of a caption is the number of its line.

    ``numbers``, ``starts`` and ``sizes`` say for each where it is, in bytes: 24 of them in memory, however long it is.
    """

    uri: str
    path: Path
    numbers: array[int]
    starts: array[int]
    sizes: array[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            text = file.read(self.sizes[index])
        return Sample(str(self.numbers[index]), None, {"": [_caption(text)]})

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the whole file: 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        with self.path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()


def read_lines(path: Path, uri: str) -> Lines:
    """Find the captions of a text file in UTF-8; raises :class:`DataError` with the line that is not, or for none."""
    found = Lines(uri, path, array("q"), array("q"), array("q"))
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if _read(line, path, number):
                found.numbers.append(number)
                found.starts.append(start)
                found.sizes.append(len(line))
            start += len(line)
    if not found.numbers:
        raise DataError(f"{path}: there are no captions; expected one per line")
    return found


def _read(line: bytes, path: Path, number: int) -> str:
    try:
        return _caption(line)
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x}"
        raise DataError(f"{path}:{number}: found {found}, expected UTF-8 text; save the file as UTF-8") from error


def _caption(line: bytes) -> str:
    return line.decode().removeprefix(_MARK).strip()
