"""A teacher for the runs of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipdistill.training.loop import distill
from tiny_runs import TINY, tiny_run


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of another width, trained for a moment."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    distill(tiny_run(out, student={**TINY, "width": 32, "embed_dim": 24}))
    return out / "student"
