"""Weights & Biases, online or (WANDB_MODE=offline) in ``OUT/wandb`` until ``wandb sync``."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdistill.errors import need
from clipdistill.training.trackers.naming import PROJECT, title

PACKAGE, EXTRA = "wandb", "wandb"
REWINDS = False
HELP = "It takes its key from 'wandb login' or WANDB_API_KEY; WANDB_MODE=offline needs neither key nor network."


class Run:
    """An open run."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self.run: str = run.id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add to a step of the history."""
        self._run.log(dict(numbers), step=step)

    def close(self, finished: bool) -> None:
        """Wait until everything is sent."""
        self._run.finish(exit_code=0 if finished else 1)


def open(folder: Path, config: Mapping[str, Any], step: int, known: str | None) -> Run:
    """Begin a run, or go on with the one that is known."""
    run = need(PACKAGE, EXTRA).init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=os.environ.get("WANDB_NAME", title(folder)),
        dir=os.environ.get("WANDB_DIR", str(folder)),
        id=known or uuid.uuid4().hex[:12],
        resume="allow" if known else None,
        config=dict(config),
    )
    return Run(run)
