"""Orders: every sample once per epoch, the same from any starting point, near ones together where asked."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from clipdistill.data.order import NeighbourOrder, Order
from clipdistill.errors import DataError


def ring(samples: int, k: int) -> NDArray[np.int32]:
    """Samples on a circle, numbered at random: the nearest are those beside it, one step, two steps, ..."""
    names = np.random.default_rng(5).permutation(samples)
    steps = np.array([sign * (1 + step // 2) for step, sign in zip(range(k), [1, -1] * k, strict=False)])
    table = np.empty((samples, k), np.int32)
    table[names] = names[(np.arange(samples)[:, None] + steps) % samples]
    return table


def both(samples: int, batch_size: int, seed: int = 3) -> list[Order | NeighbourOrder]:
    return [Order(samples, batch_size, seed), NeighbourOrder(ring(samples, 8), batch_size, seed, 4)]


def near_pairs(order: Order | NeighbourOrder, neighbours: NDArray[np.int32], epochs: int) -> float:
    """How many of its two nearest neighbours a row finds in its batch, on average."""
    found = []
    for _, rows in order.walk(0, epochs * order.batches_per_epoch):
        inside = set(rows)
        found += [len(inside & set(neighbours[row, :2].tolist())) for row in rows]
    return float(np.mean(found))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("samples", [96, 99, 103])
def test_every_epoch_shows_each_sample_at_most_once_and_fills_its_batches(kind: int, samples: int) -> None:
    order = both(samples, 12)[kind]
    assert order.batches_per_epoch == 8
    shown = list(order.walk(0, 16))
    for epoch in (0, 1):
        rows = [row for number, batch in shown if number == epoch for row in batch]
        assert len(rows) == len(set(rows)) == 96
        assert set(rows) <= set(range(samples))
    assert [rows for _, rows in shown[:8]] != [rows for _, rows in shown[8:]]
    assert all(len(rows) == 12 for _, rows in shown)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_walk_from_any_batch_is_the_rest_of_the_walk(kind: int) -> None:
    whole = list(both(103, 12)[kind].walk(0, 25))
    for start in (1, 7, 8, 9, 24):
        assert list(both(103, 12)[kind].walk(start, 25)) == whole[start:]
    assert list(both(103, 12, seed=4)[kind].walk(0, 25)) != whole


@pytest.mark.parametrize("kind", [0, 1])
def test_the_samples_left_out_change_with_the_epoch(kind: int) -> None:
    order = both(103, 12)[kind]
    missed = []
    for epoch in range(30):
        shown = {row for _, rows in order.walk(8 * epoch, 8 * epoch + 8) for row in rows}
        missed.append(set(range(103)) - shown)
    assert len(set().union(*missed)) > 60
    assert max(sum(row in left for left in missed) for row in range(103)) <= 10


def test_neighbours_share_batches() -> None:
    table = ring(960, 8)
    near = near_pairs(NeighbourOrder(table, 32, 0, 4), table, 2)
    chance = near_pairs(Order(960, 32, 0), table, 2)
    assert chance < 0.15
    assert near > 0.9


def test_batches_are_made_of_whole_groups_around_their_first_sample() -> None:
    table = ring(960, 16)
    groups = [rows[at : at + 4] for _, rows in NeighbourOrder(table, 32, 0, 4).walk(0, 30) for at in range(0, 32, 4)]
    whole = [group for group in groups if set(group[1:]) <= set(table[group[0]].tolist())]
    assert len(whole) > 0.8 * len(groups)
    # Shuffled: the groups that found too few neighbours are not all in the last batches.
    broken = [place for place, group in enumerate(groups) if set(group[1:]) - set(table[group[0]].tolist())]
    assert min(broken) < len(groups) / 4


def test_samples_without_free_neighbours_are_shown_too() -> None:
    # All name the same two samples as their neighbours: one group finds them, everything else is left.
    table = np.tile(np.array([[0, 1]], np.int32), (24, 1))
    table[0], table[1] = [1, 2], [0, 2]
    rows = [row for _, batch in NeighbourOrder(table, 6, 0, 3).walk(0, 4) for row in batch]
    assert sorted(rows) == list(range(24))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": 5}, "cannot be made of groups of 5"),
        ({"group": 1}, "at least 2"),
        ({"group": 6}, "need 5 neighbours of each, found 4"),
        ({"batch_size": 48}, "a batch of 48 does not fit into 36 samples"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        NeighbourOrder(**{"neighbours": ring(36, 4), "batch_size": 12, "seed": 0, "group": 4} | change)  # type: ignore[arg-type]


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(DataError, match="a batch of 5 does not fit into 4 samples"):
        Order(4, 5, 0)
