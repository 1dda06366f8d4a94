"""From cosines to probabilities: against slow descent, and on scores whose truth is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipdistill.errors import SearchError
from clipdistill.search.calibrate import Calibration, calibrate, calibration_error, fit

RNG = np.random.default_rng(3)
#: Scores of two normal kinds of one width: the truth is a logistic curve with slope (m1 - m0) / s**2.
MATCHED, UNMATCHED, SPREAD = 0.30, 0.20, 0.04


def drawn(matched: int, unmatched: int) -> tuple[Any, Any, tuple[NDArray[np.intp], NDArray[np.intp]]]:
    queries = (np.arange(matched) % 100, np.arange(unmatched) % 100)
    return RNG.normal(MATCHED, SPREAD, matched), RNG.normal(UNMATCHED, SPREAD, unmatched), queries


def slow_fit(matched: Any, unmatched: Any, prior: float) -> NDArray[np.float64]:
    """Plain gradient descent, one pair at a time."""
    pairs = [(score, (len(matched) + 1) / (len(matched) + 2), prior / len(matched)) for score in matched]
    pairs += [(score, 1 / (len(unmatched) + 2), (1 - prior) / len(unmatched)) for score in unmatched]
    at = np.zeros(2)
    for _ in range(3_000):
        slopes = np.zeros(2)
        for score, target, weight in pairs:
            said = 1 / (1 + np.exp(-(at[0] * score + at[1])))
            slopes += weight * (said - target) * np.array([score, 1.0])
        at -= 2.0 * slopes
    return at


@pytest.mark.parametrize("prior", [0.5, 0.2])
def test_newton_finds_what_descent_finds(prior: float) -> None:
    matched, unmatched = RNG.normal(1.0, 1.0, 12), RNG.normal(-0.5, 1.0, 20)
    assert fit(matched, unmatched, prior) == pytest.approx(slow_fit(matched, unmatched, prior), rel=1e-3)


@pytest.mark.parametrize("prior", [0.5, 0.1])
def test_the_known_curve_is_found_whatever_the_share_of_pairs(prior: float) -> None:
    found = calibrate(*drawn(4_000, 60_000), prior)
    slope = (MATCHED - UNMATCHED) / SPREAD**2
    assert found.slope == pytest.approx(slope, rel=0.06)
    middle = (MATCHED + UNMATCHED) / 2 - np.log(prior / (1 - prior)) / slope
    assert -found.offset / found.slope == pytest.approx(middle, abs=0.003)
    assert found.ece < 0.02
    scores = np.concatenate([RNG.normal(MATCHED, SPREAD, 50_000), RNG.normal(UNMATCHED, SPREAD, 50_000)])
    truth = 1 / (1 + np.exp(-(slope * (scores - middle))))
    weights = np.repeat([prior, 1 - prior], 50_000)
    brier = np.average((truth - np.repeat([1.0, 0.0], 50_000)) ** 2, weights=weights)
    assert found.brier == pytest.approx(brier, rel=0.05)


@pytest.mark.parametrize("count", [100, 20_000])
def test_the_best_of_many_that_do_not_match_is_likely_none(count: int) -> None:
    found = calibrate(*drawn(4_000, 60_000))
    best = RNG.normal(UNMATCHED, SPREAD, (100, count)).max(axis=1)
    assert found.probability(best).mean() > 0.5, "the curve of pairs drawn at random"
    assert found.of_best(count).probability(best).mean() < 0.5
    assert found.of_best(count).probability(1.0) > 0.99


def test_another_prior_is_a_shift() -> None:
    found, rare = calibrate(*drawn(4_000, 60_000)), calibrate(*drawn(4_000, 60_000), 0.01)
    scores = np.linspace(0.2, 0.45, 6)
    np.testing.assert_allclose(found.probability(scores, 0.01), rare.probability(scores), atol=0.05)
    assert np.all(np.diff(found.probability(scores)) > 0)
    assert found.probability([[0.3]]).shape == (1, 1)


def test_above_a_threshold_so_many_pairs_match() -> None:
    found = calibrate(*drawn(4_000, 60_000))
    edge = found.threshold(0.9)
    assert found.probability(edge) == pytest.approx(0.9)
    assert found.threshold(0.9, prior=0.01) > edge
    hits, others = RNG.normal(MATCHED, SPREAD, 100_000) > edge, RNG.normal(UNMATCHED, SPREAD, 100_000) > edge
    assert hits.sum() / (hits.sum() + others.sum()) > 0.9
    for wrong in (0, 1, 1.5, float("nan")):
        with pytest.raises(SearchError, match="is no probability"):
            found.threshold(wrong)


def test_separate_scores_have_a_finite_slope() -> None:
    matched, unmatched = np.linspace(0.5, 0.6, 30), np.linspace(0.1, 0.2, 30)
    found = calibrate(matched, unmatched, (np.arange(30), np.arange(30)))
    assert np.isfinite([found.slope, found.offset]).all()
    assert found.probability(0.55) > 0.9 > 0.1 > found.probability(0.15)


def test_the_error_of_a_calibration_by_hand() -> None:
    foretold, hits = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(foretold, hits, np.full(4, 0.25)) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)


def test_what_says_nothing_is_refused() -> None:
    matched, unmatched, queries = drawn(100, 100)
    with pytest.raises(SearchError, match="matched pairs score no higher"):
        calibrate(unmatched, matched, queries)
    with pytest.raises(SearchError, match="9 matched and 100 unmatched pairs are too few"):
        calibrate(matched[:9], unmatched, (queries[0][:9], queries[1]))
    with pytest.raises(SearchError, match="all scores are the same"):
        calibrate(np.ones(20), np.ones(20), (np.arange(20), np.arange(20)))
    with pytest.raises(SearchError, match="belong to one query"):
        calibrate(matched, unmatched, (np.zeros(100, int), np.zeros(100, int)))


def test_it_is_plain_numbers() -> None:
    found = calibrate(*drawn(200, 2_000))
    again = Calibration.from_dict({**json.loads(json.dumps(found.to_dict())), "data": "photos"})
    assert again == found
