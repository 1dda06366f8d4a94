"""Every error a user can cause, in one tree.

::

    ClipdistillError          what was found, where, what was expected, what to do
    ├── ConfigError           a run file, an override, a command line, a missing package
    ├── RecipeError           a recipe: unknown node, verb, key or metric; a node nobody provides
    ├── DataError             a data URI, a metadata file, a picture
    │   └── StoreError            a store of embeddings
    ├── ModelError            a model folder, a hub name, a tokenizer
    ├── TrainingError         a loss that is not finite, a checkpoint that does not fit
    │   └── InterruptedRunError   the user stopped a run; it can go on
    └── SearchError           an index or a query
        └── UnavailableError      what keeps the rows of an index does not answer

The command line prints the message alone; ``--debug`` adds the traceback.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType


class ClipdistillError(Exception):
    """Base of every error whose message is meant for the user."""


@contextmanager
def found_in(where: str) -> Iterator[None]:
    """Say where, in front of what a user's error says."""
    try:
        yield
    except ClipdistillError as error:
        raise type(error)(f"{where}: {error}") from error


class ConfigError(ClipdistillError):
    """A run file, an override or the command line is wrong, or a package is missing."""


class RecipeError(ClipdistillError):
    """A recipe does not mean anything, or needs what nobody provides."""


class DataError(ClipdistillError):
    """A data source cannot be opened or read."""


class StoreError(DataError):
    """A store of embeddings is incomplete, damaged or made for something else."""


class ModelError(ClipdistillError):
    """A model, tokenizer or image processor cannot be loaded."""


class TrainingError(ClipdistillError):
    """A run cannot go on."""


class InterruptedRunError(TrainingError):
    """The user stopped a run after a checkpoint was written."""


class SearchError(ClipdistillError):
    """An index or a query is wrong."""


class UnavailableError(SearchError):
    """The rows of an index cannot be read or written just now."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, and the list of all of them.

    >>> did_you_mean("contrats", ["contrast", "feature"])
    " Did you mean 'contrast'? Known: contrast, feature."
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} Known: {', '.join(names) or 'none'}."


def unreadable_yaml(path: object, error: Exception) -> str:
    """Say on one line where a file is no YAML and why; ``error`` is what reading it raised.

    >>> unreadable_yaml("run.yaml", ValueError("a bad byte"))
    'run.yaml is not readable YAML: a bad byte'
    """
    mark, problem, context = (getattr(error, name, None) for name in ("problem_mark", "problem", "context"))
    if mark is None or problem is None:
        return f"{path} is not readable YAML: {' '.join(str(error).split())}"
    context = f" {context}:" if context else ""
    problem = problem.replace("'<stream end>'", "the end of the file")
    return f"{path} is not readable YAML: line {mark.line + 1}, column {mark.column + 1},{context} {problem}"


def need(package: str, extra: str) -> ModuleType:
    """Import ``package``, or raise a :class:`ConfigError` that names the extra which brings it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"the package '{package}' is needed here and could not be imported ({error}). "
            f"Install it with: pip install 'clipdistill[{extra}]'"
        ) from error
