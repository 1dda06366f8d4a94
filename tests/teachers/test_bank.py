"""Banks: which rows are picked, the same after a restart, and centroids as the published code makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from clipdistill.data.order import Order
from clipdistill.errors import ConfigError, DataError
from clipdistill.teachers.bank import Bank, Draw, centroids

GOLDEN = Path(__file__).parents[1] / "golden"
ORDER = Order(50, 6, 3)
DRAWS: list[Draw] = ["random", "queue", "mined"]
NEAR = np.stack([np.random.default_rng(row).permutation(np.delete(np.arange(50), row))[:5] for row in range(50)])


def bank(draw: Draw, size: int, seed: int = 0) -> Bank:
    return Bank(size, draw, NEAR.astype(np.int32), 50, seed, ORDER.walk)


def picks(made: Bank, start: int, stop: int) -> list[list[int]]:
    return [made.pick(start + i, rows).tolist() for i, (_, rows) in enumerate(ORDER.walk(start, stop))]


def recent(step: int, size: int) -> list[int]:
    """The rows before a batch, latest batch first, without repeats and without its own."""
    batches = [rows for _, rows in ORDER.walk(0, step + 1)]
    found: list[int] = []
    for rows in reversed(batches[:-1]):
        found += [row for row in rows if row not in found and row not in batches[-1]]
    return found[:size]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("size", [1, 10, 44])
def test_a_bank_is_full_without_repeats_or_the_batchs_own_rows(draw: Draw, size: int) -> None:
    for (_, rows), picked in zip(ORDER.walk(0, 20), picks(bank(draw, size), 0, 20), strict=True):
        assert len(picked) == len(set(picked)) == size
        assert not set(picked) & set(rows)
        assert set(picked) <= set(range(50))


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("size", [3, 20, 43])
def test_a_restart_picks_what_an_unbroken_run_picks(draw: Draw, size: int) -> None:
    whole = picks(bank(draw, size), 0, 40)
    for start in (1, 7, 8, 9, 30):
        assert picks(bank(draw, size), start, 40) == whole[start:]
    assert [bank(draw, size).pick(20, next(ORDER.walk(20, 21))[1]).tolist()] == whole[20:21]


@pytest.mark.parametrize("draw", DRAWS)
def test_steps_may_be_asked_again_and_in_any_order(draw: Draw) -> None:
    whole, made = picks(bank(draw, 20), 0, 30), bank(draw, 20)
    for step in (5, 5, 6, 20, 6, 7, 0, 1, 29):
        assert made.pick(step, next(ORDER.walk(step, step + 1))[1]).tolist() == whole[step]


def test_random_rows_change_with_step_and_seed_and_cover_the_store_evenly() -> None:
    made = bank("random", 10)
    assert made.pick(0, [0]).tolist() != made.pick(1, [0]).tolist()
    assert made.pick(0, [0]).tolist() != bank("random", 10, seed=1).pick(0, [0]).tolist()
    drawn = np.bincount(np.concatenate([made.pick(step, [7, 8]) for step in range(2000)]), minlength=50)
    others = np.delete(drawn, [7, 8])
    assert drawn[[7, 8]].tolist() == [0, 0]
    assert np.abs(others / 2000 - 10 / 48).max() < 0.04


@pytest.mark.parametrize("size", [4, 10, 30])
def test_the_queue_is_the_rows_of_the_latest_batches(size: int) -> None:
    for step, picked in enumerate(picks(bank("queue", size), 0, 40)):
        expected = recent(step, size)
        assert picked[: len(expected)] == expected
        assert len(expected) == min(size, 6 * step) or step > 5


def test_the_queue_serves_a_batch_that_lost_rows() -> None:
    rows = next(ORDER.walk(12, 13))[1]
    picked = bank("queue", 10).pick(12, rows[:4]).tolist()
    # The two rows that could not be read belong to no batch before this one of the epoch, but may to the epoch before.
    assert len(set(picked)) == 10
    assert not set(picked) & set(rows[:4])
    before = [row for _, batch in ORDER.walk(8, 12) for row in batch]
    assert set(picked) <= set(before)


def test_mined_rows_come_rank_by_rank() -> None:
    rows = [3, 41, 17]
    expected: list[int] = []
    for rank in range(5):
        for row in rows:
            position = int(NEAR[row, rank])
            if position not in expected and position not in rows:
                expected.append(position)
    assert bank("mined", 8).pick(0, rows).tolist() == expected[:8]
    assert bank("mined", 40).pick(0, rows).tolist()[: len(expected)] == expected


def test_a_bank_larger_than_the_store_is_refused() -> None:
    with pytest.raises(DataError, match="a bank of 45 rows beside a batch of 6 needs 51 stored rows, found 50"):
        bank("random", 45).pick(0, range(6))


@pytest.mark.parametrize(
    ("draw", "neighbours", "error", "message"),
    [
        ("minde", None, ConfigError, "Did you mean 'mined'"),
        ("mined", None, ConfigError, "needs the neighbours"),
        ("queue", None, ConfigError, "needs the walk"),
        ("mined", NEAR[:40], DataError, "holds 50 rows, but neighbours of 40"),
    ],
)
def test_a_bank_that_lacks_something_says_so(
    draw: Any, neighbours: NDArray[Any] | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Bank(4, draw, neighbours, 50, 0)


def test_centroids_are_those_of_the_published_code() -> None:
    golden = load_file(GOLDEN / "embedkd-centroids-n60k4d12.safetensors")
    found = centroids(golden["embeddings"], golden["labels"], 6, ["a", "b", "c", "d"])
    assert found.dtype == np.float32
    assert np.array_equal(found, golden["centroids"].astype(np.float32))


def test_centroids_average_the_first_rows_of_each_class(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float16)
    labels = [2, -1, 0, 2, 1, 2] * 5
    np.save(tmp_path / "rows.npy", rows)
    found = centroids(np.load(tmp_path / "rows.npy", mmap_mode="r"), labels, 7, ["cat", "dog", "owl"])
    for number in range(3):
        members = [row for row, label in zip(rows.astype(np.float64), labels, strict=True) if label == number][:7]
        assert np.allclose(found[number], sum(members) / len(members), atol=1e-7)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 2, -1], "class 'dog' has no row"),
        ([0, 1, 3, 2], "labels from 0 to 3, but 3 classes"),
        ([0, 1, -2, 2], "labels from -2 to 2"),
        ([0, 1, 2], "4 rows, but 3 labels"),
    ],
)
def test_centroids_name_what_is_wrong(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        centroids(np.ones((4, 2), np.float32), labels, 5, ["cat", "dog", "owl"])
