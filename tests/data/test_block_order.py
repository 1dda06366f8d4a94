"""Block orders: every sample once per epoch, few blocks at a time, the same from any starting point."""

from __future__ import annotations

import numpy as np
import pytest

from clipdistill.data.block_order import BlockOrder, fetch_ahead, order_of
from clipdistill.data.order import Order
from clipdistill.data.samples import Sample
from clipdistill.data.sources import from_samples
from clipdistill.errors import DataError

UNEVEN = (30, 1, 0, 55, 40, 7, 62, 18, 33, 41, 29, 60)


def of_block(blocks: tuple[int, ...]) -> list[int]:
    return [block for block, size in enumerate(blocks) for _ in range(size)]


def rows_of(order: BlockOrder, epoch: int) -> list[int]:
    count = order.batches_per_epoch
    return [row for _, rows in order.walk(epoch * count, (epoch + 1) * count) for row in rows]


@pytest.mark.parametrize("window", [1, 3, 8, 20])
def test_every_epoch_shows_each_sample_at_most_once_in_another_order(window: int) -> None:
    order = BlockOrder(UNEVEN, 12, 3, window)
    samples = sum(UNEVEN)
    assert order.batches_per_epoch == samples // 12
    for epoch in range(3):
        rows = rows_of(order, epoch)
        assert len(set(rows)) == len(rows) == samples // 12 * 12
        assert set(rows) <= set(range(samples))
    assert rows_of(order, 0) != rows_of(order, 1)


@pytest.mark.parametrize("window", [1, 3, 20])
def test_a_walk_from_any_batch_is_the_rest_of_the_walk(window: int) -> None:
    whole = list(BlockOrder(UNEVEN, 10, 3, window).walk(0, 90))
    for start in (1, 36, 37, 38, 80):
        assert list(BlockOrder(UNEVEN, 10, 3, window).walk(start, 90)) == whole[start:]
    assert list(BlockOrder(UNEVEN, 10, 4, window).walk(0, 90)) != whole


def test_a_block_comes_into_use_once_and_few_are_in_use_at_a_time() -> None:
    blocks, window = (50,) * 40, 4
    block_of = of_block(blocks)
    for epoch in range(5):
        sequence = [block_of[row] for row in rows_of(BlockOrder(blocks, 10, 0, window), epoch)]
        first = {block: sequence.index(block) for block in set(sequence)}
        last = {block: len(sequence) - 1 - sequence[::-1].index(block) for block in set(sequence)}
        # Nothing is needed for longer than its own samples and the window before them.
        assert max(last[block] - first[block] for block in first) <= (window + 2) * 50
        in_use = [sum(first[block] <= place <= last[block] for block in first) for place in range(len(sequence))]
        assert max(in_use) <= window + 3
        assert np.mean(in_use) > window - 1


def test_samples_mix_across_the_window_and_blocks_come_in_another_order_each_epoch() -> None:
    blocks = (50,) * 40
    block_of = of_block(blocks)
    order = BlockOrder(blocks, 50, 0, 4)
    batches = [rows for _, rows in order.walk(0, 40)]
    in_the_middle = [len({block_of[row] for row in rows}) for rows in batches[4:-4]]
    assert min(in_the_middle) >= 4
    inside = [row % 50 for row in batches[20]]
    assert inside != sorted(inside)
    opening = [next(block_of[row] for row in rows_of(order, epoch)) for epoch in range(12)]
    assert len(set(opening)) > 6


def test_as_many_blocks_as_the_window_are_one_permutation() -> None:
    order = BlockOrder((100, 100), 20, 0, window=2)
    for epoch in range(20):
        assert 3 < sum(row < 100 for row in rows_of(order, epoch)[:20]) < 17


def test_a_block_much_larger_than_the_others_is_shuffled_too() -> None:
    rows = [row for row in rows_of(BlockOrder((10,) * 20 + (1000,), 10, 0, 2), 0) if row >= 200]
    assert abs(np.corrcoef(rows, range(len(rows)))[0, 1]) < 0.2


def test_the_samples_left_out_change_with_the_epoch() -> None:
    order = BlockOrder((20,) * 20, 30, 1, 2)
    missed = [set(range(400)) - set(rows_of(order, epoch)) for epoch in range(30)]
    assert all(len(left) == 10 for left in missed)
    assert len(set().union(*missed)) > 150


def test_data_that_need_not_be_fetched_keep_their_order() -> None:
    source = from_samples([Sample(str(number), b"") for number in range(9)])
    assert order_of(source, 4, 2) == Order(9, 4, 2)
    items = [(0, [1, 2]), (1, [3, 4])]
    assert list(fetch_ahead(items, source)) == items
    with pytest.raises(DataError, match="a batch of 7 does not fit into 6 samples"):
        BlockOrder((4, 2), 7, 0)
