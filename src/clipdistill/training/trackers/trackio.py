"""trackio: a local database under TRACKIO_DIR, to look at with ``trackio show``, or a Space or server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdistill.errors import need
from clipdistill.training.trackers.naming import PROJECT, title

PACKAGE, EXTRA = "trackio", "trackio"
REWINDS = False
HELP = "It writes to TRACKIO_DIR; TRACKIO_SPACE_ID or TRACKIO_SERVER_URL with TRACKIO_WRITE_TOKEN send it elsewhere."


class Run:
    """An open run."""

    def __init__(self, package: Any, run: Any) -> None:
        self._package, self._run = package, run
        self.run: str = run.name

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Queue a row, which a thread writes twice a second: what is in the queue of a killed process is lost."""
        self._run.log(dict(numbers), step=step)

    def close(self, finished: bool) -> None:
        """Wait until the queue is written; trackio has no word for how a run ended."""
        self._package.finish()  # the run's own would be followed by another one when the process ends


def open(folder: Path, config: Mapping[str, Any], step: int, known: str | None) -> Run:
    """Begin a run, or go on with the one that is known: by its name, which is therefore like no other."""
    package = need(PACKAGE, EXTRA)
    run = package.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=known or f"{title(folder)} {uuid.uuid4().hex[:6]}",
        resume="allow" if known else "never",
        config=dict(config),
        embed=False,
    )
    return Run(package, run)
