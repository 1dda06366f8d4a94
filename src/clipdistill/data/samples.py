"""The two nouns of data: a sample, and a source that gives samples by position."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

#: Chinese characters, as a class of a regular expression.
HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
CHINESE = re.compile(f"[{HAN}]")
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
        """The real captions that say anything, possibly none."""
        return [caption for caption in self.texts.get("", []) if caption.strip()]

    @property
    def match_key(self) -> str | None:
        """What makes two pictures the same for image-to-image retrieval: the group, or else the label."""
        return self.group if self.group is not None else self.label


class Source(Protocol):
    """Samples by position: what every data URI opens to.

    ``uri`` is what the user wrote, ``fingerprint`` changes when ids, captions, labels or file sizes do.
    """

    uri: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    @property
    def fingerprint(self) -> str: ...


def is_chinese(text: str) -> bool:
    """Whether a text has a Chinese character in it."""
    return bool(CHINESE.search(text))


def key64(*parts: Any) -> int:
    """Hash anything printable to a non-negative 63-bit integer, the same on every machine and in every run."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
