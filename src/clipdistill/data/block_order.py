"""The order of data that come in blocks, such as shards that have to be fetched: each block is needed about once.

Legend: ``N`` samples, in blocks one after another.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.order import Order, check_fit, generator, walk_epochs
from clipdistill.data.remote import WINDOW, Remote
from clipdistill.data.samples import Source, file_of
from clipdistill.errors import DataError


@dataclass(frozen=True)
class BlockOrder:
    """Blocks in a new random order each epoch, their samples shuffled among those of ``window`` blocks.

    Every sample stands at most ``window`` mean blocks later than in its block, at random: blocks come into use one by
    one, and at any time the samples are of about ``window + 1`` of them. The incomplete last batch is left out. No more
    blocks than ``window`` are one permutation.
    """

    blocks: Sequence[int]
    batch_size: int
    seed: int
    window: int = WINDOW

    def __post_init__(self) -> None:
        check_fit(sum(self.blocks), self.batch_size)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return sum(self.blocks) // self.batch_size

    def walk(self, start: int, stop: int) -> Iterator[tuple[int, list[int]]]:
        """Yield ``(epoch, sample positions)`` for the batches ``start`` to ``stop - 1``."""
        return walk_epochs(self._epoch, self.batches_per_epoch, self.batch_size, start, stop)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        rng = generator(self.seed, epoch)
        samples = sum(self.blocks)
        if len(self.blocks) <= self.window:
            return rng.permutation(samples)
        starts = np.cumsum(self.blocks) - self.blocks
        turn = rng.permutation(len(self.blocks))
        rows = np.concatenate([starts[block] + rng.permutation(self.blocks[block]) for block in turn])
        delay = rng.random(samples) * (self.window * samples / len(self.blocks))
        return rows[np.argsort(np.arange(samples) + delay)]


def order_of(source: Source, batch_size: int, seed: int) -> Order | BlockOrder:
    """The random order that suits a source: over all of it, or block by block where blocks have to be fetched."""
    blocks = _blocks(source)
    return BlockOrder(blocks, batch_size, seed) if blocks else Order(len(source), batch_size, seed)


def fetch_ahead(items: Iterable[tuple[int, list[int]]], source: Source) -> Iterator[tuple[int, list[int]]]:
    """Yield the ``(epoch, sample positions)`` of batches, while a thread fetches what those after them need.

    It is as many batches ahead as one block fills. What cannot be fetched is met by whoever reads it.
    """
    blocks = _blocks(source)
    if not blocks:
        yield from items
        return
    ends = np.cumsum(blocks)
    wanted: SimpleQueue[int | None] = SimpleQueue()
    threading.Thread(target=_fetch_all, args=(source, ends - blocks, wanted), daemon=True).start()
    waiting: deque[tuple[int, list[int]]] = deque()
    current, asked = -1, set[int]()
    try:
        for epoch, rows in items:
            if epoch != current:
                current, asked = epoch, set()
            new = dict.fromkeys(np.searchsorted(ends, rows, side="right").tolist())
            for block in new.keys() - asked:
                wanted.put(block)
            asked |= new.keys()
            waiting.append((epoch, rows))
            if len(waiting) * len(rows) * len(blocks) > len(source):
                yield waiting.popleft()
        yield from waiting
    finally:
        wanted.put(None)


def _fetch_all(source: Source, starts: NDArray[np.int64], wanted: SimpleQueue[int | None]) -> None:
    while (block := wanted.get()) is not None:
        with suppress(DataError):
            file = file_of(source[int(starts[block])].image)
            if isinstance(file, Remote):
                file.local()


def _blocks(source: Source) -> Sequence[int] | None:
    """The sizes of a source's blocks, if it has any: see ``Shards.blocks``."""
    blocks: Sequence[int] | None = getattr(source, "blocks", None)
    return blocks
