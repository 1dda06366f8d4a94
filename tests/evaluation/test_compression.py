"""Rows cut and stored in fewer bits, against what a plain loop makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from clipdistill.errors import ConfigError, DataError
from clipdistill.evaluation.compression import FORMATS, cut, int8_codes, ranks_stored, read_back, row_bytes
from clipdistill.evaluation.metrics import best_ranks, unit

Floats = NDArray[np.float32]
RNG = np.random.default_rng(5)
GALLERY = RNG.normal(size=(400, 24)).astype(np.float32)
QUERIES = GALLERY[:60] + 0.8 * RNG.normal(size=(60, 24)).astype(np.float32)
OWN = [np.array([query, query + 200]) for query in range(60)]


def naive_ranks(scores: NDArray[np.float64]) -> list[int]:
    """One more than the rows that answer nothing and are at least as similar as the best answer."""
    found = []
    for row, own in zip(scores, OWN, strict=True):
        others = np.delete(row, own)
        found.append(1 + int(np.sum(others >= row[own].max())))
    return found


def hamming(one: Floats, other: Floats) -> NDArray[np.float64]:
    return np.array([[np.sum((a > 0) != (b > 0)) for b in other] for a in one], np.float64)


def test_a_cut_row_is_its_first_channels_at_unit_length() -> None:
    small = cut(GALLERY, 5)
    assert small == pytest.approx(GALLERY[:, :5] / np.linalg.norm(GALLERY[:, :5], axis=1, keepdims=True))
    with pytest.raises(ConfigError, match="1 to 24 channels, found 25"):
        cut(GALLERY, 25)


def test_float32_ranks_are_those_of_eval() -> None:
    assert ranks_stored("float32", QUERIES, GALLERY, OWN).tolist() == best_ranks((QUERIES, GALLERY), OWN).tolist()
    alone = np.arange(60)
    without = ranks_stored("float32", GALLERY[:60], GALLERY, OWN, alone)
    assert without.tolist() == best_ranks((GALLERY[:60], GALLERY), OWN, alone).tolist()


def test_float16_ranks_are_those_of_rounded_values() -> None:
    queries, gallery = (unit(rows).astype(np.float16).astype(np.float32) for rows in (QUERIES, GALLERY))
    assert ranks_stored("float16", QUERIES, GALLERY, OWN).tolist() == naive_ranks(queries @ gallery.T)


def test_int8_codes_are_the_nearest_whole_numbers() -> None:
    rows = unit(np.vstack([GALLERY[:20], np.zeros((1, 24), np.float32)]))
    codes, scales = int8_codes(rows)
    assert codes.dtype == np.int8
    assert np.abs(codes).max(axis=1).tolist() == [127] * 20 + [0]
    assert np.abs(codes * scales[:, None] - rows).max() <= scales.max() / 2 + 1e-7


def test_int8_ranks_are_those_of_codes_times_scales() -> None:
    scores = np.empty((60, 400))
    for number, query in enumerate(unit(QUERIES)):
        asked = np.rint(query / (np.abs(query).max() / 127))
        for place, row in enumerate(unit(GALLERY)):
            scale = np.abs(row).max() / 127
            scores[number, place] = float(asked @ np.rint(row / scale)) * scale
    assert ranks_stored("int8", QUERIES, GALLERY, OWN).tolist() == naive_ranks(scores)


def test_binary_ranks_are_those_of_hamming_distances_and_ties_count_against() -> None:
    found = ranks_stored("binary", QUERIES, GALLERY, OWN)
    distances = hamming(QUERIES, GALLERY)
    assert found.tolist() == naive_ranks(-distances)
    ties = [np.sum(np.delete(row, own) == row[own].min()) for row, own in zip(distances, OWN, strict=True)]
    assert max(ties) > 0


@pytest.mark.parametrize("form", ["int8", "binary"])
def test_rescoring_reorders_the_first_hundred_and_nothing_else(form: str) -> None:
    rough = -hamming(QUERIES, GALLERY) if form == "binary" else read_back(form, QUERIES) @ read_back(form, GALLERY).T
    exact = unit(QUERIES) @ unit(GALLERY).T
    expected, missed = [], 0
    for number, own in enumerate(OWN):
        answers = np.isin(np.arange(400), own)
        first = np.lexsort((answers, -rough[number]))[:100]
        kept = first[answers[first]]
        missed += not len(kept)
        others = first[~answers[first]]
        expected.append(1 + int(np.sum(exact[number, others] >= exact[number, kept].max())) if len(kept) else 399)
    found = ranks_stored(form, QUERIES, GALLERY, OWN, rescore=True).tolist()
    assert found == expected
    plain = ranks_stored(form, QUERIES, GALLERY, OWN)
    assert np.mean(np.array(found) <= 1) >= np.mean(plain <= 1)


def test_an_answer_beyond_the_first_hundred_is_last() -> None:
    """A query far from its answer: its sign bits are the other way round."""
    gallery = np.vstack([-QUERIES[:1], GALLERY])
    (rank,) = ranks_stored("binary", QUERIES[:1], gallery, [np.array([0])], rescore=True)
    assert rank == len(gallery)


def test_a_query_is_no_candidate_of_its_own() -> None:
    own = [np.array([query, (query + 1) % 400]) for query in range(400)]
    found = ranks_stored("binary", GALLERY, GALLERY, own, np.arange(400), rescore=True)
    exact = best_ranks((GALLERY, GALLERY), own, np.arange(400))
    seen = found < 399
    assert 0 < seen.sum() < 400
    assert np.all(found[seen] <= exact[seen])


def test_strips_do_not_change_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ranks_stored("binary", QUERIES, GALLERY, OWN, np.arange(60), rescore=True)
    monkeypatch.setattr("clipdistill.evaluation.agreement.CHUNK", 400 * 7)
    assert ranks_stored("binary", QUERIES, GALLERY, OWN, np.arange(60), rescore=True).tolist() == whole.tolist()


def test_bytes_of_a_row() -> None:
    assert [row_bytes(form, 20) for form in FORMATS] == [80, 40, 24, 3]
    with pytest.raises(ConfigError, match=r"no format 'int9'.*int8"):
        row_bytes("int9", 20)
    with pytest.raises(ConfigError, match="no format 'bits'"):
        ranks_stored("bits", QUERIES, GALLERY, OWN)
    with pytest.raises(DataError, match="60 queries, but positives for 59"):
        ranks_stored("int8", QUERIES, GALLERY, OWN[:59])
