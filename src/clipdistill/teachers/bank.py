"""Extra stored rows that a contrast uses as columns: at random, from recent batches, mined, or one per class.

Legend: ``N`` stored rows, ``D`` their width, ``B`` rows of a batch, ``K`` classes, ``k`` neighbours of each row.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import ConfigError, DataError, did_you_mean

Draw = Literal["random", "queue", "mined"]

#: The ``walk`` of an order: ``(epoch, positions)`` of the batches from a first to before a last.
Walk = Callable[[int, int], Iterator[tuple[int, list[int]]]]


class Bank:
    """Which stored rows are the extra negatives of a batch: a pure function of the step and the batch's own rows.

    * ``random``: drawn anew every step.
    * ``queue``: the rows of the most recent batches, latest first, as in MoCo (arXiv 1911.05722); since the rows are
      stored they are never stale. The batches are those of the order, asked from its ``walk``, so there is nothing to
      save: after a restart the bank walks back as far as it needs.
    * ``mined``: the nearest neighbours of the batch's rows (MoTIS, arXiv 2204.13913): first the nearest of every row,
      then the second nearest, and so on.

    What ``queue`` and ``mined`` leave open, at the start of a run or for want of neighbours, is drawn at random.

    Args:
        size: rows to pick per batch.
        neighbours: integers ``[N, k]``, nearest first; for ``mined``.
        count: ``N``. Positions are those of the samples, in batches, in ``neighbours`` and in what is picked.
        seed: of the random draws, together with the step.
        walk: of the run's order; for ``queue``.

    Raises:
        ConfigError: an unknown draw, or one that lacks what it needs.
        DataError: neighbours of another number of rows.
    """

    def __init__(
        self,
        size: int,
        draw: Draw,
        neighbours: NDArray[np.integer] | None,
        count: int,
        seed: int,
        walk: Walk | None = None,
    ) -> None:
        self.size, self.count, self.seed = size, count, seed
        self._candidates = _candidates(size, draw, neighbours, walk)
        if neighbours is not None and len(neighbours) != count:
            raise DataError(f"the bank holds {count} rows, but neighbours of {len(neighbours)} are given.")

    def pick(self, step: int, rows: Sequence[int]) -> NDArray[np.int64]:
        """Positions ``[size]`` for the batch with these ``rows`` at ``step``: none of its own, none twice.

        ``step`` is the batch's number in the order; ``rows`` may be some of the order's, or all.
        """
        batch = np.asarray(rows, np.int64)
        needed = self.size + len(batch)
        if needed > self.count:
            raise DataError(
                f"a bank of {self.size} rows beside a batch of {len(batch)} needs {needed} stored rows, "
                f"found {self.count}. Lower the size of the bank."
            )
        rng = np.random.Generator(np.random.Philox([self.seed, step]))
        # As many as suffice where none is a candidate, and the batch's own rows are among them.
        random = rng.choice(self.count, needed, replace=False)
        candidates = _distinct(np.concatenate([self._candidates(step, batch), random]))
        return candidates[~np.isin(candidates, batch)][: self.size]


def _candidates(
    size: int, draw: str, neighbours: NDArray[np.integer] | None, walk: Walk | None
) -> Callable[[int, NDArray[np.int64]], NDArray[np.int64]]:
    """What a draw would like to have for ``(step, batch)``, best first; the rest is filled up at random."""
    if draw == "random":
        return lambda step, batch: np.empty(0, np.int64)
    if draw == "queue":
        if walk is None:
            raise ConfigError("bank draw 'queue': needs the walk of the run's order to know its earlier batches.")
        recent = _Recent(size, walk)
        return lambda step, batch: recent.before(step)
    if draw == "mined":
        if neighbours is None:
            raise ConfigError("bank draw 'mined': needs the neighbours of every stored row. Find them first.")
        return lambda step, batch: neighbours[batch].T.ravel().astype(np.int64)
    raise ConfigError(f"there is no bank draw '{draw}'.{did_you_mean(draw, ['random', 'queue', 'mined'])}")


class _Recent:
    """The most recent distinct rows of an order before a step, enough of them for a bank beside any batch.

    Going on to the next step moves one batch in; any other step is found by walking back from it.
    """

    def __init__(self, size: int, walk: Walk) -> None:
        self.walk = walk
        self.batch_size = len(next(walk(0, 1))[1])
        self.wanted = size + self.batch_size
        self.step = -1
        self.rows = np.empty(0, np.int64)
        self.coming: Iterator[tuple[int, list[int]]] = iter(())

    def before(self, step: int) -> NDArray[np.int64]:
        if self.step >= 0 and step == self.step + 1:
            self._push(next(self.coming)[1])
        elif step != self.step:
            self._look_back(step)
        self.step = step
        return self.rows

    def _look_back(self, step: int) -> None:
        """Take in twice as many batches as before until the rows suffice: an epoch repeats those of the one before."""
        batches = -(-self.wanted // self.batch_size)
        while True:
            self.rows = np.empty(0, np.int64)
            start = max(0, step - batches)
            self.coming = self.walk(start, sys.maxsize)
            for _ in range(start, step):
                self._push(next(self.coming)[1])
            if start == 0 or len(self.rows) >= self.wanted:
                return
            batches *= 2

    def _push(self, batch: list[int]) -> None:
        self.rows = _distinct(np.concatenate([np.array(batch, np.int64), self.rows]))[: self.wanted]


def _distinct(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions without repeats, each where it comes first."""
    _, first = np.unique(positions, return_index=True)
    return positions[np.sort(first)]


def centroids(
    rows: NDArray[Any], labels: Sequence[int] | NDArray[np.integer], per_class: int, classes: Sequence[str]
) -> NDArray[np.float32]:
    """Mean row of each class, not made unit length: the bank of CLIP-Embed-KD (arXiv 2404.06170), ``[K, D]``.

    Args:
        rows: floats ``[N, D]``, an array or a memmap, averaged as they are.
        labels: ``[N]``, places in ``classes``; -1 is no class.
        per_class: at most so many rows of each class are averaged, the first ones in the order given; the paper
            takes 100.
        classes: the ``K`` names.

    Raises:
        DataError: if a label is not in ``classes``, or a class has no row.
    """
    labels = np.asarray(labels)
    if len(labels) != len(rows):
        raise DataError(f"centroids: {len(rows)} rows, but {len(labels)} labels: expected one for each row.")
    if len(labels) and not (labels.min() >= -1 and labels.max() < len(classes)):
        raise DataError(f"centroids: labels from {labels.min()} to {labels.max()}, but {len(classes)} classes.")
    means = np.empty((len(classes), rows.shape[1]), np.float32)
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], np.arange(len(classes) + 1))
    for number, name in enumerate(classes):
        members = by_class[starts[number] : starts[number + 1]][:per_class]
        if not len(members):
            raise DataError(f"class '{name}' has no row to average. Add samples of it, or leave it out.")
        means[number] = rows[members].mean(0, dtype=np.float64)
    return means
