"""The runs of a grid: what each is, where it lies, whether it is finished, and what it trains from.

A run's folder is named by a hash of everything it depends on, so a finished run is recognised and never run again,
and one that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from clipdistill import __version__
from clipdistill.algebra.nodes import LOGITS
from clipdistill.algebra.recipe import Recipe
from clipdistill.config import SELF, AugmentConfig, EvaluateConfig, RunConfig
from clipdistill.data.sources import pairs
from clipdistill.data.views import Augmentation
from clipdistill.errors import ModelError
from clipdistill.evidence.grid import Grid
from clipdistill.evidence.grid_runs import TEACHER, Draw, main_teacher, recipe_teachers, recipes_of
from clipdistill.files import checksum
from clipdistill.models.bundle import RECORD
from clipdistill.models.fingerprints import tokenizer_text
from clipdistill.models.loading import load, tokenizer_of
from clipdistill.models.students import config_folder
from clipdistill.models.timm import TIMM
from clipdistill.models.vocabulary import end_token_id
from clipdistill.teachers.embed import embed
from clipdistill.teachers.manifest import MANIFEST
from clipdistill.teachers.stored import is_store, model_behind, open_teacher_store
from clipdistill.training.run_folder import CONFIG, FREE, STUDENT


@dataclass(frozen=True)
class Job:
    """One run of a grid: its cell, its seeds, and its whole configuration."""

    cell: str
    draw: Draw
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
        return f"{self.cell}, {self.draw}"


@dataclass(frozen=True)
class Facts:
    """What a student takes over from a teacher, and the hash of its weights."""

    fingerprint: str
    width: int
    lends_tokenizer: bool


@dataclass(frozen=True)
class Store:
    """A store that the grid makes: of which model, where, and of how many views, drawn how."""

    model: str
    folder: Path
    views: int
    augmentation: Augmentation


@dataclass
class Known:
    """Fingerprints of data and models, each computed once."""

    _data: dict[str, str] = field(default_factory=dict)
    _models: dict[str, Facts] = field(default_factory=dict)
    _tokenizers: dict[str, str] = field(default_factory=dict)
    #: What cells train from instead of live teachers, by URI.
    stores: dict[str, Store] = field(default_factory=dict)

    def data(self, uri: str) -> str:
        """The fingerprint of a data URI."""
        if uri not in self._data:
            self._data[uri] = pairs(uri).fingerprint
        return self._data[uri]

    def model(self, uri: str) -> Facts:
        """Load a model once to learn about it."""
        if uri not in self._models and is_store(uri):
            store, choices = open_teacher_store(uri)
            self._models[uri] = Facts(f"{store.fingerprint} {choices}", store.width, False)
        elif uri not in self._models:
            encoder = load(uri)
            self._models[uri] = Facts(encoder.fingerprint, encoder.width, _lends(encoder.tokenizer))
        return self._models[uri]

    def stored(self, uri: str, config: RunConfig, folder: Path, views: int) -> str:
        """Name the store of a model's rows of a run's data, below ``folder``, and know it before it is made.

        Its name is a hash of both and of how views are drawn, which runs depend on in the rows' place: made again,
        rows may differ in their last digits.
        """
        facts = self.model(uri)
        asked = config.augment if views and isinstance(config.augment, AugmentConfig) else AugmentConfig()
        drawn = Augmentation(**asked.model_dump())
        key = _hash(f"{facts.fingerprint} {self.data(config.data)}{f' {views} {drawn}' if views else ''}")
        store = Store(uri, folder / key, views, drawn)
        name = f"{store.folder}?views={'mean' if views else 'any'}"
        self.stores[name] = store
        self._models[name] = Facts(f"stored {key}", facts.width, False)
        return name

    def content(self, config: RunConfig) -> str:
        """Return a hash of all that a run's result depends on, 12 hexadecimal digits; where files lie is not."""
        content = {key: value for key, value in config.model_dump().items() if key not in ("out", "track")}
        content["recipe"] = Recipe.load(config.recipe).to_dict()["terms"]
        for part in (content, *content["stages"]):
            part["train"] = {key: value for key, value in part["train"].items() if ("train", key) not in FREE}
        for stage in content["stages"]:
            stage["recipe"] = stage["recipe"] and Recipe.load(stage["recipe"]).to_dict()["terms"]
            stage["student"] = self._student(stage["student"])
        content["data"], content["unpaired"] = self.data(config.data), [self.data(uri) for uri in config.unpaired]
        content["teachers"] = {
            letter: uri if uri == SELF else self.model(uri).fingerprint for letter, uri in config.teachers.items()
        }
        content["student"] = self._student(content["student"])
        evaluate = config.evaluate
        if evaluate.every:  # its learning curve is part of a run
            tried = {task: uri and self.data(uri) for task, uri in evaluate.uris().items()}
            content["evaluate"] = {"every": str(evaluate.every), **tried}
        content["package"] = __version__
        return _hash(json.dumps(content, sort_keys=True, default=str))

    def _student(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a run or a stage says of its student, with the content of what it names in the place of names."""
        reads: dict[str, Callable[[str], str]] = {
            "pretrained": lambda uri: self.model(uri).fingerprint,
            "inherit_from": lambda uri: self.model(uri).fingerprint,
            "tokenizer": self._tokenizer,
            "config": _architecture,
            "vision": lambda uri: uri if uri.startswith(TIMM) else _architecture(uri),
        }
        return {
            key: reads[key](value) if key in reads and value and isinstance(value, str) else value
            for key, value in given.items()
        }

    def _tokenizer(self, uri: str) -> str:
        if uri in ("auto", "train"):
            return uri
        if uri not in self._tokenizers:
            self._tokenizers[uri] = _hash(tokenizer_text(tokenizer_of(uri)))
        return self._tokenizers[uri]


def _architecture(uri: str) -> str:
    """The hash of the config.json that a student is built after."""
    return checksum(config_folder(uri) / "config.json")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def teacher_jobs(grid: Grid, out: Path, known: Known) -> dict[int | None, dict[str, Job]]:
    """The runs that make the grid's own teachers, for each of ``grid.teacher_seeds``, by name."""
    folders = {name: out / TEACHER if name == TEACHER else out / "teachers" / name for name in grid.teachers}
    made = {
        name: [_job(name, Draw(run.seed), run, folders[name], known) for run in runs]
        for name, runs in grid.teachers.items()
    }
    return {seed: {name: own[at] for name, own in made.items()} for at, seed in enumerate(grid.teacher_seeds)}


def jobs(grid: Grid, out: Path, known: Known, trained: Mapping[int | None, Mapping[str, str]]) -> list[Job]:
    """All runs of the cells, seed by seed; ``trained`` are the grid's own teachers, as in :func:`teacher_jobs`.

    Every student takes its joint width and tokenizer from the teacher, also where its recipe has no use for one, so
    that all students of a shape begin with the same weights, but for what a teacher changes about the first ones
    (:mod:`clipdistill.models.starts`). What is the same run for all seeds of the teachers is there once.
    """
    found: dict[Path, Job] = {}
    for (teacher, own), seed, (cell, config) in product(trained.items(), grid.seeds, grid.cells.items()):
        teachers = {letter: own.get(uri, uri) for letter, uri in grid.teachers_of(cell).items()}
        whole = _with_teachers(config, teachers, known).model_copy(update={"seed": seed})
        if cell in grid.stored:
            whole = _on_stores(whole, out / "stores", known, grid.stored[cell])
        job = _job(cell, Draw(seed, teacher), _watched(whole, grid.evaluate), out / "cells" / cell, known)
        again = job.folder in found
        found[job.folder] = replace(job, draw=Draw(seed)) if again else job
    return list(found.values())


def embed_stores(work: Sequence[Job], known: Known) -> None:
    """Embed what runs that are not finished train from, each teacher once for the same data; go on with what is begun.

    Raises:
        ClipdistillError: see :func:`clipdistill.teachers.embed.embed`.
    """
    wanted = {uri: job.config for job in work if not job.is_finished for uri in job.config.teachers.values()}
    for uri, config in wanted.items():
        store = known.stores.get(uri)
        if store is None or (store.folder / MANIFEST).is_file():
            continue
        train = config.train
        embed(
            config.data,
            store.model,
            store.folder,
            views=store.views,
            augmentation=store.augmentation,
            workers=train.workers,
            device=train.device,
            max_broken=train.max_broken,
        )


def _on_stores(config: RunConfig, folder: Path, known: Known, views: int) -> RunConfig:
    """The run with stores for its live teachers, whatever views it shows its student.

    A teacher whose class scores are asked for stays live: a store has none.
    """
    nodes = {node for recipe in recipes_of(config) for node in recipe.nodes}
    scoring = {node.model for node in nodes if node.view == LOGITS}
    teachers = {
        letter: uri if uri == SELF or letter in scoring or is_store(uri) else known.stored(uri, config, folder, views)
        for letter, uri in config.teachers.items()
    }
    return config.model_copy(update={"teachers": teachers})


def _job(cell: str, draw: Draw, config: RunConfig, parent: Path, known: Known) -> Job:
    out = parent / f"seed-{draw.seed}-{known.content(config)}"
    return Job(cell, draw, config.model_copy(update={"out": str(out)}))


def _with_teachers(config: RunConfig, teachers: dict[str, str], known: Known) -> RunConfig:
    """Give a cell the teachers that its recipe uses, and its student what it has from the main one."""
    used = {letter: teachers[letter] for letter in recipe_teachers(config, teachers)}
    update = dict(_from_teacher(config, teachers, known))
    return config.model_copy(update={"teachers": used, "student": config.student.model_copy(update=update)})


def _from_teacher(config: RunConfig, teachers: dict[str, str], known: Known) -> Iterator[tuple[str, str | int]]:
    uri, student = main_teacher(teachers), config.student
    if uri is None or student.pretrained or student.has_text is False:
        return
    origin = model_behind(uri)
    if config.prune:
        if origin and not recipe_teachers(config, teachers):  # it prunes a copy of the teacher without learning from it
            yield "pretrained", origin
        return
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
