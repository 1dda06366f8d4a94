from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipdistill.errors import DataError, ModelError
from clipdistill.evaluation import metrics
from clipdistill.evaluation.metrics import best_ranks, mean_average_precision, recall_at, unit

EYE = np.array(
    [
        [0.9, 0.1, 0.2, 0.3],  # positive 0 is first
        [0.5, 0.4, 0.1, 0.2],  # positive 1 is second
        [0.4, 0.3, 0.1, 0.2],  # positive 2 is last
    ]
)


def test_recall_by_eye() -> None:
    recall = recall_at(EYE, [[0], [1], [2]], ks=(1, 2, 3, 4))
    assert recall == pytest.approx({1: 100 / 3, 2: 200 / 3, 3: 200 / 3, 4: 100})


def test_one_of_several_positives_is_enough() -> None:
    assert recall_at(EYE, [[0], [1, 0], [2, 3]], ks=(1, 3)) == pytest.approx({1: 200 / 3, 3: 100})


def test_a_positive_named_twice_is_one() -> None:
    scores = np.array([[0.9, 0.8, 0.1]])
    assert best_ranks(scores, [[1, 1]]).tolist() == [2]
    assert mean_average_precision(scores, [[1, 1]]) == pytest.approx(50)


def test_average_precision_by_eye() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    assert mean_average_precision(scores, [[0, 2]]) == pytest.approx(100 * (1 / 1 + 2 / 3) / 2)
    assert mean_average_precision(scores, [[1, 4]]) == pytest.approx(100 * (1 / 2 + 2 / 5) / 2)
    assert mean_average_precision(scores, [[0, 1, 2, 3, 4]]) == pytest.approx(100)


def test_ties_count_against() -> None:
    scores = np.array([[0.5, 0.5, 0.1]])
    assert recall_at(scores, [[0]], ks=(1, 2)) == {1: 0.0, 2: 100.0}
    assert mean_average_precision(scores, [[0]]) == pytest.approx(50)
    # Positives that tie with each other do not stand in each other's way.
    assert recall_at(scores, [[0, 1]], ks=(1,)) == {1: 100.0}
    assert mean_average_precision(scores, [[0, 1]]) == pytest.approx(100)


def test_a_collapsed_model_finds_nothing() -> None:
    same = np.zeros((50, 50))
    assert recall_at(same, [[i] for i in range(50)], ks=(1, 10)) == {1: 0.0, 10: 0.0}
    row = np.random.default_rng(0).standard_normal((1, 16)).repeat(100, axis=0)
    assert recall_at((row, row), [[i] for i in range(100)], ks=(1,))[1] <= 5
    assert recall_at((0 * row, 0 * row), [[i] for i in range(100)], ks=(1,))[1] == 0


def test_not_a_number_is_a_miss() -> None:
    nan = np.nan
    scores = np.array([[nan, 0.2, 0.1], [0.9, 0.2, nan]])
    assert list(best_ranks(scores, [[0], [0]])) == [3, 2]
    assert np.isnan(scores[0, 0])  # the caller's matrix is left as it was


def test_an_excluded_row_is_neither_positive_nor_negative() -> None:
    scores = np.array([[1.0, 0.5, 0.4], [0.5, 1.0, 0.6], [0.2, 0.1, 1.0]])
    own = np.arange(3)
    positives = [[0, 1], [0, 1], [2]]  # the third has only itself, so it is left out
    assert recall_at(scores, positives, ks=(1,), exclude=own) == {1: 50.0}
    assert mean_average_precision(scores, positives, exclude=own) == pytest.approx(75)


def test_queries_without_a_positive_are_left_out() -> None:
    assert recall_at(EYE, [[0], [], []], ks=(1,)) == {1: 100.0}
    with pytest.raises(DataError, match="none of the 3 queries has a positive"):
        recall_at(EYE, [[], [], []])
    with pytest.raises(DataError, match="3 queries, but positives for 1"):
        mean_average_precision(EYE, [[0]])


def test_rows_are_normalised_inside() -> None:
    queries, gallery = np.array([[2.0, 0.0], [0.0, 0.1]]), np.array([[0.1, 0.0], [50.0, 60.0], [0.0, 9.0]])
    assert recall_at((queries, gallery), [[0], [2]], ks=(1,)) == {1: 100.0}
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(np.array([[0.6, 0.8], [0.0, 0.0]]))
    with pytest.raises(ModelError, match="1 of 2 queries are not finite"):
        recall_at((np.array([[np.nan, 1.0], [1.0, 1.0]]), gallery), [[0], [2]])


def naive_ranks(scores: NDArray[np.float64], positives: list[int], excluded: int) -> list[int]:
    """The ranks of the positives, best first, by counting."""
    others = [x for column, x in enumerate(scores) if column not in positives and column != excluded]
    own = sorted((scores[p] for p in positives if p != excluded), reverse=True)
    return [place + sum(x >= score for x in others) for place, score in enumerate(own, 1)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    queries=st.integers(1, 7),
    gallery=st.integers(1, 9),
    levels=st.sampled_from([1, 2, 4, 1000]),
    chunk=st.sampled_from([1, 20, 2**24]),
    exclude=st.booleans(),
)
def test_agrees_with_counting(seed: int, queries: int, gallery: int, levels: int, chunk: int, exclude: bool) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (queries, gallery)) / levels
    positives = [[int(i) for i in np.flatnonzero(rng.random(gallery) < 0.4)] for _ in range(queries)]
    positives[0] = [0, *positives[0][1:]] if positives[0][:1] == [0] else [0, *positives[0]]
    excluded = rng.integers(0, gallery, queries)
    excluded[0] = gallery - 1 if gallery > 1 else -1
    if not exclude:
        excluded[:] = -1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "CHUNK", chunk)
        given_exclude = excluded if exclude and gallery > 1 else None
        recall = recall_at(scores, positives, ks=(1, 3), exclude=given_exclude)
        precision = mean_average_precision(scores, positives, exclude=given_exclude)
    ranks = [naive_ranks(*row) for row in zip(scores, positives, excluded.tolist(), strict=True)]
    ranks = [own for own in ranks if own]
    for k in (1, 3):
        assert recall[k] == pytest.approx(100 * np.mean([own[0] <= k for own in ranks]))
    naive = [np.mean([place / rank for place, rank in enumerate(own, 1)]) for own in ranks]
    assert precision == pytest.approx(100 * np.mean(naive))
