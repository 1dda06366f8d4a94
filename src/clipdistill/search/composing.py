"""From a query of several parts to one row of unit length.

Shapes: ``D`` the model's full width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import SearchError
from clipdistill.search.pixels import Picture
from clipdistill.search.query import Query

Row = NDArray[np.float32]
#: Unit rows of pictures of the index, by id; those that there are.
Vectors = Callable[[Sequence[str]], Mapping[str, Row]]
#: What a query is, as far as the probability of its hits goes; anything else has none.
Kind = Literal["text", "image"]
#: Opposite parts leave a row of rounding errors, which has no direction.
_NOTHING = 1e-4


class Towers(Protocol):
    """What embeds the parts of a query: a runtime, or what stands before one."""

    @property
    def width(self) -> int: ...

    def images(self, pictures: Sequence[Picture]) -> NDArray[np.float32]: ...

    def texts(self, captions: Sequence[str]) -> NDArray[np.float32]: ...


def compose(query: Query, towers: Towers, vectors: Vectors) -> Row:
    """Embed every part and return their weighted sum, ``float32 [D]``, of unit length.

    Raises :class:`SearchError` for a query without parts, for parts that cancel out, and for an id, a weight, a text
    or a row that is none; :class:`DataError` for what is no picture.
    """
    check_weights(query)
    total = np.zeros(towers.width, np.float64)
    for row, weight in [*_texts(query, towers), *_images(query, towers), *_ids(query, vectors)]:
        total += weight * row
    for row, weight in query.rows:
        total += weight * unit(row, towers.width)
    length = float(np.linalg.norm(total))
    if length < _NOTHING:
        raise SearchError("the parts of the query cancel out, so it leads nowhere. Give them other weights.")
    return np.asarray(total / length, np.float32)


def kind_of(query: Query) -> Kind | None:
    """Say whether a query is one text or one picture; None for a mixture, a row, or what leads away from its part."""
    weights = _weights(query)
    if len(weights) != 1 or weights[0] <= 0 or query.rows:
        return None
    return "text" if query.texts else "image"


def check_weights(query: Query) -> None:
    """Raise :class:`SearchError` for a query without parts, and for a weight that says nothing."""
    weights = _weights(query)
    if not weights:
        raise SearchError("the query is empty: give a text, a picture, or the id of a picture of the index.")
    for weight in weights:
        if not math.isfinite(weight) or not weight:
            raise SearchError(f"a part of the query has the weight {weight}; expected a number other than 0.")


def unit(row: Row, width: int) -> Row:
    """Return a row as ``float32 [D]`` of unit length; raises :class:`SearchError` for one that cannot be that."""
    found = np.asarray(row, np.float32)
    if found.shape != (width,):
        raise SearchError(f"a row of the query has the shape {list(found.shape)}, the model's have [{width}].")
    length = float(np.linalg.norm(found))
    if not math.isfinite(length) or not length:
        raise SearchError("a row of the query has no direction: all its numbers are 0, or one is not finite.")
    return found / np.float32(length)


def _weights(query: Query) -> list[float]:
    pairs = [weight for _, weight in (*query.images, *query.rows)]
    return [*query.texts.values(), *query.ids.values(), *pairs]


def _texts(query: Query, towers: Towers) -> list[tuple[Row, float]]:
    if any(not text.strip() for text in query.texts):
        raise SearchError("a text of the query is empty. Say what to search for.")
    rows = towers.texts(list(query.texts)) if query.texts else ()
    return list(zip(rows, query.texts.values(), strict=True))


def _images(query: Query, towers: Towers) -> list[tuple[Row, float]]:
    rows = towers.images([picture for picture, _ in query.images]) if query.images else ()
    return list(zip(rows, (weight for _, weight in query.images), strict=True))


def _ids(query: Query, vectors: Vectors) -> list[tuple[Row, float]]:
    found = vectors(list(query.ids)) if query.ids else {}
    for name in query.ids:
        if name not in found:
            raise SearchError(f"the index has no picture with the id '{name}'. Ids are those that a search shows.")
    return [(found[name], weight) for name, weight in query.ids.items()]
