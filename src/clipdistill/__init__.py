"""clipdistill turns a large CLIP into a small, fast one, proves what was kept, and ships it as an image search.

Every public name is loaded when first used: importing the package needs the base install alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import clipdistill.models  # noqa: F401  # it has to be there before transformers is

__version__ = "0.1.0"

#: Public name -> module that defines it.
_HOMES = {
    "EmbeddingStore": "clipdistill.teachers.store",
    "Filter": "clipdistill.search.filters",
    "Index": "clipdistill.search.index",
    "InteractionGraph": "clipdistill.algebra.graph",
    "Losses": "clipdistill.algebra.graph",
    "Options": "clipdistill.search.query",
    "Query": "clipdistill.search.query",
    "Recipe": "clipdistill.algebra.recipe",
    "Sample": "clipdistill.data.samples",
    "Searcher": "clipdistill.search.searcher",
    "Tasks": "clipdistill.evaluation.evaluate",
    "build_index": "clipdistill.search.build",
    "convert": "clipdistill.data.convert",
    "distill": "clipdistill.training.stages",
    "embed": "clipdistill.teachers.embed",
    "evaluate": "clipdistill.evaluation.evaluate",
    "export_model": "clipdistill.export.onnx",
    "export_store": "clipdistill.teachers.foreign.export",
    "import_store": "clipdistill.teachers.foreign",
    "load_model": "clipdistill.models.loading",
    "load_run": "clipdistill.config",
    "make_run": "clipdistill.config",
    "pairs": "clipdistill.data.sources",
    "save_chinese_clip": "clipdistill.models.chinese_clip",
    "save_open_clip": "clipdistill.models.open_clip_layout",
    "sync_index": "clipdistill.search.sync",
    "write_mix": "clipdistill.data.mixing",
    "write_report": "clipdistill.evidence.report",
}
#: Names that would say too little outside of their module.
_NAMED_THERE = {"load_model": "load", "export_model": "export", "sync_index": "sync"}
__all__ = [
    "EmbeddingStore",
    "Filter",
    "Index",
    "InteractionGraph",
    "Losses",
    "Options",
    "Query",
    "Recipe",
    "Sample",
    "Searcher",
    "Tasks",
    "__version__",
    "build_index",
    "convert",
    "distill",
    "embed",
    "evaluate",
    "export_model",
    "export_store",
    "import_store",
    "load_model",
    "load_run",
    "make_run",
    "pairs",
    "save_chinese_clip",
    "save_open_clip",
    "sync_index",
    "write_mix",
    "write_report",
]

if TYPE_CHECKING:
    from clipdistill.algebra.graph import InteractionGraph, Losses
    from clipdistill.algebra.recipe import Recipe
    from clipdistill.config import load_run, make_run
    from clipdistill.data.convert import convert
    from clipdistill.data.mixing import write_mix
    from clipdistill.data.samples import Sample
    from clipdistill.data.sources import pairs
    from clipdistill.evaluation.evaluate import Tasks, evaluate
    from clipdistill.evidence.report import write_report
    from clipdistill.export.onnx import export as export_model
    from clipdistill.models.chinese_clip import save_chinese_clip
    from clipdistill.models.loading import load as load_model
    from clipdistill.models.open_clip_layout import save_open_clip
    from clipdistill.search.build import build_index
    from clipdistill.search.filters import Filter
    from clipdistill.search.index import Index
    from clipdistill.search.query import Options, Query
    from clipdistill.search.searcher import Searcher
    from clipdistill.search.sync import sync as sync_index
    from clipdistill.teachers.embed import embed
    from clipdistill.teachers.foreign import import_store
    from clipdistill.teachers.foreign.export import export_store
    from clipdistill.teachers.store import EmbeddingStore
    from clipdistill.training.stages import distill


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clipdistill' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(_HOMES[name]), _NAMED_THERE.get(name, name))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("clipdistill"):
            raise
        from clipdistill.errors import ConfigError

        raise ConfigError(
            f"clipdistill.{name} needs the package '{error.name}'. Install it with: pip install 'clipdistill[train]'"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
