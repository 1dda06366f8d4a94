"""A folder of drawn pictures that changes, and what an index of it must hold, version by version.

Shapes: ``N`` pictures, ``D`` width.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdistill.data.sources import pairs
from clipdistill.search.runtime import Runtime

#: Pictures that are drawn beforehand, how many the folder has at first, and fewest.
DRAWN, FIRST, LEAST = 160, 64, 48
#: What one change does at most of each: pictures that come, that are drawn anew, that get other words, that go.
_MOST = 4

Rows = NDArray[np.float32]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pool:
    """Pictures that were drawn beforehand, with a caption and the row of each, ``[N, D]``, and rows of the captions."""

    pixels: list[Pixels]
    captions: list[str]
    images: Rows
    texts: Rows

    @classmethod
    def draw(cls, runtime: Runtime) -> Pool:
        source = pairs(f"scenes:test?n={DRAWN}")
        samples = [source[place] for place in range(len(source))]
        pixels = [np.asarray(sample.image) for sample in samples]
        captions = [sample.captions[0] for sample in samples]
        images = runtime.images([Image.fromarray(one) for one in pixels])
        return cls(pixels, captions, images, runtime.texts(captions))


@dataclass(frozen=True)
class Held:
    """What an index holds of a folder: by id, the picture's place in the pool and its caption's."""

    pictures: Mapping[str, tuple[int, int]]

    def captions(self, pool: Pool) -> dict[str, str]:
        return {name: pool.captions[words] for name, (_, words) in self.pictures.items()}

    def rows(self, pool: Pool) -> Rows:
        """Rows ``[N, D]``, in the order of the ids."""
        return pool.images[[drawn for drawn, _ in self.pictures.values()]]


@dataclass
class Gallery:
    """The folder. ``held`` is what it holds now."""

    folder: Path
    pool: Pool
    draw: random.Random
    pictures: dict[str, tuple[int, int]] = field(default_factory=dict)
    _made: int = 0

    def begin(self) -> None:
        """Write the first pictures."""
        self.folder.mkdir(parents=True)
        for _ in range(FIRST):
            self._add()
        self._describe()

    def change(self) -> None:
        """Let pictures come, change, get other captions and go."""
        for _ in range(self.draw.randint(1, _MOST)):
            self._add()
        for name in self._some():
            self._paint(name, self.pictures[name][1])
        for name in self._some():
            self.pictures[name] = self.pictures[name][0], self.draw.randrange(DRAWN)
        for name in self._some():
            if len(self.pictures) > LEAST:
                del self.pictures[name]
                (self.folder / name).unlink()
        self._describe()

    def held(self) -> Held:
        return Held(dict(self.pictures))

    def _some(self) -> list[str]:
        return self.draw.sample(sorted(self.pictures), self.draw.randint(1, _MOST))

    def _add(self) -> None:
        self._made += 1
        self._paint(f"{self._made:06d}.png", self.draw.randrange(DRAWN))

    def _paint(self, name: str, words: int) -> None:
        drawn = self.draw.randrange(DRAWN)
        Image.fromarray(self.pool.pixels[drawn]).save(self.folder / name)
        self.pictures[name] = drawn, words

    def _describe(self) -> None:
        lines = [
            json.dumps({"file_name": name, "text": self.pool.captions[words]})
            for name, (_, words) in sorted(self.pictures.items())
        ]
        (self.folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Version:
    """What a published version holds, and between which moments it was published (``time.monotonic()``)."""

    held: Held
    earliest: float
    latest: float


@dataclass
class Ledger:
    """All versions that were published, by number: nobody may be answered from anything else."""

    versions: dict[int, Version] = field(default_factory=dict)

    @property
    def newest(self) -> int:
        """The number of the last one."""
        return max(self.versions)

    def add(self, number: int, version: Version) -> None:
        """Note one; others may read meanwhile."""
        self.versions = {**self.versions, number: version}

    def served(self, sent: float, received: float, lag: float) -> list[int]:
        """The versions that a request may be answered from: a server sees a new one ``lag`` seconds later at most."""
        known = sorted(self.versions)
        begun = [number for number in known if self.versions[number].earliest <= received]
        seen = [number for number in known if self.versions[number].latest + lag < sent]
        return [number for number in begun if not seen or number >= seen[-1]]
