"""The runs of a grid from plain data: cells over a base, the teachers that the grid trains, and who teaches whom."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from clipdistill.algebra.recipe import Recipe
from clipdistill.config import SELF, RunConfig, make_run
from clipdistill.errors import ConfigError, RecipeError, did_you_mean, found_in
from clipdistill.training.checks import used_teachers
from clipdistill.training.stages import train_over

#: The name of the teacher among the models of a comparison, if the grid gives it no other.
TEACHER = "teacher"
#: A letter that stands for "the grid's own teacher" among the teachers of a run.
LETTER = "T"


class Draw(NamedTuple):
    """What chance decides of a run: its own seed, and its teacher's where the grid trains one from several seeds."""

    seed: int
    teacher: int | None = None

    def __str__(self) -> str:
        return f"seed {self.seed}" + ("" if self.teacher is None else f", teacher's seed {self.teacher}")


def read_cell(name: Any, base: Mapping[str, Any], changes: Any, where: str) -> RunConfig:
    """Read a cell: the base with its changes; raises ConfigError for what is no run."""
    at = f"{where}, cell {name}"
    _check_name(name, at, "a cell", (TEACHER,))
    own = {key: value for key, value in mapping(changes, at).items() if key != "stored"}
    run = _with_teacher(_merged(base, own), at)
    if isinstance(changed := own.get("train"), Mapping):
        run["train"] = train_over(mapping(base.get("train"), f"{where}, base, train"), changed)
    for key, instead in (("out", "give --out"), ("seed", "write seeds: [0, 1, 2] beside base"), ("evaluate", "")):
        if key in run:
            raise ConfigError(f"{at}: a grid sets '{key}' for every cell; {instead or 'write evaluate beside base'}.")
    return _run({**run, "out": str(name)}, at)


def _run(data: Mapping[str, Any], at: str) -> RunConfig:
    """Read a run whose recipes can be read, too."""
    run = make_run(data, at)
    with found_in(at):
        recipes_of(run)
    return run


def _check_name(name: Any, at: str, what: str, taken: Collection[str]) -> None:
    if not re.fullmatch(r"\w[\w.+ -]*", str(name)) or name in taken:
        raise ConfigError(
            f"{at}: {what}'s name is also a folder's: letters, digits and - _ + . only, and not "
            f"{' or '.join(map(repr, taken))}."
        )


def _with_teacher(run: dict[str, Any], at: str) -> dict[str, Any]:
    """A cell's data with ``teacher: NAME`` written as ``teachers: {T: NAME}``."""
    teacher = run.pop("teacher", None)
    if teacher is None:
        return run
    given = mapping(run.get("teachers"), f"{at}, teachers")
    if LETTER in given:
        raise ConfigError(f"{at}: teacher and teachers.{LETTER} are given and mean the same. Keep one.")
    return {**run, "teachers": {LETTER: teacher, **given}}


def read_teachers(
    tree: Mapping[str, Any], cells: Mapping[str, RunConfig], where: str
) -> dict[str, tuple[RunConfig, ...]]:
    """Read the teachers that the grid trains, by name, ``teacher`` first, each as often as there are seeds.

    Raises ConfigError for a name taken, and where two teachers have lists of seeds that do not pair.
    """
    data = {} if tree.get("teacher") is None else {TEACHER: tree["teacher"]}
    for name, run in mapping(tree.get("teachers"), f"{where}, teachers").items():
        at = f"{where}, teachers, {name}"
        _check_name(name, at, "a teacher", (*data, *(cell for cell in cells if cell == name), SELF))
        data[str(name)] = run
    found = {
        name: _teacher(run, f"{where}, {'' if name == TEACHER else 'teachers, '}{name}") for name, run in data.items()
    }
    counts = {name: len(runs) for name, runs in found.items() if len(runs) > 1}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise ConfigError(f"{where}: teachers of different numbers of seeds: {told}. Give each as many, or one.")
    most = max(counts.values(), default=1)
    return {name: runs if len(runs) == most else runs * most for name, runs in found.items()}


