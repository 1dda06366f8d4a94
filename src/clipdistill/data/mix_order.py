"""Which samples of a mix make up which batch: every part by its share, as a pure function of the seed.

Legend: ``P`` parts, ``W`` the sum of their weights, ``n`` samples drawn so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from math import lcm

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.block_order import BlockOrder, order_of
from clipdistill.data.order import Order
from clipdistill.data.samples import Source, key64
from clipdistill.data.sources.mix import Mixed
from clipdistill.errors import DataError

_STORED = 720_720  # a multiple of every number up to 16: adding it leaves the view of a store as it is


@dataclass(frozen=True)
class MixOrder:
    """Batches that draw from several parts, which stand one after the other in the source.

    ``parts`` are orders of their own, each with all of its part in one batch: a pass.

    The next sample is of the part with the least ``(2 c + 1) / w``, ``c`` of it drawn so far: the method of Webster and
    Sainte-Laguë. After every ``W`` samples (weights as whole numbers) each part has been drawn exactly by its weight;
    between, it is off by less than ``(1 + P w / W) / 2`` samples. How many were drawn before any batch follows from
    its number alone.

    Each part is walked pass by pass, all of it before any of it comes again. Where a pass ends inside a
    batch the next one begins there, so a sample may come twice in it. An epoch is as many whole batches as the parts
    have samples together: a part with more than its share of the weight is walked several times in it, one with less
    in part.
    """

    parts: tuple[Order | BlockOrder, ...]
    weights: tuple[float, ...]
    batch_size: int
    seed: int

    @cached_property
    def sizes(self) -> list[int]:
        """How many samples each part has."""
        return [part.batch_size for part in self.parts]

    def __post_init__(self) -> None:
        if sum(self.sizes) < self.batch_size:
            raise DataError(
                f"a batch of {self.batch_size} does not fit into the {sum(self.sizes)} samples of the mix. Lower "
                "batch_size."
            )
        for number, (size, weight) in enumerate(zip(self.sizes, self._whole, strict=True), 1):
            share = Fraction(weight * self.batch_size, sum(self._whole))
            if share > size:
                raise DataError(
                    f"part {number} of the mix has {size} samples, and its weight asks for {float(share):.4g} of them "
                    f"in each batch of {self.batch_size}. Lower its weight or batch_size."
                )

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return sum(self.sizes) // self.batch_size

    def drawn(self, batch: int) -> list[int]:
        """How many samples of each part the batches before number ``batch`` hold together."""
        return _apportion(batch * self.batch_size, self._whole)

    def walk(self, start: int, stop: int) -> Iterator[tuple[int, list[int]]]:
        """Yield ``(view, sample positions)`` for the batches ``start`` to ``stop - 1``.

        No two batches have the same view, so that samples are shown in another way whenever they come again in another
        one, also within an epoch. Modulo the count of a store's views, up to 16 of them, it is the number of the pass
        through the part that is walked most often: these take turns.
        """
        offsets = [0, *accumulate(self.sizes)]
        passes: dict[int, tuple[int, NDArray[np.int64]]] = {}
        before = self.drawn(start)
        for batch in range(start, stop):
            after = self.drawn(batch + 1)
            rows = np.concatenate(
                [
                    offsets[part] + piece
                    for part, (first, last) in enumerate(zip(before, after, strict=True))
                    for piece in self._pieces(part, first, last, passes)
                ]
            )
            # The ranks of a distributed run take a batch in slices: each gets some of every part.
            mixed = np.random.Generator(np.random.Philox([self.seed, batch])).permutation(rows)
            passed = max((last - 1) // size for last, size in zip(after, self.sizes, strict=True))
            yield passed + batch * _STORED, mixed.tolist()
            before = after

    @cached_property
    def _whole(self) -> list[int]:
        return _whole(self.weights)

    def _pieces(
        self, part: int, first: int, last: int, passes: dict[int, tuple[int, NDArray[np.int64]]]
    ) -> Iterator[NDArray[np.int64]]:
        """Draws number ``first`` to ``last - 1`` of a part; ``passes`` keeps the permutation that each is in."""
        size = self.sizes[part]
        while first < last:
            number, place = divmod(first, size)
            if part not in passes or passes[part][0] != number:
                passes[part] = number, np.array(next(self.parts[part].walk(number, number + 1))[1], np.int64)
            piece = passes[part][1][place : place + last - first]
            first += len(piece)
            yield piece


def random_order(source: Source, batch_size: int, seed: int) -> Order | BlockOrder | MixOrder:
    """The random order of a source: by the weights of its parts where it is a mix.

    Raises:
        DataError: the data do not fill a batch, or a part not its share of one.
    """
    if not isinstance(source, Mixed):
        return order_of(source, batch_size, seed)
    passes = [order_of(part, len(part), key64("part", seed, number)) for number, part in enumerate(source.parts)]
    return MixOrder(tuple(passes), source.weights, batch_size, seed)


def _whole(weights: Sequence[float]) -> list[int]:
    """The weights as whole numbers in the same proportion: 0.1 is a tenth, as it is written."""
    shares = [Fraction(str(weight)) for weight in weights]
    most = lcm(*(share.denominator for share in shares))
    return [int(share * most) for share in shares]


def _apportion(n: int, weights: Sequence[int]) -> list[int]:
    """How many of the first ``n`` draws are of each part.

    Draw ``c`` of a part is due at ``(c + 1/2) / w``. Up to ``(n - P/2) / W`` at most ``n`` draws are due, and at least
    ``n - P``; the few that are missing are dealt one by one.
    """
    total, parts = sum(weights), len(weights)
    counts = [max(0, (weight * (2 * n - parts) + total) // (2 * total)) for weight in weights]
    for _ in range(n - sum(counts)):
        due = [Fraction(2 * count + 1, weight) for count, weight in zip(counts, weights, strict=True)]
        counts[due.index(min(due))] += 1
    return counts
