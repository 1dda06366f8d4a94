"""The program itself, as ``python -m clipdistill`` runs it, which also notes what every batch was made of.

Each process writes a file of its own into the folder ``$CLIPDISTILL_SOAK``: a line for each batch it has computed the
losses of, ``{"batch": number, "ids": [...]}``.
"""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Sequence
from pathlib import Path

from clipdistill.algebra.graph import Losses
from clipdistill.data.batches import Batch
from clipdistill.training.setup import Setup

#: Names the folder, and marks every process of a soak.
FOLDER = "CLIPDISTILL_SOAK"


def main() -> None:
    """Run the command line with the notes added."""
    path = Path(os.environ[FOLDER]) / f"{os.environ.get('RANK', '0')}-{os.getpid()}.jsonl"
    losses = Setup.all_losses

    def noted(self: Setup, batches: Sequence[Batch], number: int) -> Losses:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"batch": number, "ids": batches[0].ids}) + "\n")
        return losses(self, batches, number)

    Setup.all_losses = noted  # type: ignore[method-assign]
    runpy.run_module("clipdistill", run_name="__main__")


if __name__ == "__main__":
    main()
