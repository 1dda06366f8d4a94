"""Verbs of evidence: eval and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipdistill.errors import ConfigError
from clipdistill.progress import console

if TYPE_CHECKING:
    from rich.table import Table


def evaluate(
    student: Annotated[str, typer.Argument(help="Model folder, hub name, or run folder.")],
    against: Annotated[list[str] | None, typer.Option(help="A model to put beside it; may be repeated.")] = None,
    data: Annotated[str | None, typer.Option(help="Measure everything this data URI affords.")] = None,
    retrieval: Annotated[str | None, typer.Option(help="Captioned data for text-image retrieval.")] = None,
    image_retrieval: Annotated[str | None, typer.Option(help="Data whose labels or groups say what matches.")] = None,
    zeroshot: Annotated[str | None, typer.Option(help="Labelled data for zero-shot classes, or a classifier.")] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="A benchmark and its folder, as flickr30k=photos/flickr30k; repeat.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for report.html, report.json, CLIP_benchmark JSON.")] = None,
    width: Annotated[list[int] | None, typer.Option(help="Also cut the student's rows to this width; repeat.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Evaluate a student beside its teacher and any baseline: retrieval both ways, image to image, zero-shot."""
    names = [student, *(against or [])]
    if suite:
        if data or retrieval or image_retrieval or zeroshot:
            raise ConfigError(
                "--suite names its own data; leave out --data, --retrieval, --image-retrieval, --zeroshot."
            )
        _suites(names, suite, out, width or [], as_json)
        return
    from clipdistill.evidence.finish import compare_models

    evaluations = compare_models(names, data, retrieval, image_retrieval, zeroshot, out, width or [])
    if as_json:
        from clipdistill.evidence.report import as_dict

        print(json.dumps(as_dict(evaluations), indent=2, ensure_ascii=False))
    else:
        from clipdistill.evidence.report import table

        _print(table(evaluations))


def _suites(names: list[str], suites: list[str], out: Path | None, widths: list[int], as_json: bool) -> None:
    from clipdistill.evidence.suites import evaluate_suites, suite_tables, suites_as_dict

    found = evaluate_suites(names, suites, out, widths)
    if as_json:
        print(json.dumps(suites_as_dict(found), indent=2, ensure_ascii=False))
    else:
        _print(*suite_tables(found))


def compare(
    out: Annotated[Path, typer.Option(help="Folder for the runs, report.html, report.json and comparison.csv.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[GRID.yaml | RUN RUN...] [KEY=VALUE]...", help="A grid, or finished runs; then overrides."
        ),
    ] = None,
    recipes: Annotated[str | None, typer.Option(help="Instead of a grid: one cell per recipe, as A,B,C.")] = None,
    grid: Annotated[str | None, typer.Option(help="A grid that ships with the package: conaclip.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds per cell; 3 is 0, 1, 2.")] = None,
    cells: Annotated[str | None, typer.Option(help="Only these cells of the grid, and the baseline: A,B.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs trained at the same time; by default as many as cores and free memory allow."),
    ] = None,
    forecast: Annotated[
        bool, typer.Option("--forecast", help="Say what longer runs or more data would bring.")
    ] = False,
) -> None:
    """Train a grid of runs that differ in one thing, over seeds, and say which differences are more than noise.

    For instance: clipdistill compare --recipes clip,feature,clip-kd --seeds 3 --out compared
    teachers.T=models/teacher data=FOLDER train.epochs=10 evaluate.retrieval=FOLDER
    """
    from clipdistill.evidence import compare as job
    from clipdistill.evidence.grid import choose_grid
    from clipdistill.evidence.report import table

    chosen = choose_grid(words or [], recipes, grid, seeds, cells)
    if chosen is None and forecast:
        raise ConfigError("--forecast belongs to a grid, whose runs differ in length or were evaluated on their way.")
    if chosen is None:
        runs, overrides = [w for w in words or [] if "=" not in w], [w for w in words or [] if "=" in w]
        found = [table(job.compare_runs(runs, overrides, out))]
    else:
        outcome, _ = job.compare(chosen, out, jobs, forecast)
        found = job.tables(outcome)
    _print(*found)
    console.print(f"report: {out / 'report.html'}", markup=False)


def _print(*tables: Table) -> None:
    """Print results; written to a file, a table needs no particular width, on a terminal it has the terminal's."""
    from rich.console import Console

    results = Console(width=None if Console().is_terminal else 160)
    for table in tables:
        results.print(table)
