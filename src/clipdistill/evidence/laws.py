"""Saturating laws of quality by size, and what they forecast.

    quality = a - (a - q) * ((size + c) / (last + c)) ** -d,    0 <= q <= a <= 100

``last`` is the largest size there is, ``q`` the quality there, ``a`` what no size surpasses. Every law of a grid of
``a``, ``c`` and ``d`` is weighed by how well it explains the points; what is forecast is the mean over draws of laws
by weight, and its interval their 5th to 95th percentile. Few points leave many laws, and a wide interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import ConfigError

#: Twice the size pays if it brings so many points.
WORTH = 1.0
LEAST_SIZES = 3

_OFFSETS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_EXPONENTS = np.geomspace(0.1, 3, 14)
_CEILINGS = np.arange(1.0, 101.0)
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
    c, d, a = np.array(list(product(_OFFSETS, _EXPONENTS, _CEILINGS))).T
    # Of a law without q, quality = rest + q * u; q is found by least squares, and its error is Student's t.
    u = ((size / last + c[:, None]) / (1 + c[:, None])) ** -d[:, None]
    rest = quality - a[:, None] * (1 - u)
    weight = np.sum(u * u, axis=1)
    q = np.sum(u * rest, axis=1) / weight
    squares = np.sum((rest - q[:, None] * u) ** 2, axis=1) + _BELIEF * _NOISE**2
    freedom = len(size) - 1 + _BELIEF
    error = np.sqrt(squares / freedom / weight)
    likely = -0.5 * np.log(weight) - 0.5 * freedom * np.log(squares)
    likely[q > a + 2 * error] = -np.inf
    chances = np.exp(likely - likely.max())
    drawn = random.choice(len(a), draws, p=chances / chances.sum())
    q_drawn = q[drawn] + error[drawn] * random.standard_t(freedom, draws)
    return Laws(last, a[drawn], np.clip(q_drawn, 0, a[drawn]), c[drawn], d[drawn])
