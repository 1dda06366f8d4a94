"""Inputs of many requests go together; one that fails, ends or is late leaves the others alone."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipdistill.search.runtime import Runtime
from clipdistill.serve.batching import DEADLINE, Batcher
from clipdistill.serve.failures import RefusedError
from clipdistill.serve.metrics import Metrics
from clipdistill.serve.pictures import picture_bytes
from clipdistill.serve.towers import Towers
from clipdistill.serve.work import Work


class Model:
    """Gives a row of each number: the number itself; it can be held up, and cannot stand negative ones."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go, self.entered = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, items: list[int]) -> np.ndarray:
        self.batches.append(items)
        self.entered.set()
        assert self.go.wait(20)
        if min(items) < 0:
            raise ValueError(f"{min(items)} is negative")
        return np.array(items, np.float32)[:, None]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Any:
    found = Batcher(model, 8, "test")
    yield found
    model.go.set()
    found.close()


def waiting(batcher: Batcher[int], count: int) -> None:
    for _ in range(400):
        if len(batcher._waiting) == count:
            return
        time.sleep(0.01)
    pytest.fail(f"{len(batcher._waiting)} wait, not {count}")


def test_what_waits_goes_together(model: Model, batcher: Batcher[int]) -> None:
    model.go.clear()
    with ThreadPoolExecutor(12) as pool:
        first = pool.submit(batcher.rows, [0])
        assert model.entered.wait(20)
        others = [pool.submit(batcher.rows, [place]) for place in range(1, 12)]
        waiting(batcher, 11)
        model.go.set()
        assert [future.result()[0, 0] for future in (first, *others)] == list(range(12))
    assert [len(batch) for batch in model.batches] == [1, 8, 3]


def test_one_alone_does_not_wait_for_company(model: Model, batcher: Batcher[int]) -> None:
    assert batcher.rows([5]).tolist() == [[5]]
    assert model.batches == [[5]]


def test_a_long_request_lets_others_pass(model: Model, batcher: Batcher[int]) -> None:
    model.go.clear()
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(batcher.rows, list(range(100, 124)))
        assert model.entered.wait(20)
        short = pool.submit(batcher.rows, [7])
        waiting(batcher, 1)
        model.go.set()
        assert short.result().tolist() == [[7]]
        assert long.result()[:, 0].tolist() == list(range(100, 124))
    assert model.batches[1] == [7]


def test_one_that_fails_fails_alone(model: Model, batcher: Batcher[int]) -> None:
    model.go.clear()
    with ThreadPoolExecutor(4) as pool:
        pool.submit(batcher.rows, [0])
        assert model.entered.wait(20)
        futures = [pool.submit(batcher.rows, items) for items in ([1, 2], [-3], [4])]
        waiting(batcher, 3)
        model.go.set()
        assert futures[0].result()[:, 0].tolist() == [1, 2]
        assert futures[2].result()[:, 0].tolist() == [4]
        with pytest.raises(ValueError, match="-3 is negative"):
            futures[1].result()
    assert batcher.rows([6]).tolist() == [[6]]


def test_a_request_whose_time_is_up_is_not_embedded(model: Model, batcher: Batcher[int]) -> None:
    model.go.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher.rows, [0])
        assert model.entered.wait(20)

        def late() -> None:
            DEADLINE.set(time.monotonic() + 0.05)
            batcher.rows([1])

        with pytest.raises(RefusedError, match="not enough time") as found:
            pool.submit(late).result()
        assert found.value.status == 504
        model.go.set()
        assert first.result().tolist() == [[0]]
    assert batcher.rows([2]).tolist() == [[2]]
    assert model.batches == [[0], [2]]


def test_what_waits_is_finished_before_the_end(model: Model) -> None:
    batcher = Batcher(model, 8, "test")
    model.go.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(batcher.rows, [0])
        assert model.entered.wait(20)
        second = pool.submit(batcher.rows, [1])
        waiting(batcher, 1)
        ending = pool.submit(batcher.close)
        model.go.set()
        ending.result()
        assert [first.result().tolist(), second.result().tolist()] == [[[0]], [[1]]]
    with pytest.raises(RefusedError, match="shutting down"):
        batcher.rows([2])


def test_work_takes_in_so_much_and_frees_the_room_when_it_is_done() -> None:
    go = threading.Event()

    async def many() -> list[Any]:
        work = Work(room=3, seconds=20)
        running = [asyncio.create_task(work.run(go.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        refused = await asyncio.gather(work.run(go.wait), return_exceptions=True)
        running[0].cancel()  # its request has ended, its thread has not
        await asyncio.sleep(0.01)
        still = work.inside
        go.set()
        await asyncio.gather(*running[1:])
        while work.inside:
            await asyncio.sleep(0.01)
        again = await work.run(lambda: "done")
        work.close()
        return [refused[0], still, again]

    refused, still, again = asyncio.run(many())
    assert isinstance(refused, RefusedError)
    assert (refused.status, refused.retry_after) == (429, 1)
    assert (still, again) == (3, "done")


def test_pictures_of_a_request_whose_time_is_up_are_not_decoded(exported: tuple[Path, Any], gallery: Path) -> None:
    towers, picture = Towers(Runtime.open(exported[0], threads=1), 8, Metrics()), gallery / "photos" / "0.png"
    DEADLINE.set(time.monotonic() - 1)
    with pytest.raises(RefusedError, match="not enough time to decode"):
        towers.images([picture])
    with pytest.raises(RefusedError, match="not enough time to fetch"):
        picture_bytes("http://example.com/x.png", ["example.com"])
    DEADLINE.set(float("inf"))
    assert towers.images([picture]).shape == (1, towers.width)
    towers.close()
