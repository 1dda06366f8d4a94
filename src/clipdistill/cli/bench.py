"""The verb that measures speed, and what a run withstands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="precision, transform, store, latency, step, loss, embed-kd, soak; all without a name."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the ratios and all that was measured here.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long the soak kills and resumes runs.")] = 10.0,
    towers: Annotated[
        list[str] | None, typer.Option(help="Whose latency: a preset, clip-l-14, or all; repeat.")
    ] = None,
) -> None:
    """Measure the program's claims about speed on this machine, as ratios of two ways timed in turn.

    The soak measures no speed: it kills runs at random, resumes them, and compares them with one left in peace.
    """
    from clipdistill.bench.suite import run

    run(names or [], file, lambda text: print(text, flush=True), minutes, towers or [])
