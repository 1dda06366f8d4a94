"""A grid: runs that differ in one thing, times seeds, to be compared. YAML and overrides become one validated object.

::

    teacher: {recipe: clip, data: ..., student: {...}, train: {...}}   # optional: trained first, once, for all
    base: {data: ..., student: {...}, train: {...}}                    # a run without out and seed
    cells:
      clip: {recipe: clip}
      clip-kd: {recipe: clip-kd}
    baseline: clip
    seeds: [0, 1, 2]
    evaluate: {retrieval: scenes:test}
    metrics: [mean_recall]
    claims: [{claim: clip-kd-1, says: ..., source: ..., expect: clip-kd > clip}]

With ``teachers: {small: {...}, large: {...}}`` several are trained, and a cell says ``teacher: large``, or
``teachers: {T: small, U: large}``. A teacher with ``seed: [1, 2, 3]`` is trained three times, and so is all that it
teaches.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from clipdistill.config import EvaluateConfig, RunConfig, apply_override, make_run
from clipdistill.errors import ConfigError, did_you_mean, unreadable_yaml
from clipdistill.evidence.claims import OF_CLASSIFIERS, Claim, Names, read_claims
from clipdistill.evidence.grid_runs import (
    LETTER,
    check_teachers,
    main_teacher,
    mapping,
    read_cell,
    read_stored,
    read_teachers,
)

GRID_FOLDER = Path(__file__).parent / "grids"
KEYS = ("teacher", "teachers", "base", "cells", "baseline", "seeds", "evaluate", "metrics", "stored", "claims")
#: What each kind of data is measured by.
METRICS: dict[str, tuple[str, ...]] = {
    "retrieval": (
        *(f"{way}_R@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)),
        "mean_recall",
    ),
    "image_retrieval": (*(f"image_to_image_R@{k}" for k in (1, 5, 10)), "image_to_image_mAP"),
    "zeroshot": ("zeroshot_acc1", "zeroshot_acc5", "zeroshot_mean_per_class_recall"),
}
#: What a classifier is measured by instead, on the labelled data of ``zeroshot``.
CLASSIFIER_METRICS = ("classify_top1", "classify_top5")
_HEADLINES = {"retrieval": "mean_recall", "image_retrieval": "image_to_image_R@1", "zeroshot": "zeroshot_acc1"}


@dataclass(frozen=True)
class Grid:
    """What is compared: ``cells`` are runs by name, complete but for ``out``, ``seed`` and teachers yet to train.

    ``teachers`` are those that the grid trains, by name, as often as they have seeds; where a run says its teacher,
    such a name may stand. Cells that name none have the first.
    """

    name: str
    cells: dict[str, RunConfig]
    baseline: str
    seeds: tuple[int, ...]
    evaluate: EvaluateConfig
    metrics: tuple[str, ...]
    teachers: dict[str, tuple[RunConfig, ...]] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    #: The cells that train from their teachers' stored rows, embedded once, instead of the live models: of how many
    #: views of each picture, of which a target is the mean; 0 is the whole picture.
    stored: Mapping[str, int] = field(default_factory=dict)

    @property
    def teacher_seeds(self) -> tuple[int | None, ...]:
        """What tells the grid's own teachers of several seeds apart; where there is one seed or none, None alone."""
        seeds = [tuple(run.seed for run in runs) for runs in self.teachers.values()]
        varied = next((own for own in seeds if len(own) > 1 and own[0] != own[1]), None)
        return varied or (None,)

    def teachers_of(self, cell: str) -> dict[str, str]:
        """The teachers of a cell by letter: its own, and the grid's first as its T if it names none."""
        return dict(zip([LETTER], self.teachers, strict=False)) | self.cells[cell].teachers

    def taught_by(self, cell: str) -> str | None:
        """Name the grid's own teacher that a cell is measured against: its T, which is the first if it names none."""
        named = main_teacher(self.teachers_of(cell))
        return named if named in self.teachers else None

    def only(self, names: Sequence[str]) -> Grid:
        """Return the grid with the cells named, the baseline, the claims about these, and the teachers of all that.

        Raises:
            ConfigError: there is no cell of a name.
        """
        for name in names:
            _check_cell(name, self.cells, self.name)
        kept = {name: cell for name, cell in self.cells.items() if name in {*names, self.baseline}}
        claims = tuple(claim for claim in self.claims if claim.cells <= {*kept, *self.teachers})
        wanted = {name for cell in kept.values() for name in cell.teachers.values()}.union(*(c.cells for c in claims))
        first = next(iter(self.teachers), None)
        teachers = {name: runs for name, runs in self.teachers.items() if name == first or name in wanted}
        return replace(self, cells=kept, claims=claims, teachers=teachers)


def available_grids() -> dict[str, Path]:
    """Return the grids that ship with the package: name to file."""
    return {path.stem: path for path in sorted(GRID_FOLDER.glob("*.yaml"))}


