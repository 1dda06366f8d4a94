"""Means over seeds and differences between cells, with the noise that belongs to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

#: The 97.5th percentile of Student's t distribution for 1 to 30 degrees of freedom.
_T_QUANTILES = (
    *(12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157, 2.228139),
    *(2.200985, 2.178813, 2.160369, 2.144787, 2.131450, 2.119905, 2.109816, 2.100922, 2.093024, 2.085963),
    *(2.079614, 2.073873, 2.068658, 2.063899, 2.059539, 2.055529, 2.051831, 2.048407, 2.045230, 2.042272),
)
_NORMAL_QUANTILE = 1.959964

Key = TypeVar("Key")


@dataclass(frozen=True)
class Spread:
    """The mean of some values and their standard deviation (with n - 1), which a single value has not."""

    mean: float
    sd: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """A mean difference, and its 95% confidence interval, which a single pair has not."""

    mean: float
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def spread(values: Sequence[float]) -> Spread:
    """Return mean, standard deviation and number of ``values``, of which there is at least one."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Spread(mean, None, len(values))
    return Spread(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values))


def paired_difference(values: Mapping[Key, float], base: Mapping[Key, float]) -> Difference | None:
    """Return the mean of ``values`` minus ``base`` over the keys (seeds) that both have, with the paired t interval.

    The interval is mean +- t(0.975, n - 1) x sd / sqrt(n) of the differences. None if they share none.
    """
    shared = [key for key in values if key in base]
    if not shared:
        return None
    found = spread([values[key] - base[key] for key in shared])
    if found.sd is None:
        return Difference(found.mean, None, None)
    half = t_quantile(found.count - 1) * found.sd / math.sqrt(found.count)
    return Difference(found.mean, found.mean - half, found.mean + half)


def correlation(x: Sequence[float], y: Sequence[float]) -> Difference:
    """Return Pearson's correlation of pairs and its 95% interval, by Fisher's z with standard error 1 / sqrt(n - 3).

    Fewer than four pairs have no interval. Where all of ``x`` or all of ``y`` are equal the correlation is told as 0,
    without an interval.
    """
    xs, ys = ([value - math.fsum(values) / len(values) for value in values] for values in (x, y))
    scale = math.sqrt(math.fsum(a * a for a in xs) * math.fsum(b * b for b in ys))
    if scale == 0:
        return Difference(0.0, None, None)
    r = max(-1.0, min(1.0, math.fsum(a * b for a, b in zip(xs, ys, strict=True)) / scale))
    if len(xs) < 4:
        return Difference(r, None, None)
    if abs(r) == 1:
        return Difference(r, r, r)
    z, half = math.atanh(r), _NORMAL_QUANTILE / math.sqrt(len(xs) - 3)
    return Difference(r, math.tanh(z - half), math.tanh(z + half))


def t_quantile(freedom: int) -> float:
    """Return the 97.5th percentile of Student's t distribution with ``freedom`` >= 1 degrees of freedom.

    Beyond 30 by the expansion of Abramowitz and Stegun, 26.7.5, whose error is then below 1e-5.
    """
    if freedom <= len(_T_QUANTILES):
        return _T_QUANTILES[freedom - 1]
    x = _NORMAL_QUANTILE
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
    )
    return x + math.fsum(term / float(freedom) ** power for power, term in enumerate(terms, 1))
