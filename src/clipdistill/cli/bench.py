"""The verb that measures speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="precision, transform, store, step, loss, embed-kd; all without a name.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the ratios and all that was measured here.")
    ] = None,
) -> None:
    """Measure the program's claims about speed on this machine, as ratios of two ways timed in turn."""
    from clipdistill.bench.suite import run

    run(names or [], file, lambda text: print(text, flush=True))
