"""Several processes as one run: each reads its share of every batch, and all take the same step.

Started by ``torchrun`` or ``accelerate launch``, on one machine or many. What a run computes does not depend on their
number: the losses are those of the whole batch (see :mod:`clipdistill.algebra.gather`), the gradients are averaged.
The first process alone speaks and writes.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.nn import Parameter

from clipdistill.errors import ClipdistillError, ConfigError, TrainingError
from clipdistill.progress import console

#: So long the others wait for one, for instance while the first one evaluates.
PATIENCE = timedelta(hours=2)
#: Gradients travel in pieces of about so many numbers: 32 MB in float32.
PIECE = 1 << 23
#: The first process has so many seconds to speak before another one says what is wrong: mostly it is the same.
_TURN = 2.0
#: Seconds between two looks at whether torchrun is still there.
_LOOK = 0.5

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: which one this is, counted from 0, and how many there are."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.rank == 0

    def share(self, rows: Sequence[int]) -> list[int]:
        """This process's part of a batch: as many as any other, or one less."""
        cuts = [len(rows) * rank // self.world for rank in (self.rank, self.rank + 1)]
        return list(rows[cuts[0] : cuts[1]])

    def shares(self, items: Iterable[tuple[int, list[int]]]) -> Iterator[tuple[int, list[int]]]:
        """The parts of many batches."""
        return ((view, self.share(rows)) for view, rows in items)

    def average(self, parameters: Iterable[Parameter]) -> None:
        """Replace every gradient by the mean over the processes."""
        if self.world == 1:
            return
        for gradients in _pieces(p.grad for p in parameters if p.grad is not None):
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
            flat /= self.world
            for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def added(self, numbers: Sequence[int]) -> list[int]:
        """Sum numbers over the processes."""
        if self.world == 1:
            return list(numbers)
        found = torch.tensor(numbers)
        distributed.all_reduce(found)
        return [int(number) for number in found]

    def everyone(self, value: Value) -> list[Value]:
        """What each process has, in their order."""
        if self.world == 1:
            return [value]
        found: list[Value] = [value] * self.world
        distributed.all_gather_object(found, value)
        return found

    def same(self, value: Value) -> Value:
        """What the first process has."""
        if self.world == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told)
        return told[0]

    def wait(self) -> None:
        """Go on when all are here."""
        if self.world > 1:
            distributed.barrier()


def is_main() -> bool:
    """Whether this process is the first, or the only one, by its environment."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """How many processes torchrun has started, by its environment."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other processes that torchrun has started, if any; inside of another ``joined``, just go on.

    Raises:
        ConfigError: the environment says half of what is needed.
        TrainingError: another process has ended, or the torchrun that started this one.
    """
    world = processes()
    if world == 1 or distributed.is_initialized():
        yield Ranks(distributed.get_rank(), world) if distributed.is_initialized() else Ranks()
        return
    with _watched():
        ranks = _meet(world)
        yield from _together(ranks, world)


def _together(ranks: Ranks, world: int) -> Iterator[Ranks]:
    was_quiet, console.quiet = console.quiet, not ranks.main
    try:
        yield ranks
    except ClipdistillError:
        time.sleep(0 if ranks.main else _TURN)
        console.quiet = was_quiet
        raise
    except RuntimeError as error:
        console.quiet = was_quiet
        if not _is_lost(error):
            raise
        time.sleep(_TURN)
        raise TrainingError(
            f"process {ranks.rank} of {world} lost the others: one of them has ended, and its own message says why. "
            "Go on with the same command and --resume."
        ) from error
    finally:
        console.quiet = was_quiet
        distributed.destroy_process_group()


def _meet(world: int) -> Ranks:
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={world} says that this is one of several processes, and {', '.join(missing)} is not set. "
            "Start them with torchrun --nproc-per-node N -m clipdistill distill RUN.yaml, or unset WORLD_SIZE."
        )
    _greet()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def _greet() -> None:
    """Find out whether torchrun, where the processes meet, is still there: otherwise they would wait for hours."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection(address, timeout=60).close()
    except OSError as error:
        raise TrainingError(
            f"the torchrun that started this process does not answer at {address[0]}:{address[1]} ({error}): it has "
            "ended. Start it again with the same command, and --resume if the run had begun."
        ) from error


@contextmanager
def _watched() -> Iterator[None]:
    """Ask this process to stop, as a scheduler does, when the one that started it is gone.

    A torchrun that is killed outright leaves its processes running, and they would write to the same folder as those
    of the next one.
    """
    parent, over = os.getppid(), threading.Event()

    def look() -> None:
        while not over.wait(_LOOK):
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error is that of a process whose peer has gone, in the words of gloo and NCCL."""
    if isinstance(error, distributed.DistError):
        return True
    told = str(error).lower()
    return any(
        word in told for word in ("connection closed by peer", "connection reset", "broken pipe", "gloo", "nccl")
    )


def _pieces(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group gradients of one type until they are a piece."""
    found: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        piece = found.setdefault(gradient.dtype, [])
        piece.append(gradient)
        if sum(part.numel() for part in piece) >= PIECE:
            yield found.pop(gradient.dtype)
    yield from found.values()
