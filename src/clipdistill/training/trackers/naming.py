"""What a run is called in a tracker."""

from __future__ import annotations

from pathlib import Path

#: The project, or experiment, that runs are filed under unless the library's own environment names another.
PROJECT = "clipdistill"


def title(folder: Path) -> str:
    """The run folder's last two parts, ``runs/first``: the last alone is ``stage-1`` in every run with stages."""
    return "/".join(folder.absolute().parts[-2:])
