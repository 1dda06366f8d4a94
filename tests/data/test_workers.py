"""Processes that read ahead: the same batches in the same order, and one that dies is named with its sample."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from clipdistill.data.batches import Batches, Inlet
from clipdistill.data.samples import Sample
from clipdistill.data.sources import pairs
from clipdistill.data.sources.listed import Samples, from_samples
from clipdistill.data.views import Transform
from clipdistill.data.workers import load
from clipdistill.errors import DataError, StoreError
from clipdistill.training import setup as training_setup
from clipdistill.training.loop import distill
from tiny_runs import tiny_run


@dataclass(frozen=True)
class Deadly:
    """A picture that ends the worker that reads it, as a decoder that crashes does."""

    size: int = 1

    def read_bytes(self) -> bytes:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError

    def __str__(self) -> str:
        return "deadly.png"


class Away(Dataset[Any]):
    """Batches whose store cannot be reached, though no worker dies."""

    def __init__(self, source: Samples) -> None:
        self.source = source

    def __getitem__(self, item: Any) -> Any:
        raise ConnectionError("the store is away")


class Wrong(Dataset[Any]):
    """Batches that cannot be made, for a reason that is meant for the user."""

    def __init__(self, source: Samples) -> None:
        self.source = source

    def __getitem__(self, item: Any) -> Any:
        raise StoreError("the store is too old. Make it again.")


def drawn(count: int, deadly: int | None = None) -> Samples:
    """Drawn pictures, of which one may be deadly."""
    made = pairs(f"scenes:train?n={count}")
    samples = [made[place] for place in range(count)]
    if deadly is not None:
        samples[deadly] = Sample("the-bad-one", Deadly(), samples[deadly].texts)
    return from_samples(samples, "drawn")


def batches_of(source: Samples) -> Batches:
    return Batches(source, {"S": Inlet(Transform(resize=(8, 8)), None, ("",))}, None)


@pytest.mark.parametrize("count", [1, 2])
def test_workers_change_nothing(count: int) -> None:
    items = [(0, [2, 0]), (0, [5, 1, 3]), (1, [4])]
    alone, ahead = (list(load(batches_of(drawn(6)), items, number)) for number in (0, count))
    assert [batch.ids for batch in ahead] == [batch.ids for batch in alone]
    for ours, theirs in zip(alone, ahead, strict=True):
        assert torch.equal(ours.pixels["S"]["pixel_values"], theirs.pixels["S"]["pixel_values"])


@pytest.mark.parametrize("deadly", [0, 9])
def test_a_worker_that_dies_is_named_with_the_sample(deadly: int) -> None:
    batches = batches_of(drawn(12, deadly))
    items = [(0, [row, row + 1]) for row in range(0, 12, 2)]
    told = r"while it read sample 'the-bad-one' of drawn \(SIGSEGV\)"
    with pytest.raises(DataError, match=told):
        list(load(batches, items, 2))


def test_the_error_of_a_sample_stays_what_it_is() -> None:
    source = drawn(4)
    with pytest.raises(ConnectionError, match="the store is away"):
        list(load(Away(source), [(0, [0, 1])], 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_told_in_a_worker_is_told_to_the_user(workers: int) -> None:
    with pytest.raises(StoreError) as caught:
        list(load(Wrong(drawn(4)), [(0, [0, 1])], workers))
    assert str(caught.value) == "the store is too old. Make it again."


def test_the_end_of_a_worker_is_not_raised_where_something_else_runs() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    reading = load(batches_of(drawn(4)), [(0, [0, 1]), (0, [2, 3])], 1)
    next(reading)
    assert signal.getsignal(signal.SIGCHLD) is before
    reading.close()


def test_what_processes_are_given_holds_no_weights(tmp_path: Path) -> None:
    setup = training_setup.prepare(tiny_run(tmp_path / "run"))
    size = len(pickle.dumps(setup.batches))
    with torch.no_grad():
        for parameter in setup.student.module.parameters():
            parameter.set_(torch.zeros(64, 4096))  # a larger model
    setup.student.module.register_forward_hook(lambda *_: None)  # as masks are, which cannot be pickled
    assert len(pickle.dumps(setup.batches)) == size
    again = pickle.loads(pickle.dumps(setup.batches))
    assert torch.equal(again[0, [1, 2]].tokens["S"]["input_ids"], setup.batches[0, [1, 2]].tokens["S"]["input_ids"])


def read_on(method: str, told: Path) -> None:
    """Read with two workers until the end of the world, and tell who they are."""
    multiprocessing.set_start_method(method, force=True)
    reading = load(batches_of(drawn(4)), itertools.repeat((0, [0, 1])), 2)
    next(reading)
    told.write_text(" ".join(str(worker.pid) for worker in multiprocessing.active_children()))
    time.sleep(60)


def lives(process: int) -> bool:
    status = Path(f"/proc/{process}/status")
    try:
        return "zombie" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_with_a_process_that_is_killed(method: str, tmp_path: Path) -> None:
    told = tmp_path / "workers"
    process = multiprocessing.get_context("forkserver").Process(target=read_on, args=(method, told))
    process.start()
    while not (told.exists() and told.read_text()):
        assert process.is_alive()
        time.sleep(0.02)
    workers = [int(word) for word in told.read_text().split()]
    assert len(workers) == 2
    assert all(map(lives, workers))
    process.kill()
    until = time.monotonic() + 30
    while any(map(lives, workers)):
        assert time.monotonic() < until, "a worker reads on for nobody"
        time.sleep(0.02)


def test_a_run_ends_with_the_name_of_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = drawn(64, deadly=40)
    monkeypatch.setattr(training_setup, "pairs", lambda uri: source)
    monkeypatch.setattr("clipdistill.training.preflight.first_batch", lambda setup: first_without(setup))
    with pytest.raises(DataError, match="the-bad-one"):
        distill(tiny_run(tmp_path / "run", data="drawn", train={"workers": 1, "steps": 40}))


def first_without(setup: Any) -> Any:
    return setup.batches.assemble(0, list(range(16)))


MEASURED = """
import sys
from pathlib import Path
import torch
from clipdistill.training import loop
from tiny_runs import tiny_run
torch.set_num_threads(1)
step, taken = loop._step, []
def measured(*arguments):
    found = step(*arguments)
    taken.append(int(Path("/proc/self/statm").read_text().split()[1]))
    return found
loop._step = measured
loop.distill(tiny_run(Path(sys.argv[1]), train={"steps": 1000, "log_every": 50, "checkpoint_every": 250}))
print(taken[199], taken[-1])
"""


def test_memory_stays_flat_over_a_long_run(tmp_path: Path) -> None:
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.check_output([sys.executable, "-c", MEASURED, str(tmp_path / "run")], env=path, text=True)
    early, late = map(int, told.split()[-2:])
    assert late < 1.02 * early
