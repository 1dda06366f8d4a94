"""Draw scenes: 48 x 48 pictures, many at a time in numpy, about a third of a millisecond each.

Random numbers are drawn in the same amount for every picture, whatever it shows, so that a picture depends on
its own scene and its own place in the block alone.

Lengths are shares of the picture's side; x grows to the right and y downwards. ``n`` pictures, ``S`` = 48.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.scene_space import SHAPES, TEXTURES, Object, Scene

SIDE = 48

Floats = NDArray[np.float32]

PAINT = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.12, 0.65, 0.18),
    "blue": (0.15, 0.25, 0.85),
    "yellow": (0.93, 0.86, 0.15),
    "purple": (0.55, 0.15, 0.65),
    "orange": (0.95, 0.52, 0.10),
    "cyan": (0.15, 0.80, 0.85),
    "white": (0.95, 0.95, 0.95),
}
GROUND = {
    "grass": (0.35, 0.50, 0.22),
    "sand": (0.80, 0.70, 0.48),
    "sky": (0.58, 0.74, 0.92),
    "night": (0.06, 0.07, 0.18),
    "stone": (0.48, 0.48, 0.50),
    "brick": (0.52, 0.30, 0.26),
}
RADIUS = {"small": 0.155, "big": 0.245}
#: What is left of the colour in a stripe or a dot.
DARK = 0.32

_grid = (np.arange(SIDE, dtype=np.float32) + 0.5) / SIDE
_Y, _X = np.meshgrid(_grid, _grid, indexing="ij")


def draw(scenes: Sequence[Scene], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw each scene once, ``uint8 [n, 48, 48, 3]``, RGB."""
    canvas = _backgrounds([scene.background for scene in scenes], rng)
    centres = _centres([scene.relation for scene in scenes], rng)
    for place in (0, 1):
        looks = _looks(len(scenes), rng)
        shown = [i for i, scene in enumerate(scenes) if len(scene.objects) > place]
        objects = [scenes[i].objects[place] for i in shown]
        _paint(canvas, np.array(shown, np.intp), objects, centres[place], looks)
    canvas += 0.02 * _normal(rng, *canvas.shape)
    pixels = (np.clip(canvas, 0, 1, out=canvas) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def _normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape, dtype=np.float32)


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Floats:
    return np.float32(low) + np.float32(high - low) * rng.random(shape, dtype=np.float32)


def _backgrounds(names: Sequence[str], rng: np.random.Generator) -> Floats:
    """Lay the ground ``[n, 3, S, S]``: a colour, a slope of light, and the texture of night, stone and brick."""
    n = len(names)
    colour = np.array([GROUND[name] for name in names], np.float32)
    colour = colour * (1 + 0.12 * _normal(rng, n, 1)) + 0.03 * _normal(rng, n, 3)
    slope = (_Y - 0.5) * _uniform(rng, -0.35, 0.35, n, 1, 1) + (_X - 0.5) * _uniform(rng, -0.2, 0.2, n, 1, 1)
    canvas: Floats = colour[:, :, None, None] * (1 + slope)[:, None]
    stars, grain = _uniform(rng, 0, 1, n, SIDE, SIDE) > 0.985, _normal(rng, n, SIDE, SIDE)
    night, stone, brick = (np.array([name == kind for name in names]) for kind in ("night", "stone", "brick"))
    canvas[night] += np.float32(0.6) * stars[night, None]
    canvas[stone] += np.float32(0.07) * grain[stone, None]
    canvas[brick] *= 1 - np.float32(0.3) * _mortar()
    return canvas


def _mortar() -> NDArray[np.bool_]:
    """Eight courses of bricks, every second one shifted by half a brick, ``[S, S]``."""
    course = np.floor(_Y * 8)
    return np.asarray(((_Y * 8) % 1 < 0.15) | ((_X * 5 + 0.5 * (course % 2)) % 1 < 0.1))


def _centres(relations: Sequence[str | None], rng: np.random.Generator) -> Floats:
    """Place the objects, ``[2, n, 2]`` as (place, picture, x and y): one near the middle, or two around it."""
    n = len(relations)
    alone = _uniform(rng, 0.44, 0.56, n, 2)
    middle = 0.5 + _uniform(rng, -0.02, 0.02, n, 2)
    apart, askew = _uniform(rng, 0.235, 0.265, n), _uniform(rng, -0.04, 0.04, n)
    beside = np.array([relation == "left" for relation in relations])[:, None]
    step = np.where(beside, np.stack([apart, askew], 1), np.stack([askew, apart], 1))
    single = np.array([relation is None for relation in relations])[:, None]
    return np.stack([np.where(single, alone, middle - step), middle + step])


