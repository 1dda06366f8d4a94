"""Running a grid's runs: one after another in this process, or several at a time in processes that stay.

How many fit at a time follows from the cores, and from the memory that a first step of each kind of run takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from clipdistill.errors import InterruptedRunError, TrainingError
from clipdistill.evidence.cells import Job
from clipdistill.evidence.worker import INTERRUPTED
from clipdistill.files import write_text
from clipdistill.models.device import choose_device
from clipdistill.progress import console
from clipdistill.training.stages import distill

#: Lines of a failed run that are told.
_TOLD = 8
_WITHOUT = "What is finished is kept. To compare without that cell, name the others: --cells A,B."
#: A run takes more than its first step did by this factor: workers that read, checkpoints, evaluations.
_HEADROOM = 1.5


class Worker:
    """A process that trains runs one after another; see :mod:`clipdistill.evidence.worker`."""

    def __init__(self) -> None:
        # -m would look for packages in the user's folder first; this program, as a command, does not.
        environment = os.environ | {"PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clipdistill.evidence.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Wait for an answer; of a process that is gone only its status is known."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (ValueError, BrokenPipeError):
            return {"status": self._process.wait()}
        return answer

    def close(self) -> None:
        """Let the process end; it is idle."""
        self._process.communicate()


def run_all(work: Sequence[Job], at_once: int | None = 1) -> None:
    """Run what is not finished, ``at_once`` runs in parallel; None means as many as cores and free memory allow.

    A single one runs in this process.

    Raises:
        ClipdistillError: a run failed or was stopped; those that finished are kept.
    """
    waiting = [job for job in work if not job.is_finished]
    if len(waiting) < len(work):
        console.print(f"{len(work) - len(waiting)} of {len(work)} runs are finished already", markup=False)
    most = min(len(waiting), _by_processors(waiting) if at_once is None else at_once)
    if most > 1:
        _in_parallel(waiting, most, measured=at_once is None)
        return
    for number, job in enumerate(waiting, 1):
        console.print(f"\n{number}/{len(waiting)} {job}", markup=False)
        _here(job)


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that are free on this machine and in this container; None where the system does not tell."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    group = root / "sys/fs/cgroup"
    try:
        limit, used = ((group / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        limit = used = "max"
    if limit != "max":
        free.append(max(0, int(limit) - int(used)))
    return min(free, default=None)


def fitting(most: int, peak: int, free: int | None) -> int:
    """How many runs of ``peak`` bytes at most fit into ``free`` bytes; at least one, and no more than ``most``."""
    return most if free is None else max(1, min(most, int(free / (_HEADROOM * max(peak, 1)))))


def _by_processors(waiting: Sequence[Job]) -> int:
    """As many as there are cores; where a run has a GPU, the next one waits for it."""
    devices = {choose_device(job.config.train.device).type for job in waiting}
    return 1 if devices - {"cpu"} else cores()


def _here(job: Job) -> None:
    try:
        distill(job.config, job.is_begun)
    except InterruptedRunError as stopped:
        raise _stopped(job) from stopped
    except TrainingError as error:
        raise TrainingError(f"{job}: {error}\n{_WITHOUT}") from error


def _in_parallel(waiting: Sequence[Job], most: int, measured: bool) -> None:
    """Train with ``most`` processes, or, if memory is to be ``measured``, with as many of them as fit."""
    workers = [Worker()]
    try:
        at_once = _by_memory(waiting, most, workers[0]) if measured else most
        workers += [Worker() for _ in range(at_once - 1)]
        console.print(f"{len(waiting)} runs, {at_once} at a time", markup=False)
        _share_out(waiting, workers)
    finally:
        for worker in workers:
            worker.close()


def _share_out(waiting: Sequence[Job], workers: Sequence[Worker]) -> None:
    executor, stop = ThreadPoolExecutor(len(workers)), Event()
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)
    threads = max(1, cores() // len(workers))
    running: dict[Future[None], Job] = {executor.submit(_with, idle, job, threads, stop): job for job in waiting}
    try:
        for number, future in enumerate(as_completed(running), 1):
            future.result()
            console.print(f"{number}/{len(waiting)} {running[future]}: done", markup=False)
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


def _with(idle: SimpleQueue[Worker], job: Job, threads: int, stop: Event) -> None:
    """Train with an idle worker, unless another run failed."""
    if stop.is_set():
        return
    worker = idle.get()
    try:
        _train(worker, job, threads)
    except BaseException:
        stop.set()
        raise
    finally:
        idle.put(worker)


def _train(worker: Worker, job: Job, threads: int) -> None:
    """Have a run trained, its configuration and what it says in files beside its folder."""
    log = job.folder.with_suffix(".txt")
    answer = worker.ask(file=_file(job), resume=job.is_begun, threads=threads, log=str(log))
    if not job.is_finished:
        raise _failed(job, answer, log)


def _by_memory(waiting: Sequence[Job], most: int, worker: Worker) -> int:
    """As many runs as the free memory has room for, by the first step of each kind of run among them."""
    kinds = {_kind(job): job for job in reversed(waiting)}
    first = next(reversed(kinds.values()))
    log = first.folder.with_suffix(".txt")
    free = free_memory()
    answer = worker.ask(measure=[_file(job) for job in kinds.values()], threads=1, log=str(log))
    if "peak" not in answer:
        raise _failed(first, answer, log)
    return fitting(most, answer["peak"], free)


def _kind(job: Job) -> str:
    """What the memory of a run depends on most: not its recipe, or each cell would be measured."""
    config, train = job.config, job.config.train
    rows = train.batch_size, train.micro_batch, train.accumulate, config.bank.size, config.batches, config.prune
    return repr((config.student, rows, config.stages, sorted(config.teachers.items())))


def _file(job: Job) -> str:
    file = job.folder.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, job.config.to_yaml())
    return str(file)


def _failed(job: Job, answer: Mapping[str, Any], log: Path) -> TrainingError:
    if answer["status"] == INTERRUPTED:
        return _stopped(job)
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TOLD:] if log.exists() else []
    told = "\n".join(last)
    return TrainingError(f"{job}: the run failed (status {answer['status']}), see {log}:\n{told}\n{_WITHOUT}")


def _stopped(job: Job) -> InterruptedRunError:
    return InterruptedRunError(f"{job}: stopped, its checkpoint is kept. Go on with the same command.")
