"""The verb that says whether a student may replace its teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from clipdistill.errors import ConfigError
from clipdistill.progress import console


def retention(
    student: Annotated[str, typer.Argument(help="Model folder, hub name, or run folder.")],
    against: Annotated[str, typer.Option(help="The teacher, or whichever model is to be replaced.")],
    out: Annotated[Path, typer.Option(help="Folder for report.html and report.json.")],
    data: Annotated[str | None, typer.Option(help="Measure everything this data URI affords.")] = None,
    retrieval: Annotated[str | None, typer.Option(help="Captioned data for text-image retrieval.")] = None,
    image_retrieval: Annotated[str | None, typer.Option(help="Data whose labels or groups say what matches.")] = None,
    zeroshot: Annotated[str | None, typer.Option(help="Labelled data for zero-shot classes, or a classifier.")] = None,
    widths: Annotated[str | None, typer.Option(help="Also cut rows to these widths, as 128,64; else halves.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Say what a student keeps of its teacher: quality with intervals, the same answers, smaller rows, one index."""
    cuts = None if widths is None else _widths(widths)
    from clipdistill.evidence.report import retention_words as words
    from clipdistill.evidence.retention import retention as job

    found = job(student, against, out, data, retrieval, image_retrieval, zeroshot, cuts)
    if as_json:
        print(json.dumps(words.as_dict(found), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    # Written to a file, a table needs no particular width; on a terminal it has the terminal's.
    results = Console(width=None if Console().is_terminal else 160)
    for sentence in words.verdict(found):
        results.print(sentence, markup=False, highlight=False)
    for table in words.tables(found):
        results.print(table)
    console.print(f"report: {out / 'report.html'}", markup=False)


def _widths(words: str) -> list[int]:
    parts = [part.strip() for part in words.split(",")]
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise ConfigError(
            f"--widths {words}: expected whole numbers with commas between, as 128,64; found {wrong[0]!r}."
        )
    return [int(part) for part in parts]
