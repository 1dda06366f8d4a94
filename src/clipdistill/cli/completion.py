"""What a shell offers after Tab: verbs and options come from typer, names from here; nothing imports torch."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any

#: How bash asks: the words of the line, and which of them is being written.
_MODE, _WORDS, _PLACE = "_CLIPDISTILL_COMPLETE", "COMP_WORDS", "COMP_CWORD"


def recipes(incomplete: str) -> list[str]:
    """Names of recipes."""
    from clipdistill.algebra.recipe import available

    return _starting(incomplete, available())


def presets(incomplete: str) -> list[str]:
    """Names of students."""
    from clipdistill.models.presets import PRESETS

    return _starting(incomplete, PRESETS)


def benchmarks(incomplete: str) -> list[str]:
    """Names of benchmarks."""
    from clipdistill.bench.names import NAMES

    return _starting(incomplete, NAMES)


#: Keys of a run whose values have names.
_VALUES: dict[str, Callable[[str], list[str]]] = {"recipe": recipes, "student.preset": presets}


def overrides(incomplete: str) -> list[str]:
    """``KEY=NAME`` for the keys whose values have names; nothing, so that the shell offers files, for others."""
    key, separator, value = incomplete.partition("=")
    keys = [key] if separator else _starting(key, _VALUES) if key else []
    return [f"{one}={name}" for one in keys if one in _VALUES for name in _VALUES[one](value)]


def _starting(incomplete: str, names: Any) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


@contextlib.contextmanager
def whole_words() -> Iterator[None]:
    """Make words out of what bash has cut at ``=``, and cut what is offered in the same way.

    In bash ``recipe=cl`` is three words, and what is offered replaces the last of them.
    """
    if os.environ.get(_MODE) != "complete_bash":
        yield
        return
    words = os.environ.get(_WORDS, "").split("\n")
    place = int(os.environ.get(_PLACE, len(words) - 1))
    joined, last = _joined(words[: place + 1])
    os.environ.update({_WORDS: "\n".join(joined), _PLACE: str(len(joined) - 1)})
    offered = io.StringIO()
    try:
        with contextlib.redirect_stdout(offered):
            yield
    finally:
        for line in filter(None, offered.getvalue().splitlines()):
            print(line.removeprefix(last))


def _joined(words: list[str]) -> tuple[list[str], str]:
    """The words as they were written, and what of the last one stands before bash's own last word."""
    joined: list[str] = []
    last = ""
    for place, word in enumerate(words):
        if joined and place > 1 and (word == "=" or words[place - 1] == "="):
            last = joined[-1] + ("=" if word == "=" else "")
            joined[-1] += word
        else:
            last = ""
            joined.append(word)
    return joined, last
