"""Agreement of two models, against the obvious loops over small rows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from clipdistill.errors import DataError
from clipdistill.evaluation import metrics
from clipdistill.evaluation.agreement import (
    centred_cosine,
    mean_ranks,
    predictions,
    rank_correlation,
    strips,
    top_k_overlap,
)

Floats = NDArray[np.float32]
RNG = np.random.default_rng(3)


def rows(count: int, width: int) -> Floats:
    return RNG.normal(size=(count, width)).astype(np.float32)


def cosines(asked: tuple[Floats, Floats]) -> Floats:
    queries, gallery = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in asked)
    return np.asarray(queries @ gallery.T, np.float32)


STUDENT, TEACHER = (rows(30, 6), rows(40, 6)), (rows(30, 9), rows(40, 9))


def test_overlap_is_that_of_sorted_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipdistill.evaluation.agreement.CHUNK", 200)
    first, second = (np.argsort(-cosines(asked), axis=1) for asked in (STUDENT, TEACHER))
    found = top_k_overlap(STUDENT, TEACHER, (1, 5, 10))
    for k in (1, 5, 10):
        shared = [len(set(one[:k]) & set(other[:k])) / k for one, other in zip(first, second, strict=True)]
        assert found[k] == pytest.approx(100 * np.mean(shared))


def test_a_query_does_not_share_itself() -> None:
    one, other = rows(12, 5), rows(12, 5)
    alone = np.arange(12)
    first, second = (cosines((side, side)) for side in (one, other))
    for scores in (first, second):
        np.fill_diagonal(scores, -9)
    found = top_k_overlap((one, one), (other, other), (1, 11), alone)
    assert found == {1: pytest.approx(100 * np.mean(first.argmax(1) == second.argmax(1)))}  # 11 is all there is
    assert top_k_overlap((one, one), (other, other), (1,))[1] == 100


def test_rank_correlation_is_spearmans() -> None:
    first, second = cosines(STUDENT), cosines(TEACHER)
    expected = [
        np.corrcoef(np.argsort(np.argsort(one)), np.argsort(np.argsort(other)))[0, 1]
        for one, other in zip(first, second, strict=True)
    ]
    assert rank_correlation(STUDENT, TEACHER) == pytest.approx(float(np.mean(expected)))
    assert rank_correlation(STUDENT, STUDENT) == pytest.approx(1)
    flipped = (-STUDENT[0], STUDENT[1])
    assert rank_correlation(STUDENT, flipped) == pytest.approx(-1)


def test_rank_correlation_leaves_the_query_out() -> None:
    one, other = rows(10, 4), rows(10, 4)
    expected = []
    for query in range(10):
        kept = np.delete(np.arange(10), query)
        pair = [np.argsort(np.argsort(cosines((side, side))[query, kept])) for side in (one, other)]
        expected.append(np.corrcoef(*pair)[0, 1])
    found = rank_correlation((one, one), (other, other), np.arange(10))
    assert found == pytest.approx(float(np.mean(expected)))


def test_one_row_is_no_ranking() -> None:
    rows = np.eye(2, dtype=np.float32)
    assert rank_correlation((rows, rows[:1]), (rows, rows[:1])) is None
    assert rank_correlation((rows, rows), (rows, rows), np.arange(2)) is None
    assert rank_correlation((rows, rows), (rows, rows)) == pytest.approx(1)


def test_equal_values_share_their_mean_rank() -> None:
    assert mean_ranks(np.array([0.5, 0.1, 0.5, 0.9, 0.5])).tolist() == [2, 0, 2, 4, 2]


def test_a_collapsed_model_correlates_with_nothing() -> None:
    same = (np.ones((30, 6), np.float32), np.ones((40, 6), np.float32))
    assert rank_correlation(same, TEACHER) == 0
    assert centred_cosine(np.ones((8, 3), np.float32), rows(8, 3)) == pytest.approx(0, abs=1e-6)


def test_predictions_are_the_nearest_class() -> None:
    pictures, classes = STUDENT
    assert predictions(pictures, classes).tolist() == cosines(STUDENT).argmax(axis=1).tolist()
    assert predictions(pictures[:2], np.repeat(classes[:1], 3, axis=0)).tolist() == [0, 0]


def test_centring_shows_what_a_narrow_cone_hides() -> None:
    cone = np.full(16, 5, np.float32)
    one, other = rows(300, 16) + 4 * cone, rows(300, 16) + 4 * cone
    raw = np.sum(metrics.unit(one) * metrics.unit(other), axis=1).mean()
    assert raw > 0.99
    assert abs(centred_cosine(one, other)) < 0.05
    assert centred_cosine(one, one) == pytest.approx(1, abs=1e-5)
    with pytest.raises(DataError, match="the same width"):
        centred_cosine(one, one[:, :3])


def test_models_are_asked_the_same() -> None:
    with pytest.raises(DataError, match=r"30 queries over 40 rows, the other 30 over 39"):
        top_k_overlap(STUDENT, (TEACHER[0], TEACHER[1][:39]))


def test_strips_cover_all_queries_and_stay_small() -> None:
    parts = list(strips(10, 2**23))
    assert [(part.start, part.stop) for part in parts] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    assert [part.stop for part in strips(3, 2**30)] == [1, 2, 3]