def _teacher(data: Any, at: str) -> tuple[RunConfig, ...]:
    """The runs of one teacher: one, or one for each seed of a list."""
    run = mapping(data, at)
    if "out" in run:
        raise ConfigError(f"{at}: a grid sets 'out' for its teacher; remove it.")
    seeds = [{"seed": seed} for seed in run["seed"]] if isinstance(run.get("seed"), (list, tuple)) else [{}]
    runs = tuple(_run({**run, **seed, "out": TEACHER}, at) for seed in seeds)
    if len({one.seed for one in runs}) < max(1, len(seeds)):
        raise ConfigError(f"{at}, seed: expected a number or a list of different ones, found {run['seed']!r}.")
    return runs


def recipe_teachers(config: RunConfig, given: Collection[str] = ()) -> tuple[str, ...]:
    """The letters of the teachers that a run needs in any of its stages, sorted.

    Of those that are ``given``, batches that are made by comparing rows need the first.
    """
    batches = [config.batches.model_dump() | stage.batches for stage in config.stages] or [config.batches.model_dump()]
    stages = zip(recipes_of(config), batches, strict=True)
    return tuple(sorted({letter for recipe, own in stages for letter in used_teachers(recipe, given, own)}))


def recipes_of(config: RunConfig) -> list[Recipe]:
    """The recipes of a run's stages, or its only one."""
    recipes = [config.recipe if stage.recipe is None else stage.recipe for stage in config.stages] or [config.recipe]
    return [Recipe.load(recipe) for recipe in recipes]


def read_stored(value: Any, changes: Mapping[str, Any], cells: Mapping[str, RunConfig], where: str) -> dict[str, int]:
    """Read which cells train from stores, and of how many views; 0 is whole pictures.

    ``value`` is what the grid says; a cell may say otherwise among its ``changes``. Raises ConfigError where a store
    does not suffice.
    """
    found = {}
    for name, cell in cells.items():
        said = changes[name]
        own = said.get("stored", value) if isinstance(said, Mapping) else value
        at = f"{where}, cell {name}" if own is not value else where
        views = _views(own, at)
        if views is None:
            continue
        if cell.unpaired:
            raise ConfigError(
                f"{where}, cell {name}: with stored={str(own).lower()} a teacher is embedded for the paired data "
                "alone, and this cell has unpaired data. Drop one of the two."
            )
        if views and cell.augment in ("whole", "stored"):
            raise ConfigError(
                f"{where}, cell {name}: stored={views} embeds views drawn as augment says, and augment is "
                f"{cell.augment}. Write stored: true, or say how views are drawn."
            )
        found[name] = views
    return found


def _views(value: Any, at: str) -> int | None:
    """Read ``stored``: None for a live teacher, else the number of views."""
    if isinstance(value, bool):
        return 0 if value else None
    if not isinstance(value, int) or value < 2:
        raise ConfigError(f"{at}, stored: expected true, false or a number of views, two or more, found {value!r}.")
    return value


def check_teachers(name: str, cell: RunConfig, trained: Mapping[str, Any], where: str) -> None:
    """Refuse a cell whose teachers nobody gives (RecipeError), or whose T is not one of those that the grid trains."""
    at = f"{where}, cell {name}"
    given = {*cell.teachers, *([LETTER] if trained else [])}
    own = cell.teachers.get(LETTER)
    if trained and own is not None and own not in trained:
        raise ConfigError(
            f"{at}: teachers.{LETTER} is given, and the grid trains a teacher. Found {own}."
            f"{did_you_mean(own, trained)} Keep one."
        )
    for letter in recipe_teachers(cell):
        if letter not in given:
            raise RecipeError(
                f"{at}: recipe {Recipe.load(cell.recipe).name} needs a teacher '{letter}', and the grid names none. "
                f"Add teachers.{letter}=MODEL to its base, or a run under 'teacher'."
            )


def main_teacher(teachers: Mapping[str, str]) -> str | None:
    """The teacher that cells are measured against: T, or else the first by letter; never the student's own average."""
    others = {letter: uri for letter, uri in teachers.items() if uri != SELF}
    letter = LETTER if LETTER in others else min(others, default=None)
    return None if letter is None else others[letter]


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Put ``changes`` over ``base``, key by key; a recipe is replaced as a whole."""
    result = dict(base)
    for key, value in changes.items():
        deep = key != "recipe" and isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if deep else value
    return result


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return keys and values as a dict, of nothing an empty one; raises ConfigError for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected keys and values, found {value!r}.")
    return dict(value)
