"""The two nouns of data: a sample, and a source that gives samples by position."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.remote import Remote
from clipdistill.errors import DataError

#: Chinese characters, as a class of a regular expression.
HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
CHINESE = re.compile(f"[{HAN}]")


class FilePart(Protocol):
    """A picture kept inside a larger file: ``size`` bytes there, read when it is asked for; printed, it says where."""

    @property
    def size(self) -> int: ...

    def read_bytes(self) -> bytes:
        """Read it now; raises OSError, and :class:`DataError` for what is not as it was when the file was opened."""
        ...


@dataclass(frozen=True)
class Base64Line:
    """A picture written in base64, either alphabet, on line ``line`` of ``path``: ``size`` bytes from ``start``."""

    path: Path
    line: int
    start: int
    size: int

    def read_bytes(self) -> bytes:
        """Read and decode it now; raises OSError, and :class:`DataError` for text that is not base64."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return from_base64(file.read(self.size))

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class TarMember:
    """A picture inside the tar ``path``, there called ``name``: ``size`` bytes from ``start``."""

    path: Path | Remote
    name: str
    start: int
    size: int

    def read_bytes(self) -> bytes:
        """Read it now, and nothing else of the tar; raises OSError, and :class:`DataError` if the tar ends before."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.size)
        if len(data) < self.size:
            raise DataError("the tar has changed since it was opened: it ends before this picture does")
        return data

    def __str__(self) -> str:
        return f"{self.path}: {self.name} at byte {self.start}"


_URLSAFE = bytes.maketrans(b"-_", b"+/")
#: A picture before decoding: a file, a part of one, encoded bytes, or pixels already drawn (``uint8 [H, W, 3]``).
Picture = Path | FilePart | bytes | NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One picture with its captions, a picture alone, or captions alone.

    ``image`` is None where there are words alone. ``texts`` maps a text view to its captions: ``""`` holds the real
    ones, ``"syn"`` synthetic ones. An empty list is a caption that is missing; no list at all is data without
    captions. ``label`` is a class name for classification and image-to-image retrieval. Samples of the same ``group``
    show the same thing: each is a positive of the others, never a negative.
    """

    id: str
    image: Picture | None
    texts: dict[str, list[str]] = field(default_factory=dict)
    label: str | None = None
    group: str | None = None

    @property
    def picture(self) -> Picture:
        """The picture; raises :class:`DataError` for a sample of words alone."""
        if self.image is None:
            raise DataError("it has no picture")
        return self.image

    @property
    def captions(self) -> list[str]:
        """The real captions that say anything, possibly none."""
        return self.captions_of("")

    def captions_of(self, view: str) -> list[str]:
        """The captions of a text view that say anything, possibly none; half a character is a question mark."""
        return [_whole(caption) for caption in self.texts.get(view, []) if caption.strip()]

    @property
    def match_keys(self) -> tuple[tuple[str, str], ...]:
        """What makes two pictures the same for image-to-image retrieval: an equal group or an equal label."""
        given = (("group", self.group), ("label", self.label))
        return tuple((kind, value) for kind, value in given if value is not None)


def _whole(caption: str) -> str:
    """A caption that can be written in UTF-8: no tokenizer takes another."""
    return caption if caption.isascii() else caption.encode("utf-8", "replace").decode()


class Source(Protocol):
    """Samples by position: what every data URI opens to.

    ``uri`` is what the user wrote, ``fingerprint`` changes when ids, captions, labels or file sizes do.
    """

    uri: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    @property
    def fingerprint(self) -> str: ...


@runtime_checkable
class Named(Protocol):
    """A source that knows its ids without reading samples."""

    def id_of(self, index: int) -> str: ...


def id_at(source: Source, index: int) -> str:
    """The id of a sample, read only if its source cannot tell without; then raises :class:`DataError` as that does."""
    return source.id_of(index) if isinstance(source, Named) else source[index].id


def name_of(source: Source, index: int) -> str:
    """What to call a sample, also one that cannot be read: its id, or where it stands if nobody knows that."""
    try:
        return id_at(source, index)
    except DataError:
        return f"sample {index}"


def readable(source: Source, places: Iterable[int]) -> Iterator[tuple[int, Sample]]:
    """The places of a source with their samples, without those of which something else than pictures is damaged.

    Batches skip these, and count them with the reason.
    """
    for place in places:
        try:
            sample = source[place]
        except DataError:
            continue
        yield place, sample


def gives(source: Source) -> str:
    """Return the sides a source has, ``"IT"``, ``"I"`` or ``"T"``: what any of its first 100 samples has.

    Pictures whose captions are missing here and there are ``"IT"``: see :class:`Sample`. Raises :class:`DataError` if
    none of these samples can be read.
    """
    found: set[str] = set()
    for _, sample in readable(source, range(min(len(source), 100))):
        found |= {side for side, given in (("I", sample.image is not None), ("T", bool(sample.texts))) if given}
        if len(found) == 2:
            break
    if not found and len(source):
        source[0]  # the same may be wrong with all of them: it is told
    return "".join(sorted(found))


def file_of(picture: Picture | None) -> Path | Remote | None:
    """The larger file that a picture is kept inside, with others; None for one that is on its own."""
    file: Path | Remote | None = getattr(picture, "path", None)
    return file


def from_base64(text: bytes) -> bytes:
    """Decode base64 in either alphabet; raises :class:`DataError` for text that is none."""
    try:
        return base64.b64decode(text.translate(_URLSAFE), validate=True)
    except binascii.Error as error:
        raise DataError(f"its base64 text is damaged ({error})") from error


def caption_key(caption: str) -> str:
    """What makes two captions equal: the same words up to case, white space and how accents are encoded."""
    return " ".join(unicodedata.normalize("NFC", caption).casefold().split())


def is_chinese(text: str) -> bool:
    """Whether a text has a Chinese character in it."""
    return bool(CHINESE.search(text))


def key64(*parts: Any) -> int:
    """Hash anything printable to a non-negative 63-bit integer, the same on every machine and in every run."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
