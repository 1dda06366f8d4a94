"""The verb that measures speed, and what a run withstands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipdistill.cli import completion


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="precision, transform, store, latency, step, search, loss, embed-kd, search-soak, soak; "
            "all without a name.",
            autocompletion=completion.benchmarks,
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the ratios and all that was measured here.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long a soak goes on, and the loss at most.")] = 10.0,
    towers: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose latency and search: a preset, all, clip-l-14 (latency) or clip-b-16 (search); repeat.",
            autocompletion=completion.presets,
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1000, help="Rows of the index that search asks.")] = 100_000,
) -> None:
    """Measure the program's claims about speed on this machine, as ratios of two ways timed in turn.

    A soak measures no speed: soak kills runs at random, resumes them, and compares them with one left in peace;
    search-soak checks answers of servers while their index changes.
    """
    import signal
    import sys

    from clipdistill.bench.suite import run

    # Asked to end, it ends what it has started too, as it does after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    run(names or [], file, lambda text: print(text, flush=True), minutes, towers or [], rows)
