"""Shared by all tests: one thread each, because the tests run side by side; and a torchvision that can be imported."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

# No torchvision is built for the CPU torch that the tests use: its operators are not there, and without two of their
# names open_clip and timm cannot be imported. transformers is to go without, as it does on such a machine; so are the
# processes that tests start.
importlib.import_module("clipdistill.models.loading")
_OPERATORS = torch.library.Library("torchvision", "DEF")
for _schema in ("nms(Tensor dets, Tensor scores, float iou) -> Tensor", "qnms(Tensor d, Tensor s, float i) -> Tensor"):
    _OPERATORS.define(_schema)
sys.modules.pop("torchvision", None)

# Processes that tests fork come out of one that has imported everything and computed nothing: each on its own would
# import torch for longer than it does anything.
multiprocessing.set_forkserver_preload(["clipdistill.training.loop"])

from exported_clip import exported, graphs_once  # noqa: E402  # fixtures

__all__ = ["exported", "graphs_once"]

#: What takes longest starts first: else one process would be left with it while the other has nothing more to do.
_LONG = (
    "test_several_processes.py",
    "test_docs.py",
    "test_notebooks.py",
    "test_embed.py",
    "test_workers.py",
    "test_store_damage.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files in front; the order of everything else stays."""
    items.sort(key=lambda item: item.path.name not in _LONG)
