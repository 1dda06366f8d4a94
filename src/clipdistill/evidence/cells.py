"""The runs of a grid: what each is, where it lies, whether it is finished; one after another, or several at a time.

A run's folder is named by a hash of everything it depends on, so a finished run is recognised and never run again,
and one that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from clipdistill import __version__
from clipdistill.algebra.recipe import Recipe
from clipdistill.config import SELF, EvaluateConfig, RunConfig
from clipdistill.data.sources import pairs
from clipdistill.errors import InterruptedRunError, ModelError, TrainingError
from clipdistill.evidence.grid import LETTER, TEACHER, Grid, main_teacher
from clipdistill.files import write_text
from clipdistill.models.bundle import RECORD
from clipdistill.models.huggingface import load
from clipdistill.models.vocabulary import end_token_id
from clipdistill.progress import console
from clipdistill.teachers.stored import is_store, model_behind, open_teacher_store
from clipdistill.training.loop import distill
from clipdistill.training.run_folder import CONFIG, FREE, STUDENT

#: Lines of a failed process that are told.
_TOLD = 8
#: The exit status of a process that Ctrl-C stopped.
_INTERRUPTED = 130


@dataclass(frozen=True)
class Job:
    """One run of a grid: its cell, its seed, and its whole configuration."""

    cell: str
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.out)

    @property
    def student(self) -> Path:
        """The model, once the run is finished."""
        return self.folder / STUDENT

    @property
    def is_finished(self) -> bool:
        """Whether the student is there, whole."""
        return (self.student / RECORD).is_file()

    @property
    def is_begun(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.folder / CONFIG).is_file()

    def __str__(self) -> str:
        return f"{self.cell}, seed {self.seed}"


@dataclass(frozen=True)
class Facts:
    """What a student takes over from a teacher, and the hash of its weights."""

    fingerprint: str
    width: int
    lends_tokenizer: bool


@dataclass
class Known:
    """Fingerprints of data and models, each computed once."""

    _data: dict[str, str] = field(default_factory=dict)
    _models: dict[str, Facts] = field(default_factory=dict)

    def data(self, uri: str) -> str:
        """The fingerprint of a data URI."""
        if uri not in self._data:
            self._data[uri] = pairs(uri).fingerprint
        return self._data[uri]

    def model(self, uri: str) -> Facts:
        """Load a model once to learn about it."""
        if uri not in self._models and is_store(uri):
            store, _ = open_teacher_store(uri)
            self._models[uri] = Facts(store.fingerprint, store.width, False)
        elif uri not in self._models:
            encoder = load(uri)
            self._models[uri] = Facts(encoder.fingerprint, encoder.width, _lends(encoder.tokenizer))
        return self._models[uri]

    def content(self, config: RunConfig) -> str:
        """Return a hash of all that a run's result depends on, 12 hexadecimal digits; where files lie is not."""
        content = {key: value for key, value in config.model_dump().items() if key not in ("out", "track")}
        content["train"] = {key: value for key, value in content["train"].items() if ("train", key) not in FREE}
        content["recipe"] = Recipe.load(config.recipe).to_dict()["terms"]
        content["data"] = self.data(config.data)
        content["teachers"] = {
            letter: uri if uri == SELF else self.model(uri).fingerprint for letter, uri in config.teachers.items()
        }
        for key in ("tokenizer", "pretrained", "inherit_from"):
            uri = content["student"][key]
            known = key != "tokenizer" or uri in self._models
            content["student"][key] = self.model(uri).fingerprint if uri and known else uri
        content["package"] = __version__
        return hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()


def teacher_job(grid: Grid, out: Path, known: Known) -> Job | None:
    """The run that makes the grid's own teacher, if it has one."""
    if grid.teacher is None:
        return None
    return _job(TEACHER, grid.teacher.seed, grid.teacher, out / TEACHER, known)


def jobs(grid: Grid, out: Path, known: Known, trained: str | None) -> list[Job]:
    """All runs of the cells, seed by seed; ``trained`` is the grid's own teacher, which is there by now.

    Every student takes its joint width and tokenizer from the teacher, also where its recipe has no use for one, so
    that all students of a shape begin with the same weights.
    """
    found = []
    for seed in grid.seeds:
        for cell, config in grid.cells.items():
            teachers = {**config.teachers, **({LETTER: trained} if trained else {})}
            whole = _with_teachers(config, teachers, known).model_copy(update={"seed": seed})
            found.append(_job(cell, seed, _watched(whole, grid.evaluate), out / "cells" / cell, known))
    return found


