"""A source whose samples are a list in memory: what folders, tables and Python code give."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.remote import Remote
from clipdistill.data.samples import Picture, Sample, Source, file_of, id_at
from clipdistill.errors import DataError


@dataclass
class Samples:
    """Samples in memory, by position."""

    uri: str
    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @cached_property
    def blocks(self) -> list[int] | None:
        """How many samples in a row lie in the same file, if files have to be fetched for their pictures; else None."""
        files = [file_of(sample.image) for sample in self.samples]
        if not any(isinstance(file, Remote) for file in files):
            return None
        return [len(list(same)) for _, same in groupby(files)]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of ids, captions, labels, groups and file sizes, in order: 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        for sample in self.samples:
            record = [sample.id, sample.texts, sample.label, sample.group, picture_size(sample.image)]
            digest.update(json.dumps(record).encode())
        return digest.hexdigest()


def from_samples(samples: Sequence[Sample], uri: str = "samples") -> Samples:
    """Make a source of samples held in memory; raises :class:`DataError` for none, or for two with one id."""
    if not samples:
        raise DataError(f"{uri}: there are no samples")
    seen: set[str] = set()
    for position, sample in enumerate(samples):
        if sample.id in seen:
            raise DataError(f"{uri}: sample {position} has the id '{sample.id}' of an earlier one; ids must differ")
        seen.add(sample.id)
    return Samples(uri, samples)


@dataclass
class Kept:
    """Some samples of a source, by their ``places`` in it, in order; nothing of them is held."""

    uri: str
    source: Source
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        return self.source[int(self.places[index])]

    def id_of(self, index: int) -> str:
        """The id of a sample, where the source knows that without reading it."""
        return id_at(self.source, int(self.places[index]))

    @cached_property
    def blocks(self) -> list[int] | None:
        """How many samples in a row lie in the same file, where the source tells."""
        own = getattr(self.source, "blocks", None)
        return np.diff(np.searchsorted(self.places, [0, *accumulate(own)])).tolist() if own else None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the source's and of what is kept: 32 hexadecimal digits."""
        digest = hashlib.blake2b(self.source.fingerprint.encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.places, "<i8").tobytes())
        return digest.hexdigest()


def without_captions(samples: Sequence[Sample]) -> list[Sample]:
    """Return the same samples without their captions, real and synthetic: pictures with label and group."""
    return [replace(sample, texts={}) for sample in samples]


def picture_size(picture: Picture | None) -> int:
    """Return the size in bytes, -1 for a file that is not there, 0 for no picture."""
    if picture is None:
        return 0
    if isinstance(picture, np.ndarray):
        return picture.nbytes
    if isinstance(picture, bytes):
        return len(picture)
    if not isinstance(picture, Path):
        return picture.size
    try:
        return picture.stat().st_size
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return -1
