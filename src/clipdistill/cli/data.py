"""Verbs of data: check, convert, mix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

#: What a verb that reads data takes.
SOURCES = "a folder, a table (csv, jsonl, parquet), .tar shards, annotations, hf:org/name or mix.yaml"

app = typer.Typer(help="Look at data before training on them, convert and mix them.", no_args_is_help=True)


@app.command()
def check(
    uri: Annotated[str, typer.Argument(help=f"Pictures, captions or both: {SOURCES}.")],
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


@app.command()
def convert(
    uri: Annotated[str, typer.Argument(help="Anything that training reads.")],
    out: Annotated[Path, typer.Option(help="The folder or parquet file to write.")],
    to: Annotated[str | None, typer.Option(help="folder, shards, chinese-clip or parquet; else by the name.")] = None,
    per_file: Annotated[int, typer.Option(min=1, help="Samples in a shard or parquet file.")] = 10_000,
) -> None:
    """Write data in another layout: ids, pictures, captions, labels and groups come back as they were."""
    from clipdistill.data.convert import convert as run_convert
    from clipdistill.progress import console

    made = run_convert(uri, out, to, per_file)
    for name, reason in made.skipped[:20]:
        console.print(f"skipped {name}: {reason}", markup=False)
    if made.skipped:
        console.print(f"{len(made.skipped)} samples are left out")
    print(made.uri)


@app.command()
def mix(
    parts: Annotated[list[str], typer.Argument(metavar="DATA=WEIGHT...", help="As photos=3 icons=1.")],
    out: Annotated[Path, typer.Option(help="The file to write, mix.yaml.")],
) -> None:
    """Write a file that names several data with the shares that training draws of them; open it as data=mix.yaml."""
    from clipdistill.data.mixing import write_mix

    mixed = write_mix(parts, out)
    print(f"{out}: {len(mixed):,} samples in {len(mixed.parts)} parts")