def run_all(work: Sequence[Job], at_once: int = 1) -> None:
    """Run what is not finished, ``at_once`` runs in parallel, each in a process of its own if that is more than one.

    Raises:
        ClipdistillError: a run failed or was stopped; those that finished are kept.
    """
    waiting = [job for job in work if not job.is_finished]
    if len(waiting) < len(work):
        console.print(f"{len(work) - len(waiting)} of {len(work)} runs are finished already", markup=False)
    if at_once <= 1:
        for number, job in enumerate(waiting, 1):
            console.print(f"\n{number}/{len(waiting)} {job}", markup=False)
            _here(job)
    else:
        _in_parallel(waiting, at_once)


def _here(job: Job) -> None:
    try:
        distill(job.config, job.is_begun)
    except InterruptedRunError as stopped:
        raise _stopped(job) from stopped


def _in_parallel(waiting: Sequence[Job], at_once: int) -> None:
    executor, stop = ThreadPoolExecutor(at_once), Event()
    threads = max(1, (os.cpu_count() or 1) // at_once)
    running: dict[Future[None], Job] = {executor.submit(_in_process, job, threads, stop): job for job in waiting}
    try:
        for number, future in enumerate(as_completed(running), 1):
            future.result()
            console.print(f"{number}/{len(waiting)} {running[future]}: done", markup=False)
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


def _in_process(job: Job, threads: int, stop: Event) -> None:
    """Run ``clipdistill distill`` on a file beside the run folder, unless another run failed; keep what it says."""
    if stop.is_set():
        return
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    file, log = job.folder.with_suffix(".yaml"), job.folder.with_suffix(".txt")
    write_text(file, job.config.to_yaml())
    command = [sys.executable, "-m", "clipdistill", "distill", str(file), *(["--resume"] if job.is_begun else [])]
    with log.open("w", encoding="utf-8") as said:
        done = subprocess.run(
            command, stdout=said, stderr=said, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=False
        )
    if job.is_finished:
        return
    stop.set()
    if done.returncode == _INTERRUPTED:
        raise _stopped(job)
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TOLD:]
    raise TrainingError(f"{job}: the run failed (exit status {done.returncode}), see {log}:\n" + "\n".join(last))


def _stopped(job: Job) -> InterruptedRunError:
    return InterruptedRunError(f"{job}: stopped, its checkpoint is kept. Go on with the same command.")


def _job(cell: str, seed: int, config: RunConfig, parent: Path, known: Known) -> Job:
    out = parent / f"seed-{seed}-{known.content(config)}"
    return Job(cell, seed, config.model_copy(update={"out": str(out)}))


def _with_teachers(config: RunConfig, teachers: dict[str, str], known: Known) -> RunConfig:
    """Give a cell the teachers that its recipe uses, and its student what it has from the main one."""
    used = {letter: teachers[letter] for letter in Recipe.load(config.recipe).teachers}
    update = dict(_from_teacher(config, teachers, known))
    return config.model_copy(update={"teachers": used, "student": config.student.model_copy(update=update)})


def _from_teacher(config: RunConfig, teachers: dict[str, str], known: Known) -> Iterator[tuple[str, str | int]]:
    uri, student = main_teacher(teachers), config.student
    if uri is None or student.pretrained or config.prune:
        return
    origin = model_behind(uri)
    if (student.inherit or student.keep) and student.inherit_from is None and origin:
        yield "inherit_from", origin
    if student.keep:  # tokenizer and width come with the tower
        return
    if student.tokenizer == "auto" and origin and known.model(origin).lends_tokenizer:
        yield "tokenizer", origin
    if student.embed_dim is None and student.config is None:
        yield "embed_dim", known.model(uri).width


def _watched(config: RunConfig, evaluate: EvaluateConfig) -> RunConfig:
    """Let a run evaluate its student only if learning curves are asked for: at the end the grid does that itself."""
    return config.model_copy(update={"evaluate": evaluate}) if evaluate.every else config


def _lends(tokenizer: object) -> bool:
    if tokenizer is None:
        return False
    try:
        end_token_id(tokenizer)
    except ModelError:
        return False
    return True
