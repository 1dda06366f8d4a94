"""Bootstrap intervals, against a loop that draws and counts one by one."""

from __future__ import annotations

import numpy as np
import pytest

from clipdistill.evaluation import bootstrap
from clipdistill.evaluation.bootstrap import FEWEST, alone, draw, mean_of, paired, per_class, ratio

RNG = np.random.default_rng(11)
UNITS = 40
ASKED = RNG.integers(1, 4, UNITS)
STUDENT = np.minimum(ASKED, RNG.integers(0, 3, UNITS))
TEACHER = np.minimum(ASKED, STUDENT + RNG.integers(0, 2, UNITS))


def test_figures_differences_and_shares_are_those_of_the_same_draws() -> None:
    found = paired(UNITS, {"r": (ratio(STUDENT, ASKED), ratio(TEACHER, ASKED))}, draws=1_500)["r"]
    values = []
    for weights in np.concatenate(list(draw(UNITS, 1_500, 0))):
        drawn = np.repeat(np.arange(UNITS), weights.astype(int))
        values.append([100 * side[drawn].sum() / ASKED[drawn].sum() for side in (STUDENT, TEACHER)])
    mine, theirs = np.array(values).T
    for interval, series in (
        (found.student, mine),
        (found.teacher, theirs),
        (found.difference, mine - theirs),
        (found.share, 100 * mine / theirs),
    ):
        assert interval is not None
        assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(series, [2.5, 97.5])))
    assert found.student.value == pytest.approx(100 * STUDENT.sum() / ASKED.sum())
    assert found.share is not None
    assert found.share.value == pytest.approx(100 * STUDENT.sum() / TEACHER.sum())


def test_pairing_makes_differences_certain_that_two_intervals_leave_open() -> None:
    """The student misses what the teacher finds in a twentieth of the pictures, and nothing else."""
    teacher = (np.arange(400) % 2).astype(float)
    student = teacher * (np.arange(400) % 20 != 1)
    found = paired(400, {"r": (ratio(student, np.ones(400)), ratio(teacher, np.ones(400)))})["r"]
    assert found.student.high is not None
    assert found.teacher.low is not None
    assert found.difference.high is not None
    assert found.student.high > found.teacher.low
    assert found.difference.high < 0


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        hits = np.random.default_rng(seed).random(150) < 0.3
        found = paired(150, {"r": (ratio(hits, np.ones(150)),) * 2}, draws=400)["r"].student
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 30 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_captions_of_a_picture_are_drawn_together() -> None:
    """Five captions that succeed and fail as one tell no more than one."""
    hits = RNG.random(100) < 0.5
    five = paired(100, {"r": (ratio(5 * hits, np.full(100, 5)),) * 2})["r"].student
    one = paired(100, {"r": (ratio(hits, np.ones(100)),) * 2})["r"].student
    assert (five.low, five.high) == (one.low, one.high)


def test_few_pictures_have_no_interval() -> None:
    """Where all of a few are found every draw says 100, and that is no evidence."""
    for units in (FEWEST - 1, FEWEST):
        hits = np.ones(units)
        found = paired(units, {"a": (ratio(hits, hits), ratio(hits, hits))})["a"]
        assert found.share is not None
        told = {(one.low, one.high) for one in (found.student, found.teacher, found.share)}
        assert told == ({(None, None)} if units < FEWEST else {(100.0, 100.0)})
        assert (alone(units, {"a": ratio(hits, hits)})["a"].low is None) == (units < FEWEST)


def test_mean_per_class_is_over_the_classes_drawn() -> None:
    classes, hits = RNG.integers(0, 5, 30), RNG.random(30) < 0.6
    statistic = per_class(hits, classes)
    weights = np.concatenate(list(draw(30, 50, 3)))
    weights[0, classes == 2] = 0  # a draw without one of the classes
    for row, value in zip(weights, statistic(weights), strict=True):
        shares = [
            np.sum(row * hits * (classes == c)) / np.sum(row * (classes == c))
            for c in range(5)
            if np.sum(row * (classes == c))
        ]
        assert value == pytest.approx(100 * np.mean(shares))


def test_mean_of_several() -> None:
    weights = next(draw(UNITS, 7, 0))
    both = ratio(STUDENT, ASKED), ratio(TEACHER, ASKED)
    assert mean_of(both)(weights) == pytest.approx((both[0](weights) + both[1](weights)) / 2)


def test_a_teacher_without_hits_has_no_share() -> None:
    none, some, few = np.zeros(20), np.ones(20), np.eye(20)[0]
    found = paired(20, {"none": (ratio(some, some), ratio(none, some)), "few": (ratio(few, some), ratio(few, some))})
    assert found["none"].share is None
    share = found["few"].share
    assert share is not None
    assert (share.value, share.low, share.high) == (100, None, None)


def test_draws_are_whole_counts_and_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draw(30, 25, 1)))
    assert whole.shape == (25, 30)
    assert np.all(whole.sum(axis=1) == 30)
    monkeypatch.setattr(bootstrap, "_CHUNK", 100)
    parts = list(draw(30, 25, 1))
    assert len(parts) == 9
    assert np.array_equal(np.concatenate(parts), whole)


def test_one_model_alone_has_the_intervals_it_has_beside_another() -> None:
    beside = paired(UNITS, {"r": (ratio(STUDENT, ASKED), ratio(TEACHER, ASKED))}, draws=200)["r"]
    found = alone(UNITS, {"s": ratio(STUDENT, ASKED), "t": ratio(TEACHER, ASKED)}, draws=200)
    assert found == {"s": beside.student, "t": beside.teacher}
