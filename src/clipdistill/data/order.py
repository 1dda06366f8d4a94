"""Which samples make up which batch, as a pure function of the seed: at random, or near ones together.

An order knows ``batches_per_epoch`` and can ``walk(start, stop)`` from any batch number, so a position in the data is
just that number and a checkpoint needs nothing else.

Legend: ``N`` samples, ``k`` neighbours of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import DataError


class Ordering(Protocol):
    """What every order can do: see the module's first lines."""

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        ...

    def walk(self, start: int, stop: int) -> Iterator[tuple[int, list[int]]]:
        """Yield ``(view, sample positions)`` for the batches ``start`` to ``stop - 1``."""
        ...


@dataclass(frozen=True)
class Order:
    """A new permutation each epoch, the incomplete last batch left out."""

    samples: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        check_fit(self.samples, self.batch_size)

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return self.samples // self.batch_size

    def walk(self, start: int, stop: int) -> Iterator[tuple[int, list[int]]]:
        """Yield ``(epoch, sample positions)`` for the batches ``start`` to ``stop - 1``."""
        return walk_epochs(self._epoch, self.batches_per_epoch, self.batch_size, start, stop)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        return generator(self.seed, epoch).permutation(self.samples)


@dataclass(frozen=True, eq=False)
class NeighbourOrder:
    """Hard batches: a new permutation each epoch in which every batch is made of groups of samples near each other.

    Samples taken at random open the groups: each takes its nearest neighbours that are still free in this epoch. Those
    that find too few end up together in mixed groups, so that no sample is favoured; then the groups are shuffled. The
    incomplete last batch is left out. An epoch costs O(N k) to lay out, as does starting in the middle of one.

    Args:
        neighbours: integers ``[N, k]``, the nearest other samples of each, nearest first.
        batch_size: a multiple of ``group``.
        group: how many near samples stand together, itself included; needs ``k >= group - 1``. A ``k`` of several
            times that leaves few mixed groups.
    """

    neighbours: NDArray[np.integer]
    batch_size: int
    seed: int
    group: int

    def __post_init__(self) -> None:
        samples, k = self.neighbours.shape
        check_fit(samples, self.batch_size)
        if self.group < 2 or self.batch_size % self.group:
            raise DataError(
                f"a batch of {self.batch_size} cannot be made of groups of {self.group} near samples: "
                f"expected a group of at least 2 that divides batch_size."
            )
        if k < self.group - 1:
            raise DataError(
                f"groups of {self.group} near samples need {self.group - 1} neighbours of each, found {k}. "
                f"Find more neighbours, or lower the group."
            )

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return len(self.neighbours) // self.batch_size

    def walk(self, start: int, stop: int) -> Iterator[tuple[int, list[int]]]:
        """Yield ``(epoch, sample positions)`` for the batches ``start`` to ``stop - 1``."""
        return walk_epochs(self._epoch, self.batches_per_epoch, self.batch_size, start, stop)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        rng = generator(self.seed, epoch)
        rows = np.concatenate(_grouped(self.neighbours, rng.permutation(len(self.neighbours)), self.group))
        # Too few for a group at the end: they belong to the incomplete last batch, other ones in every epoch.
        whole = len(rows) - len(rows) % self.group
        groups = rows[:whole].reshape(-1, self.group)
        return np.concatenate([rng.permutation(groups).ravel(), rows[whole:]])


def _grouped(
    neighbours: NDArray[np.integer], openers: NDArray[np.int64], group: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split all samples into those of full groups, group after group, and those left, pieces of groups together."""
    free = np.ones(len(neighbours), np.bool_)
    near: list[int] = []
    left: list[int] = []
    for opener in openers.tolist():
        if free[opener]:
            free[opener] = False
            candidates = neighbours[opener]
            taken = candidates[free[candidates]][: group - 1]
            free[taken] = False
            (near if len(taken) == group - 1 else left).extend([opener, *taken.tolist()])
    return np.array(near, np.int64), np.array(left, np.int64)


def walk_epochs(
    lay_out: Callable[[int], NDArray[np.int64]], per_epoch: int, batch_size: int, start: int, stop: int
) -> Iterator[tuple[int, list[int]]]:
    """Cut the epochs that ``lay_out`` gives into batches; each epoch is laid out once."""
    current, permutation = -1, np.empty(0, np.int64)
    for batch in range(start, stop):
        epoch, place = divmod(batch, per_epoch)
        if epoch != current:
            current, permutation = epoch, lay_out(epoch)
        yield epoch, permutation[place * batch_size : (place + 1) * batch_size].tolist()


def generator(seed: int, epoch: int) -> np.random.Generator:
    """Random numbers of one epoch."""
    return np.random.Generator(np.random.Philox([seed, epoch]))


def check_fit(samples: int, batch_size: int) -> None:
    """Raise DataError for data that do not fill a batch."""
    if samples < batch_size:
        raise DataError(f"a batch of {batch_size} does not fit into {samples} samples. Lower batch_size.")
