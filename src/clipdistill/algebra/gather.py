"""Rows on several ranks made one batch: the only place that speaks to ``torch.distributed``.

Every rank takes the loss of its own rows against the candidates of all. Gradients come out ``world size`` times those
of the global batch divided over the ranks, so that the average that data-parallel training takes of them is exact.
(open_clip's default gather leaves ``1 / world size`` of the gradient in the towers.)

Legend: ``b`` rows of this rank, ``B`` rows of all, ``D`` width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed
from torch.autograd import Function


@dataclass(frozen=True)
class Split:
    """How the global batch lies on the ranks: how many rows each one has, and which rank this is."""

    sizes: tuple[int, ...]
    rank: int

    @classmethod
    def of(cls, count: int, device: torch.device) -> Split:
        """Ask every rank for its number of rows; without a process group there is one rank."""
        if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
            return cls((count,), 0)
        world = distributed.get_world_size()
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
        distributed.all_gather(sizes, torch.tensor([count], device=device))
        return cls(tuple(int(size) for size in sizes), distributed.get_rank())

    @property
    def world(self) -> int:
        """The number of ranks."""
        return len(self.sizes)

    @property
    def total(self) -> int:
        """The rows of all ranks together, ``B``."""
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """Where this rank's rows lie among those of all."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])


def gather(rows: Shaped[Tensor, "b ..."], split: Split) -> Shaped[Tensor, "B ..."]:
    """The rows of every rank, in the order of ranks; gradients flow back to the rank a row came from."""
    if split.world == 1:
        return rows
    if not rows.requires_grad:
        return _all_rows(rows, split)
    gathered: Tensor = _Gather.apply(rows, split)  # type: ignore[no-untyped-call]
    return gathered


def own_rows(matrix: Shaped[Tensor, "B D"], split: Split) -> Shaped[Tensor, "b D"]:
    """Sum a matrix over the ranks, and keep the rows that are this rank's: the adjoint of :func:`gather`."""
    if split.world == 1:
        return matrix
    kept: Tensor = _OwnRows.apply(matrix, split)  # type: ignore[no-untyped-call]
    return kept


def total(values: Tensor, split: Split) -> Tensor:
    """Sum over the ranks; the gradient is ``world size`` times each rank's own."""
    if split.world == 1:
        return values
    summed: Tensor = _Total.apply(values, split)  # type: ignore[no-untyped-call]
    return summed


def summed(values: Tensor, split: Split) -> Tensor:
    """Sum over the ranks, without gradient."""
    values = values.detach().clone()
    if split.world > 1:
        distributed.all_reduce(values)
    return values


def log_summed(values: Tensor, split: Split) -> Tensor:
    """The logarithm of the sum of exponentials over the ranks, without gradient."""
    one_each = Split((1,) * split.world, split.rank)
    return values if split.world == 1 else _all_rows(values[None], one_each).logsumexp(dim=0)


def _all_rows(rows: Tensor, split: Split) -> Tensor:
    """Gather what may be of different length on each rank: padded to the longest, then cut."""
    longest = max(split.sizes)
    padded = rows.detach().new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in split.sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, split.sizes, strict=True)])


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, split: Split) -> Tensor:
        ctx.split = split
        return _all_rows(rows, split)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return summed(grads[0], ctx.split)[ctx.split.own], None


class _OwnRows(Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, split: Split) -> Tensor:
        ctx.split = split
        return summed(matrix, split)[split.own]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _all_rows(grads[0], ctx.split), None


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, split: Split) -> Tensor:
        ctx.world = split.world
        return summed(values, split)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.world, None
