"""Shared by the tests of layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path


def left_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def make_square(make_model: Callable[[str], Path]) -> Path:
    """A small CLIP whose pictures are cut to the size they are resized to, as those of all published ones are."""
    model = make_model("clip")
    path = model / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": {"shortest_edge": 32}}))
    return model