def _looks(n: int, rng: np.random.Generator) -> dict[str, Floats]:
    """Draw what varies between two pictures of the same object."""
    return {
        "swell": _uniform(rng, 0.94, 1.06, n),
        "turn": _uniform(rng, -0.12, 0.12, n),
        "shade": 1 + 0.10 * _normal(rng, n, 1),
        "tint": 0.05 * _normal(rng, n, 3),
        "phase": _uniform(rng, 0, 1, n),
    }


def _paint(
    canvas: Floats,
    shown: NDArray[np.intp],
    objects: Sequence[Object],
    centres: Floats,
    looks: dict[str, Floats],
) -> None:
    """Paint ``objects[j]`` onto picture ``shown[j]``, all objects of one shape together."""
    radius = np.array([RADIUS[thing.size] for thing in objects], np.float32) * looks["swell"][shown]
    colour = np.array([PAINT[thing.colour] for thing in objects], np.float32).reshape(-1, 3)
    colour = np.clip(colour * looks["shade"][shown] + looks["tint"][shown], 0, 1)
    texture = np.array([TEXTURES.index(thing.texture) for thing in objects], np.intp)
    shape = np.array([SHAPES.index(thing.shape) for thing in objects], np.intp)
    for number, inside in enumerate(INSIDE.values()):
        chosen = np.flatnonzero(shape == number)
        i = shown[chosen]
        r = radius[chosen, None, None]
        x, y = _turned((_X - centres[i, 0, None, None]) / r, (_Y - centres[i, 1, None, None]) / r, looks["turn"][i])
        cover = np.clip(inside(x, y) * (r * SIDE) + 0.5, 0, 1)[:, None]  # one pixel of soft edge
        light = _light(texture[chosen, None, None], x, y, looks["phase"][i, None, None])[:, None]
        canvas[i] += cover * (colour[chosen, :, None, None] * light - canvas[i])


def _turned(x: Floats, y: Floats, angle: Floats) -> tuple[Floats, Floats]:
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    return x * cos + y * sin, y * cos - x * sin


def _light(texture: NDArray[np.intp], x: Floats, y: Floats, phase: Floats) -> Floats:
    """The share of the colour that shows at each point: dark in stripes and in dots."""
    stripe = np.sin((x + y) * 7.5 + 2 * np.pi * phase) > 0
    dot = ((x * 2.6 + phase) % 1 - 0.5) ** 2 + ((y * 2.6 + phase) % 1 - 0.5) ** 2 < 0.075
    dark = ((texture == 1) & stripe) | ((texture == 2) & dot)
    return np.where(dark, np.float32(DARK), np.float32(1))


def _star(x: Floats, y: Floats) -> Floats:
    petals = np.cos(5 * np.arctan2(x, -y))
    return np.asarray((0.68 + 0.34 * petals - np.hypot(x, y)) * 0.6)


def _cross(x: Floats, y: Floats) -> Floats:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(0.95 - np.maximum(x, y), 0.33 - np.minimum(x, y))


#: How far inside the shape of unit radius a point lies, negative outside, in the order of SHAPES.
INSIDE: dict[str, Callable[[Floats, Floats], Floats]] = {
    "circle": lambda x, y: np.asarray(1 - np.hypot(x, y)),
    "square": lambda x, y: np.asarray(0.85 - np.maximum(np.abs(x), np.abs(y))),
    "triangle": lambda x, y: np.minimum(0.75 - y, (y + 1 - 1.9 * np.abs(x)) * 0.46),
    "diamond": lambda x, y: np.asarray((1 - (1.25 * np.abs(x) + np.abs(y))) * 0.62),
    "star": _star,
    "cross": _cross,
    "ring": lambda x, y: np.asarray(0.24 - np.abs(np.hypot(x, y) - 0.74)),
    "moon": lambda x, y: np.minimum(1 - np.hypot(x, y), np.hypot(x - 0.5, y) - 0.78),
}
