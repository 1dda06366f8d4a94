"""Means, spreads and intervals, against the slow obvious way."""

from __future__ import annotations

import math
import statistics as stdlib

import numpy as np
import pytest

from clipdistill.evidence.statistics import paired_difference, spread, t_quantile


def probability_within(x: float, freedom: int) -> float:
    """P(|t| < x) by summing the density."""
    grid = np.linspace(0, x, 200_001)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    density = scale * (1 + grid**2 / freedom) ** (-(freedom + 1) / 2)
    return 2 * float(np.trapezoid(density, grid))


@pytest.mark.parametrize("freedom", [*range(1, 41), 60, 120, 1000])
def test_t_quantiles_hold_95_percent(freedom: int) -> None:
    assert probability_within(t_quantile(freedom), freedom) == pytest.approx(0.95, abs=2e-6)


def test_spread() -> None:
    values = [1.0, 2.0, 4.0, 8.5]
    found = spread(values)
    assert (found.mean, found.sd) == (pytest.approx(stdlib.mean(values)), pytest.approx(stdlib.stdev(values)))
    assert spread([3.0]).sd is None


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    values, base = {0: 50.0, 1: 53.0, 2: 49.0, 7: 1.0}, {0: 40.0, 1: 44.0, 2: 41.0, 9: 1.0}
    found = paired_difference(values, base)
    assert found is not None
    differences = [10.0, 9.0, 8.0]
    half = 4.302653 * stdlib.stdev(differences) / math.sqrt(3)
    assert found.mean == pytest.approx(9)
    assert (found.low, found.high) == (pytest.approx(9 - half), pytest.approx(9 + half))
    assert found.is_clear


def test_the_interval_covers_the_truth_19_times_of_20() -> None:
    """Differences are drawn around 1 with a common part per seed, which pairing must remove."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(4000):
        shared = rng.normal(0, 50, 4)
        values, base = shared + 1 + rng.normal(size=4), shared + rng.normal(size=4)
        found = paired_difference(dict(enumerate(values)), dict(enumerate(base)))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1 <= found.high
    assert hits / 4000 == pytest.approx(0.95, abs=0.012)


def test_what_one_seed_or_none_can_say() -> None:
    one = paired_difference({0: 5.0}, {0: 3.0})
    assert one is not None
    assert (one.mean, one.low, one.high, one.is_clear) == (2.0, None, None, False)
    assert paired_difference({0: 5.0}, {1: 3.0}) is None
