"""Rows as CLIP gives them, made up: pictures in clusters within a narrow cone, and queries from beside it.

A picture is a direction that all pictures share, its cluster's, and something of its own; a text has another direction
that all texts share, and less of its cluster: a matching pair has a cosine of about 0.3 and any other one of about 0.1,
not far from CLIP's own. Shapes: ``N`` rows, ``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

#: Of so many kinds of pictures, in so many categories, of which a filter leaves one.
CLUSTERS, CATEGORIES = 2_000, 20
#: How much of a picture is its cluster's and its own, and of a text what pictures share, its cluster's and its own.
_PICTURE, _TEXT = (0.8, 0.5), (0.15, 0.5, 0.6)
#: So many pictures are of their cluster's category, the others of any: a filter then cuts through clusters.
_LOYAL = 0.8

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Mixture:
    """Rows of one width; the same ones for the same places."""

    width: int

    @cached_property
    def _shared(self) -> Rows:
        """What all pictures and what all texts share, at right angles: ``[2, D]``."""
        one, other = np.random.default_rng(1).standard_normal((2, self.width))
        one /= np.linalg.norm(one)
        return np.stack([one, _unit(other - (other @ one) * one)]).astype(np.float32)

    @cached_property
    def _clusters(self) -> Rows:
        return _unit(np.random.default_rng(2).standard_normal((CLUSTERS, self.width), np.float32))

    def pictures(self, start: int, count: int) -> tuple[Rows, list[str]]:
        """Rows ``[N, D]`` of unit length from place ``start`` on, and the category of each."""
        draw = np.random.default_rng([3, start])
        cluster = draw.integers(CLUSTERS, size=count)
        mine, own = _PICTURE
        rows = self._shared[0] + mine * self._clusters[cluster] + own * _unit(self._noise(draw, count))
        category = np.where(draw.random(count) < _LOYAL, cluster, draw.integers(CLUSTERS, size=count)) % CATEGORIES
        return _unit(rows), [tag(number) for number in category]

    def texts(self, count: int, seed: int = 4) -> Rows:
        """Rows of queries, ``[N, D]`` of unit length: no picture's own, but each near a cluster."""
        draw = np.random.default_rng(seed)
        cluster = draw.integers(CLUSTERS, size=count)
        share, mine, own = _TEXT
        rows = share * self._shared[0] + self._shared[1] + mine * self._clusters[cluster]
        return _unit(rows + own * _unit(self._noise(draw, count)))

    def _noise(self, draw: np.random.Generator, count: int) -> Rows:
        return draw.standard_normal((count, self.width), np.float32)


def tag(category: int) -> str:
    """The tag of a category's pictures."""
    return f"category{category}"


def _unit(rows: NDArray[np.floating]) -> Rows:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)
