"""Python code that comes in a model's folder: it is not run, and nobody is asked whether it may be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdistill.errors import ModelError

#: Where a configuration of transformers names classes of its folder's own.
_MAP = "auto_map"


def refuse_code(error: Exception, folder: Path) -> None:
    """Raise :class:`ModelError` if what failed in ``folder`` is that transformers was told to run none of its code."""
    if "trust_remote_code" in str(error):
        raise _refusal(folder) from error


def refuse_map(config: Mapping[str, Any], path: Path) -> None:
    """Raise :class:`ModelError` for a configuration, read from ``path``, that names code of its own.

    For those that a library hands on by itself, to a class that would ask on the terminal.
    """
    if _MAP in config:
        raise _refusal(path)


def _refusal(where: Path) -> ModelError:
    return ModelError(
        f"{where} brings its own code, which is not run here. Expected a model, tokenizer and image processor of "
        "classes that transformers has itself."
    )
