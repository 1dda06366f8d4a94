"""Every scene there is, and which part of the data set each belongs to.

A scene shows one object, or two in a relation, before a background. There are 2,016 scenes of one object and
1,330,560 of two, besides 288 single objects of eight shape and colour combinations that are held out for
compositional tests. A scene has a number, its *code*; a hash of the code decides the part it belongs to, so
that parts never overlap whatever is drawn from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.samples import key64

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "moon")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
TEXTURES = ("plain", "striped", "dotted")
SIZES = ("small", "big")
BACKGROUNDS = ("grass", "sand", "sky", "night", "stone", "brick")
#: Where the first object is, seen from the second. Only two: "right" and "below" are ways of telling the same.
RELATIONS = ("left", "above")

#: Cumulative shares of the four parts.
PARTS = {"teacher": (0.0, 0.4), "train": (0.4, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Object:
    """One thing in a picture, each attribute by its name."""

    size: str
    colour: str
    texture: str
    shape: str

    @property
    def held_out(self) -> bool:
        """Whether this shape in this colour is kept from every split but the zero-shot one."""
        return (3 * SHAPES.index(self.shape) + 1) % len(COLOURS) == COLOURS.index(self.colour)

    @property
    def label(self) -> str:
        """The class name in zero-shot classification: size, colour and texture, 48 in all."""
        return f"{self.size} {self.colour} {self.texture}"


@dataclass(frozen=True)
class Scene:
    """One object, or two of which the first is ``relation`` ("left", "above") of the second."""

    objects: tuple[Object, ...]
    relation: str | None
    background: str


OBJECTS = tuple(Object(z, c, t, s) for s, c, t, z in product(SHAPES, COLOURS, TEXTURES, SIZES))
#: A code is a number with four digits: first object, second object (the last digit: none), relation, background.
_DIGITS = (len(OBJECTS), len(OBJECTS) + 1, len(RELATIONS), len(BACKGROUNDS))
_NONE = len(OBJECTS)


def scene(code: int) -> Scene:
    """Return the scene of a code."""
    first, second, relation, background = (int(digit) for digit in np.unravel_index(code, _DIGITS))
    if second == _NONE:
        return Scene((OBJECTS[first],), None, BACKGROUNDS[background])
    return Scene((OBJECTS[first], OBJECTS[second]), RELATIONS[relation], BACKGROUNDS[background])


def part(name: str, objects: int) -> Codes:
    """Return the codes of a part's scenes of one or two ``objects``, in an order that means nothing.

    Scenes are ordered by a hash and the order is cut at the shares of :data:`PARTS`: as random as a threshold on
    the hash, and the sizes are exact, which matters where a part holds only some 200 scenes of one object.
    """
    order = _order(objects)
    start, stop = (round(share * len(order)) for share in PARTS[name])
    return order[start:stop]


def held_out() -> Codes:
    """Return the codes of the single objects whose shape and colour are seen together in no part."""
    return _singles(held_out=True)


def deal(codes: Codes, count: int, *key: object) -> Codes:
    """Deal ``count`` scenes from a shuffled deck, which is shuffled anew each time it runs out.

    A longer deal begins with the shorter one, and ``len(codes)`` or fewer are all different.
    """
    rounds = -(-count // len(codes))
    decks = [_shuffled(codes, key64(*key, number)) for number in range(rounds)]
    return np.concatenate([codes[:0], *decks])[:count]


@cache
def _order(objects: int) -> Codes:
    codes = _pairs() if objects == 2 else _singles(held_out=False)
    return _shuffled(codes, key64("parts of the scene space"))


@cache
def _singles(held_out: bool) -> Codes:
    first = np.array([i for i, thing in enumerate(OBJECTS) if thing.held_out == held_out])
    return _codes(first[:, None], np.array(_NONE), np.array(0), np.arange(len(BACKGROUNDS)))


@cache
def _pairs() -> Codes:
    """Two objects of seen combinations that differ in shape or colour, in every relation and background."""
    seen = np.array([i for i, thing in enumerate(OBJECTS) if not thing.held_out])
    first, second = (side.ravel() for side in np.meshgrid(seen, seen, indexing="ij"))
    look = len(TEXTURES) * len(SIZES)  # objects of one shape and colour are neighbours in OBJECTS
    differ = first // look != second // look
    first, second = first[differ, None, None], second[differ, None, None]
    return _codes(first, second, np.arange(len(RELATIONS))[:, None], np.arange(len(BACKGROUNDS)))


def _codes(*digits: NDArray[np.int64]) -> Codes:
    return np.ravel_multi_index(np.broadcast_arrays(*digits), _DIGITS).ravel().astype(np.int64)


def _shuffled(codes: Codes, key: int) -> Codes:
    """Order codes by a keyed hash (the finaliser of splitmix64): the same on every machine and numpy version."""
    z = codes.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return codes[np.argsort(z ^ (z >> np.uint64(31)), kind="stable")]
