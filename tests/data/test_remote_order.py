"""Reading shards elsewhere in order: worker processes, a cache smaller than the data, and fetching ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipdistill.data.block_order import BlockOrder, fetch_ahead, order_of
from clipdistill.data.order import Order
from clipdistill.data.samples import Sample, Source
from clipdistill.data.sources import from_samples, pairs
from clipdistill.data.workers import load
from shard_server import ROWS, Server, contents, copies, limit, put
from waiting import until

pytestmark = pytest.mark.usefixtures("cache")


class Items(torch.utils.data.Dataset[list[Any]]):
    """Read rows in worker processes."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, item: tuple[int, list[int]]) -> list[Any]:
        return contents(self.source, item[1])


def test_workers_fetch_each_shard_once_between_them(server: Server, cache: Path) -> None:
    source = pairs(put(server, 4))
    expected = contents(source)
    for copy in copies(cache):
        copy.unlink()
    before = server.fetched()
    rows = np.random.default_rng(0).permutation(4 * ROWS).tolist()
    items = [(0, rows[at : at + 8]) for at in range(0, 4 * ROWS, 8)]
    read = list(load(Items(source), items, workers=2))
    assert [one for batch in read for one in batch] == [expected[row] for row in rows]
    assert server.fetched() - before == 4


def test_an_epoch_under_a_small_limit_fetches_each_shard_about_once(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limit(monkeypatch, 5.5)
    source = pairs(put(server, 20))
    assert len(copies(cache)) == 5
    assert "training in random order reads 10 shards at a time" in capsys.readouterr().err
    assert getattr(source, "blocks", None) == [ROWS] * 20
    order = BlockOrder([ROWS] * 20, 10, 0, window=2)
    before = server.fetched()
    seen = []
    for _, rows in order.walk(0, order.batches_per_epoch):
        seen += [one[0] for one in contents(source, rows)]
        assert len(copies(cache)) <= 5
    assert sorted(seen) == [source[row].id for row in range(len(source))]
    assert 15 <= server.fetched() - before <= 22
    across = Order(len(source), 10, 0)
    before = server.fetched()
    for _, rows in across.walk(0, 10):
        contents(source, rows)
    assert server.fetched() - before > 40  # what a block order saves


def test_a_walk_that_goes_on_in_mid_epoch_reads_what_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 14)
    source = pairs(put(server, 12))
    order = order_of(source, 7, 5)
    assert isinstance(order, BlockOrder)
    straight = [contents(source, rows) for _, rows in order.walk(0, 25)]
    again = pairs(source.uri)
    rest = list(load(Items(again), fetch_ahead(order_of(again, 7, 5).walk(9, 25), again), workers=2))
    assert rest == straight[9:]


def test_shards_are_fetched_before_their_batches_come(server: Server, cache: Path) -> None:
    source = pairs(put(server, 6))
    for copy in copies(cache):
        copy.unlink()
    items = [(epoch, list(range(at, at + 5))) for epoch in (0, 1) for at in range(0, 6 * ROWS, 5)]
    walk = fetch_ahead(items, source)
    assert next(walk) == items[0]
    until(lambda: len(copies(cache)) == 2)  # of the next shard's batches the first is near
    assert [items[0], *walk] == items
    until(lambda: len(copies(cache)) == 6)


def test_samples_chosen_from_shards_keep_their_blocks(server: Server) -> None:
    source = pairs(put(server, 3))
    kept: list[Sample] = [source[row] for row in range(len(source)) if row not in (0, 1, 15)]
    chosen = from_samples(kept)
    assert chosen.blocks == [ROWS - 2, ROWS - 1, ROWS]
    assert from_samples([Sample("a", b""), Sample("b", None)]).blocks is None
