"""TensorBoard: event files in ``OUT/tensorboard``, to look at with ``tensorboard --logdir``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE, EXTRA = "tensorboard", "track"
REWINDS = True
HELP = "Make the run folder writable."
FOLDER = "tensorboard"


class Events:
    """Scalars in an event file; each is flushed, as the lines of ``log.jsonl`` are."""

    run = FOLDER

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write one scalar for each number."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def close(self, finished: bool) -> None:
        """Close the file; an event file has no word for how a run ended."""
        self._writer.close()


def open(folder: Path, config: Mapping[str, Any], step: int, known: str | None) -> Events:
    """Begin an event file; of a run that is known, TensorBoard forgets what came after ``step``."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(folder / FOLDER, purge_step=None if known is None else step + 1)
    if known is None:
        told = json.dumps(config, indent=2, ensure_ascii=False)
        writer.add_text("config", "".join(f"    {line}\n" for line in told.splitlines()))  # indented: a code block
    return Events(writer)