def choose_grid(
    words: Sequence[str], recipes: str | None, name: str | None, seeds: int | None, cells: str | None
) -> Grid | None:
    """Read the grid that a command line means: a file, a shipped one, or recipes; None if it names finished runs.

    ``words`` are a file, or runs, and overrides; ``recipes`` and ``cells`` are lists with commas.
    """
    files, overrides = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    given = [what for what in (recipes, name, *files) if what is not None]
    if sum(Path(file).suffix in (".yaml", ".yml") for file in files) > 1:
        raise ConfigError(f"found several grids: {', '.join(files)}. Give one at a time, each its own --out.")
    if recipes is None and name is None and len(files) != 1:
        for option, value in (("--seeds", seeds), ("--cells", cells)):
            if value is not None:
                raise ConfigError(f"{option} belongs to a grid: name a YAML file, --grid NAME or --recipes A,B.")
        return None
    if len(given) > 1:
        raise ConfigError(f"found several things to compare: {', '.join(given)}. Give one grid, or recipes, or runs.")
    grid = (
        grid_of_recipes(_names(recipes), overrides, seeds)
        if recipes is not None
        else load_grid(given[0], overrides, seeds)
    )
    return grid.only(_names(cells)) if cells else grid


def load_grid(source: str, overrides: Sequence[str] = (), seeds: int | None = None) -> Grid:
    """Read a grid by name or from a YAML file; see :func:`make_grid` for overrides and errors."""
    known = available_grids()
    path = known.get(source, Path(source))
    if not path.is_file():
        raise ConfigError(
            f"unknown grid '{source}': neither a grid's name nor a YAML file.{did_you_mean(source, known)} "
            "Finished runs are compared two or more at a time."
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(unreadable_yaml(path, error)) from error
    return make_grid(data, overrides, seeds, source)


def grid_of_recipes(recipes: Sequence[str], overrides: Sequence[str] = (), seeds: int | None = None) -> Grid:
    """Make a grid with one cell per recipe, by name or file; see :func:`make_grid`."""
    if not recipes:
        raise ConfigError("--recipes names none. Write --recipes clip,clip-kd, for instance.")
    cells = {Path(recipe).stem: {"recipe": recipe} for recipe in recipes}
    if len(cells) < len(recipes):
        raise ConfigError(f"--recipes {','.join(recipes)}: two recipes have the same name; a cell is called by it.")
    return make_grid({"cells": cells}, overrides, seeds, "--recipes")


def make_grid(data: Any, overrides: Sequence[str] = (), seeds: int | None = None, where: str = "the grid") -> Grid:
    """Validate plain data into a grid.

    An override whose key begins with one of the grid's own keys (``teacher.train.steps=9``, ``seeds=[0, 1]``) changes
    that, every other one the base (``train.epochs=2``). ``seeds`` counts: 3 is 0, 1, 2.

    Raises:
        ConfigError: a key, cell, metric or value is unknown or does not fit; names what and where.
        RecipeError: a cell's recipe is unknown, or needs a teacher that nobody names.
    """
    tree = _overridden(data, overrides, where)
    cells = {name: read_cell(name, tree["base"], changes, where) for name, changes in tree["cells"].items()}
    teachers = read_teachers(tree, cells, where)
    for name, cell in cells.items():
        check_teachers(name, cell, teachers, where)
    evaluate = _evaluate(tree["evaluate"], where)
    metrics = _metrics(tree.get("metrics"), evaluate, cells, where)
    return Grid(
        name=Path(where).stem,
        cells=cells,
        baseline=_baseline(tree.get("baseline"), cells, where),
        seeds=_seeds(tree.get("seeds", [0, 1, 2]) if seeds is None else list(range(seeds)), where),
        evaluate=evaluate,
        metrics=metrics,
        teachers=teachers,
        stored=read_stored(tree.get("stored", False), tree["cells"], cells, where),
        claims=read_claims(tree.get("claims"), _names_of(cells, teachers, evaluate), metrics[0], where),
    )


def evaluate_keys(overrides: Sequence[str]) -> dict[str, str]:
    """Read overrides that name evaluation data and nothing else: ``evaluate.retrieval=URI``; task to URI."""
    tree: dict[str, Any] = {}
    for override in overrides:
        apply_override(tree, override)
    for key in tree:
        if key != "evaluate":
            raise ConfigError(
                f"'{key}=' changes a run before it is trained; these are finished. Known: evaluate.TASK=URI."
            )
    evaluate = _read_evaluate(tree.get("evaluate"), "the command line")
    return {task: uri for task, uri in evaluate.uris().items() if uri}


def _overridden(data: Any, overrides: Sequence[str], where: str) -> dict[str, Any]:
    """The grid's tree with all sections there, its overrides applied, and ``evaluate`` beside the base."""
    if not isinstance(data, Mapping) or not isinstance(data.get("cells"), Mapping) or not data["cells"]:
        raise ConfigError(f"{where}: expected the key 'cells' with names and what they change, found {data!r:.80}.")
    for key in data:
        if key not in KEYS:
            raise ConfigError(f"{where}: unknown key '{key}'.{did_you_mean(str(key), KEYS)}")
    tree: dict[str, Any] = {key: _copy(value) for key, value in data.items()}
    for section in ("base", "evaluate"):
        tree[section] = mapping(tree.get(section), f"{where}, {section}")
    for section in ("cells", "teachers"):
        if isinstance(tree.get(section), Mapping):  # YAML reads some names as numbers or as true and false
            tree[section] = {str(name): run for name, run in tree[section].items()}
    for override in overrides:
        apply_override(tree if _is_of_grid(override, tree) else tree["base"], override)
    tree["evaluate"] = {**mapping(tree["base"].pop("evaluate", None), f"{where}, evaluate"), **tree["evaluate"]}
    return tree


def _is_of_grid(override: str, tree: Mapping[str, Any]) -> bool:
    """Whether an override changes one of the grid's own keys; runs have teachers, too, but by letter."""
    head, name, *_ = [*re.split(r"[.=]", override, maxsplit=2), ""]
    return head.strip() in KEYS and (head.strip() != "teachers" or name.strip() in (tree.get("teachers") or {}))


def _names_of(
    cells: Mapping[str, RunConfig], teachers: Mapping[str, Sequence[RunConfig]], evaluate: EvaluateConfig
) -> Names:
    """What claims may speak of."""
    models = {**cells, **{name: runs[0] for name, runs in teachers.items()}}
    sorting = frozenset(name for name, run in models.items() if run.student.has_text is False)
    taught = any(name not in sorting for name in teachers) or any(main_teacher(run.teachers) for run in cells.values())
    likeness = taught and evaluate.retrieval is not None
    return Names(tuple(cells), tuple(teachers), sorting, tuple(_measured(evaluate)), likeness)


def _evaluate(data: Any, where: str) -> EvaluateConfig:
    evaluate = _read_evaluate(data, where)
    if not any(evaluate.uris().values()):
        tasks = ", ".join(f"evaluate.{task}" for task in METRICS)
        raise ConfigError(f"{where}: name data to evaluate on: {tasks}, for instance evaluate.retrieval=FOLDER.")
    return evaluate


def _read_evaluate(data: Any, where: str) -> EvaluateConfig:
    """Validate an evaluate section, with the messages of a run file."""
    return make_run({"data": "", "train": {"steps": 1}, "out": "", "evaluate": data or {}}, where).evaluate


def _metrics(data: Any, evaluate: EvaluateConfig, cells: Mapping[str, RunConfig], where: str) -> tuple[str, ...]:
    """The metrics that are printed; by default one for each kind of data."""
    sorting = all(cell.student.has_text is False for cell in cells.values())
    tasks = [task for task, uri in evaluate.uris().items() if uri]
    if data is None:
        return tuple(_HEADLINES[task] for task in tasks)
    chosen = [data] if isinstance(data, str) else _list(data, f"{where}, metrics")
    known = _measured(evaluate)
    if not chosen:
        raise ConfigError(f"{where}, metrics: expected at least one of {', '.join(known)}; found none.")
    for metric in chosen:
        if metric not in known:
            hint = did_you_mean(str(metric), known)
            raise ConfigError(f"{where}: the metric '{metric}' is not measured on the data given.{hint}")
        if sorting and not metric.startswith(OF_CLASSIFIERS):
            raise ConfigError(f"{where}: the metric '{metric}' is not measured of classifiers, and every cell is one.")
    return tuple(dict.fromkeys(chosen))


def _measured(evaluate: EvaluateConfig) -> list[str]:
    """Every metric that some student has on the data given."""
    tasks = [task for task, uri in evaluate.uris().items() if uri]
    known = [metric for task in tasks for metric in METRICS[task]]
    return known + list(CLASSIFIER_METRICS if "zeroshot" in tasks else ())


def _baseline(name: Any, cells: Mapping[str, Any], where: str) -> str:
    if name is None:
        return next((usual for usual in ("clip", "baseline") if usual in cells), next(iter(cells)))
    _check_cell(str(name), cells, where)
    return str(name)


def _check_cell(name: str, cells: Mapping[str, Any], where: str) -> None:
    if name not in cells:
        raise ConfigError(f"{where}: there is no cell '{name}'.{did_you_mean(name, cells)}")


def _seeds(data: Any, where: str) -> tuple[int, ...]:
    seeds = _list(data, f"{where}, seeds")
    if not seeds or any(isinstance(seed, bool) or not isinstance(seed, int) or seed < 0 for seed in seeds):
        raise ConfigError(f"{where}, seeds: expected whole numbers such as [0, 1, 2], found {data!r}.")
    return tuple(dict.fromkeys(seeds))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, found {value!r}.")
    return list(value)


def _copy(value: Any) -> Any:
    """Copy mappings and lists, so that overrides change no one else's data and no YAML anchor's twin."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
