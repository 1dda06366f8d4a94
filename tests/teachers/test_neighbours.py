"""Neighbours and near duplicates against plain loops, for arrays and files, whatever the size of a tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipdistill.errors import DataError
from clipdistill.teachers.neighbours import duplicates, nearest


def some_rows(count: int = 61, width: int = 6, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def naive_cosines(rows: NDArray[Any]) -> NDArray[np.float64]:
    exact = rows.astype(np.float64)
    table = np.empty((len(rows), len(rows)))
    for i, left in enumerate(exact):
        for j, right in enumerate(exact):
            table[i, j] = left @ right / np.sqrt((left @ left) * (right @ right))
    return table


def naive_groups(rows: NDArray[Any], threshold: float) -> list[int]:
    """Flood from each row in turn."""
    near = naive_cosines(rows) >= threshold
    groups, number = [-1] * len(rows), 0
    for first in range(len(rows)):
        if groups[first] == -1 and near[first].sum() > 1:
            todo = [first]
            while todo:
                row = todo.pop()
                if groups[row] == -1:
                    groups[row] = number
                    todo += np.flatnonzero(near[row]).tolist()
            number += 1
    return groups


@pytest.mark.parametrize("block", [1, 7, 61, 2048])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_nearest_is_that_of_a_loop(block: int, dtype: type, k: int) -> None:
    rows = some_rows().astype(dtype)
    positions, cosines = nearest(rows, k, block)
    assert (positions.dtype, cosines.dtype) == (np.int32, np.float32)
    table = naive_cosines(rows)
    np.fill_diagonal(table, -np.inf)
    assert np.array_equal(positions, np.argsort(-table, axis=1)[:, :k])
    assert np.allclose(cosines, -np.sort(-table, axis=1)[:, :k], atol=1e-6)


def test_rows_may_lie_on_disk(tmp_path: Path) -> None:
    rows = some_rows()
    np.save(tmp_path / "rows.npy", rows)
    on_disk = np.load(tmp_path / "rows.npy", mmap_mode="r")
    for found, expected in zip(nearest(on_disk, 4, 16), nearest(rows, 4, 16), strict=True):
        assert np.array_equal(found, expected)
    assert np.array_equal(duplicates(on_disk, 0.9, 16), duplicates(rows, 0.9, 16))


def test_a_row_equal_to_others_names_them_by_position_and_never_itself() -> None:
    rows = np.eye(3, dtype=np.float32)[[0, 1, 0, 2, 0, 0]]
    positions, cosines = nearest(rows, 3, 2)
    assert positions[[0, 2, 4, 5]].tolist() == [[2, 4, 5], [0, 4, 5], [0, 2, 5], [0, 2, 4]]
    assert cosines[0].tolist() == [1, 1, 1]
    assert all(row not in positions[row] for row in range(6))


@pytest.mark.parametrize("k", [0, 5, 6])
def test_more_neighbours_than_other_rows_are_refused(k: int) -> None:
    with pytest.raises(DataError, match=f"{k} neighbours among 5 rows: expected 1 to 4"):
        nearest(some_rows(5), k)


def test_a_row_that_is_not_finite_is_named() -> None:
    rows = some_rows()
    rows[33, 2] = np.nan
    with pytest.raises(DataError, match="row 33 of 61"):
        nearest(rows, 3, 16)
    with pytest.raises(DataError, match="row 33 of 61"):
        duplicates(rows, 0.9, 16)


@pytest.mark.parametrize("block", [1, 7, 2048])
@pytest.mark.parametrize("threshold", [0.85, 0.92, 0.97])
def test_duplicates_are_those_of_a_flood(block: int, threshold: float) -> None:
    rows = some_rows(count=80, width=4, seed=2)
    expected = naive_groups(rows, threshold)
    assert len(set(expected)) > 2
    assert duplicates(rows, threshold, block).tolist() == expected


@pytest.mark.parametrize("block", [3, 2048])
def test_a_long_chain_is_one_group_and_rows_alone_have_none(block: int) -> None:
    angles = np.random.default_rng(0).permutation(200) * 0.01
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    alone = -rows[:1]
    groups = duplicates(np.concatenate([alone, rows]), float(np.cos(0.015)), block)
    assert groups.dtype == np.int64
    assert groups.tolist() == [-1] + [0] * 200


def test_copies_are_duplicates_at_a_threshold_of_one() -> None:
    rows = some_rows(300, 512)
    copied = np.concatenate([rows, rows[[5, 9, 5]]]).astype(np.float16)
    groups = duplicates(copied, 1.0, 64)
    assert np.flatnonzero(groups >= 0).tolist() == [5, 9, 300, 301, 302]
    assert groups[[5, 9, 300, 301, 302]].tolist() == [0, 1, 0, 1, 0]
