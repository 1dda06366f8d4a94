"""Verbs of data: check."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Look at data before training on them.", no_args_is_help=True)


@app.command()
def check(
    uri: Annotated[str, typer.Argument(help="A folder, a CSV, TSV, JSONL or parquet file, or scenes:...")],
    against: Annotated[str | None, typer.Option(help="Data that must not share pictures with it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Read every picture and caption; list what is broken, empty, repeated or leaked. Exit status 1 on errors."""
    from clipdistill.data.check import check as run_check
    from clipdistill.data.check import render
    from clipdistill.data.sources import pairs
    from clipdistill.progress import progress

    source, other = pairs(uri), pairs(against) if against else None
    with progress(f"checking {uri}", len(source) + len(other or ()), "pictures") as advance:
        report = run_check(source, other, lambda done, total: advance(done, ""))
    print(report.to_json() if as_json else render(report))
    if report.errors:
        raise typer.Exit(1)
