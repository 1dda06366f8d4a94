"""One line of an examination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """What was found about ``name``, and what to do where it is not ``ok``: a warning, or something missing."""

    status: Literal["ok", "warning", "missing"]
    name: str
    found: str
    todo: str = ""
