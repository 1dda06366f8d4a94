"""What tests of data elsewhere start from: a real server, and a cache of its own for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clipdistill.data import remote
from shard_server import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of copies; what fails is tried again at once."""
    monkeypatch.setenv("CLIPDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSES", (0.01, 0.02))
    return tmp_path / "cache"
