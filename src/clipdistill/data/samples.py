"""The two nouns of data: a sample, and a source that gives samples by position."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

#: A picture before decoding: a file, encoded bytes, or pixels already drawn (``uint8 [H, W, 3]``).
Picture = Path | bytes | NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One picture with its captions.

    ``texts`` maps a text view to its captions: ``""`` holds the real ones, ``"syn"`` synthetic ones.
    ``label`` is a class name for classification and image-to-image retrieval. Samples of the same ``group``
    show the same thing: each is a positive of the others, never a negative.
    """

    id: str
    image: Picture
    texts: dict[str, list[str]] = field(default_factory=dict)
    label: str | None = None
    group: str | None = None

    @property
    def captions(self) -> list[str]:
        """The real captions, possibly none."""
        return self.texts.get("", [])


class Source(Protocol):
    """Samples by position: what every data URI opens to.

    ``uri`` is what the user wrote, ``fingerprint`` changes when ids, captions, labels or file sizes do.
    """

    uri: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    @property
    def fingerprint(self) -> str: ...


def key64(*parts: Any) -> int:
    """Hash anything printable to a non-negative 63-bit integer, the same on every machine and in every run."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
