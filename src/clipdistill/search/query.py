"""What is searched for, and what is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from clipdistill.search.filters import Filter
from clipdistill.search.pixels import Picture


@dataclass(frozen=True)
class Query:
    """Texts, pictures, pictures of the index and rows, each with a weight; a negative weight leads away from it.

    The query's row is the weighted sum of all their unit rows, itself of unit length. ``texts`` and ``ids`` map to
    weights, ``images`` and ``rows`` (``float32 [D]``) are pairs.
    """

    texts: Mapping[str, float] = field(default_factory=dict)
    images: tuple[tuple[Picture, float], ...] = ()
    ids: Mapping[str, float] = field(default_factory=dict)
    rows: tuple[tuple[NDArray[np.float32], float], ...] = ()


@dataclass(frozen=True)
class Options:
    """How many hits, which rows may be among them, and how sure they must be.

    ``where`` is a filter; ``min_precision``, between 0 and 1, keeps hits whose probability is at least that;
    ``distinct`` leaves out pictures that are copies of a better hit; ``exact`` compares every row of the index.
    """

    k: int = 10
    where: Filter | None = None
    min_precision: float | None = None
    distinct: bool = False
    exact: bool = False


#: Ten hits among all pictures.
PLAIN = Options()


@dataclass(frozen=True)
class Hit:
    """A picture that was found; ``probability`` that it is a match is None where the index is not calibrated."""

    id: str
    score: float
    probability: float | None
    location: str
    caption: str
    tags: tuple[str, ...]
    width: int
    height: int


@dataclass(frozen=True)
class Answer:
    """Hits, best first, and how long it took, in seconds. ``nothing_matches`` says why, where nothing does.

    ``nothing_matches`` is set where there is no hit, as none passes the filter or has ``min_precision``, and where the
    best of all is more likely not a match; the hits are given all the same in that case. ``calibrated`` says what the
    probabilities were learnt from, or why there are none.
    """

    hits: tuple[Hit, ...]
    seconds: float
    version: int
    nothing_matches: str | None = None
    calibrated: str = ""
