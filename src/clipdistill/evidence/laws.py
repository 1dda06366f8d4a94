"""Saturating laws of quality by size, and what they forecast.

    quality = a - (a - q) * ((size + c) / (last + c)) ** -d,    0 <= q <= a <= 100

``last`` is the largest size there is, ``q`` the quality there, ``a`` what no size surpasses. Laws are drawn by how well
they explain the points: first from a grid of ``a``, ``c`` and ``d``; then, since points that are many or quiet leave
only laws that lie between those of a grid, they walk on by Metropolis's rule and are drawn again. What is forecast is
the mean over the drawn, and its interval their 5th to 95th percentile. Few points leave many laws, and a wide interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import ConfigError

#: Twice the size pays if it brings so many points.
WORTH = 1.0
LEAST_SIZES = 3

#: A law's place is log(c + 0.05), log(d) and a; c is 0 to 2, d 0.1 to 3, a up to 100. The grid has so many of each.
_OFFSET = 0.05
_LOW, _HIGH, _GRID = np.log([_OFFSET, 0.1, 1.0]), np.array([*np.log([2 + _OFFSET, 3.0]), 100.0]), (8, 14, 50)
_CELL = (_HIGH - _LOW) / _GRID
#: Laws are drawn by rising powers of their chances, lest all of them start from one law of the grid that is far ahead.
_POWERS, _STEPS = (0.0, 0.25, 0.5, 1.0), 50
#: Runs differ by noise even where few points happen to lie on a law: half a point, believed as much as one point.
_NOISE, _BELIEF = 0.5, 1

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Runs of several sizes: ``kind`` is "length" (samples seen) or "data" (samples there are), with a size for each
    cell; or "curve", one cell's evaluations while it trained, with the samples seen in a step.
    """

    kind: str
    sizes: dict[str, float]

    @property
    def name(self) -> str:
        """The cells."""
        return ", ".join(self.sizes)


@dataclass(frozen=True)
class Expected:
    """A forecast and its 90% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Laws:
    """Laws drawn by weight, as arrays of equal length; see the module."""

    last: float
    a: Values
    q: Values
    c: Values
    d: Values

    def at(self, size: float) -> Values:
        """What each law says of a size, ``[draws]``."""
        return self.a - (self.a - self.q) * ((size / self.last + self.c) / (1 + self.c)) ** -self.d

    def expected(self, size: float) -> Expected:
        """The forecast for a size."""
        found = self.at(size)
        low, high = np.quantile(found, (0.05, 0.95)).tolist()
        return Expected(float(found.mean()), low, high)


@dataclass(frozen=True)
class Forecast:
    """One metric of one group.

    ``points`` are (size, value) of every run, ``ahead`` what is forecast for multiples of the largest size (1 is the
    law there), ``gain`` what twice the size brings, and ``band`` forecasts by size, for a chart.
    """

    group: Group
    metric: str
    points: list[tuple[float, float]]
    ahead: dict[int, Expected]
    gain: Expected
    band: dict[float, Expected] = field(default_factory=dict)

    @property
    def last(self) -> float:
        """The largest size."""
        return max(size for size, _ in self.points)

    @property
    def pays(self) -> str:
        """Whether twice the size brings at least :data:`WORTH` points: yes, no or unclear."""
        return "yes" if self.gain.low >= WORTH else "no" if self.gain.high < WORTH else "unclear"


def fit(points: Sequence[tuple[float, float]], draws: int, random: np.random.Generator) -> Laws:
    """Draw laws that explain (size, quality in percent).

    Raises:
        ConfigError: there are fewer than three sizes.
    """
    size, quality = np.array(points, np.float64).reshape(-1, 2).T
    if (count := len(np.unique(size))) < LEAST_SIZES:
        raise ConfigError(f"a forecast needs {LEAST_SIZES} sizes or more, found {count}. Add lengths, or evaluations.")
    last = float(size.max())
    grid = product(*(np.linspace(low, high, count) for low, high, count in zip(_LOW, _HIGH, _GRID, strict=True)))
    laws = _explain(np.array(list(grid)).T, size / last, quality)
    for before, power in pairwise(_POWERS):
        chances = np.exp((power - before) * (laws[-1] - laws[-1].max()))
        laws = laws[:, random.choice(len(chances), draws, p=chances / chances.sum())]
        for _ in range(_STEPS):
            laws = _walk(laws, power, size / last, quality, random)
    c, d, a, q, error, _ = laws
    q = q + error * random.standard_t(_freedom(size), draws)
    return Laws(last, a, np.clip(q, 0, a), np.exp(c) - _OFFSET, np.exp(d))


def _explain(place: Values, size: Values, quality: Values) -> Values:
    """Places ``[3, laws]`` to ``[6, laws]``: the place, the likeliest q, its error, and the log of how likely it is."""
    c, d, a = np.exp(place[0]) - _OFFSET, np.exp(place[1]), place[2]
    # Of a law without q, quality = rest + q * u; q is found by least squares, and its error is Student's t.
    u = ((size + c[:, None]) / (1 + c[:, None])) ** -d[:, None]
    rest = quality - a[:, None] * (1 - u)
    weight = np.sum(u * u, axis=1)
    q = np.sum(u * rest, axis=1) / weight
    squares = np.sum((rest - q[:, None] * u) ** 2, axis=1) + _BELIEF * _NOISE**2
    error = np.sqrt(squares / _freedom(size) / weight)
    likely = -0.5 * np.log(weight) - 0.5 * _freedom(size) * np.log(squares)
    likely[q > a + 2 * error] = -np.inf
    return np.stack([*place, q, error, likely])


def _walk(laws: Values, power: float, size: Values, quality: Values, random: np.random.Generator) -> Values:
    """Move every law a step, if it explains the points well enough where it comes to.

    Half go along the difference of two others, which knows how ``a``, ``c`` and ``d`` make up for one another (ter
    Braak, 2006), half somewhere near.
    """
    place, draws = laws[:3], laws.shape[1]
    one, other = random.integers(draws, size=(2, draws))
    near = random.normal(size=place.shape) * _CELL[:, None] * 10 ** random.uniform(-3, 0, draws)
    along = (place[:, one] - place[:, other]) * random.uniform(0.3, 1, draws) + near / 100
    to = place + np.where(random.random(draws) < 0.5, along, near)
    inside = np.all((to >= _LOW[:, None]) & (to <= _HIGH[:, None]), axis=0)
    moved = _explain(np.where(inside, to, place), size, quality)
    return np.where(inside & (power * (moved[-1] - laws[-1]) > -random.exponential(size=draws)), moved, laws)


def _freedom(size: Values) -> int:
    return len(size) - 1 + _BELIEF
