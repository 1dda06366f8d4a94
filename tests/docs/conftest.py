"""The working folder that the docs and the notebooks assume, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from desk import make_desk


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, products, signs, a teacher and a student, and the files whose names head the YAML blocks."""
    desk = tmp_path_factory.mktemp("desk")
    make_desk(desk)
    return desk
