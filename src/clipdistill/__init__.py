"""clipdistill turns a large CLIP into a small, fast one, proves what was kept, and ships it as an image search.

Every public name is loaded when first used: importing the package needs the base install alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name -> module that defines it.
_HOMES = {
    "EmbeddingStore": "clipdistill.teachers.store",
    "InteractionGraph": "clipdistill.algebra.graph",
    "Losses": "clipdistill.algebra.graph",
    "Recipe": "clipdistill.algebra.recipe",
    "Sample": "clipdistill.data.samples",
    "Tasks": "clipdistill.evaluation.evaluate",
    "distill": "clipdistill.training.stages",
    "embed": "clipdistill.teachers.embed",
    "evaluate": "clipdistill.evaluation.evaluate",
    "export_store": "clipdistill.teachers.foreign.export",
    "import_store": "clipdistill.teachers.foreign",
    "load_run": "clipdistill.config",
    "make_run": "clipdistill.config",
    "pairs": "clipdistill.data.sources",
    "write_report": "clipdistill.evidence.report",
}
__all__ = [
    "EmbeddingStore",
    "InteractionGraph",
    "Losses",
    "Recipe",
    "Sample",
    "Tasks",
    "__version__",
    "distill",
    "embed",
    "evaluate",
    "export_store",
    "import_store",
    "load_run",
    "make_run",
    "pairs",
    "write_report",
]

if TYPE_CHECKING:
    from clipdistill.algebra.graph import InteractionGraph, Losses
    from clipdistill.algebra.recipe import Recipe
    from clipdistill.config import load_run, make_run
    from clipdistill.data.samples import Sample
    from clipdistill.data.sources import pairs
    from clipdistill.evaluation.evaluate import Tasks, evaluate
    from clipdistill.evidence.report import write_report
    from clipdistill.teachers.embed import embed
    from clipdistill.teachers.foreign import import_store
    from clipdistill.teachers.foreign.export import export_store
    from clipdistill.teachers.store import EmbeddingStore
    from clipdistill.training.stages import distill


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clipdistill' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("clipdistill"):
            raise
        from clipdistill.errors import ConfigError

        raise ConfigError(
            f"clipdistill.{name} needs the package '{error.name}'. Install it with: pip install 'clipdistill[train]'"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
