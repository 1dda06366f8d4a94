"""The verb search."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipdistill.progress import console

if TYPE_CHECKING:
    from clipdistill.search.query import Answer, Query
    from clipdistill.search.searcher import Searcher

#: How far ``--not`` leads away, beside a query of 1.
_AWAY = 0.5
_WEIGHTED = re.compile(r"(?P<what>.+)\^(?P<weight>-?\d+(\.\d+)?)", re.DOTALL)


def search(
    index: Annotated[Path, typer.Argument(help="A folder that clipdistill index wrote.")],
    text: Annotated[list[str] | None, typer.Argument(help="What to search for; dogs^2 counts twice.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="A picture to search for.")] = None,
    like: Annotated[list[str] | None, typer.Option(help="The id of a picture of the index: more like it.")] = None,
    away: Annotated[list[str] | None, typer.Option("--not", help="A text to lead away from, with weight 0.5.")] = None,
    where: Annotated[str | None, typer.Option(help="A filter, as: tags has beach and width >= 1024")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=10_000, help="Number of hits.")] = 10,
    min_precision: Annotated[
        float | None, typer.Option(help="Only hits that are a match with this probability, as 0.9.")
    ] = None,
    distinct: Annotated[bool, typer.Option("--distinct", help="Leave out copies of a better hit.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare every row, not through the approximate index.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(help="The model, if it has moved; or a student that learnt its rows.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Open the hits in the browser.")] = False,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Thumbnails, in a terminal that shows them.")
    ] = True,
) -> None:
    """Search an index by words, by pictures, or by both.

    For instance: clipdistill search photos.index "two dogs on a beach" --not night --where "width >= 1024"
    """
    from clipdistill.search.filters import Filter
    from clipdistill.search.query import Options
    from clipdistill.search.searcher import Searcher

    query = _query(text or [], image or [], like or [], away or [])
    options = Options(k, Filter.parse(where) if where else None, min_precision, distinct, exact)
    searcher = Searcher.open(index, model)
    answer = searcher.search(query, options)
    if as_json:
        print(json.dumps(asdict(answer), ensure_ascii=False))
    else:
        _print(answer)
        _show_in_terminal(searcher, answer, pictures)
    if show:
        _open_page(searcher, answer, " ".join([*(text or []), *(image or []), *(like or [])]))


def _query(texts: list[str], images: list[str], like: list[str], away: list[str]) -> Query:
    from clipdistill.search.query import Query

    sides: dict[str, float] = {}
    for one, weight in [*map(_weigh, texts), *((one, -_AWAY * weight) for one, weight in map(_weigh, away))]:
        sides[one] = sides.get(one, 0.0) + weight
    pictures = tuple((Path(one), weight) for one, weight in map(_weigh, images))
    return Query(sides, pictures, dict(map(_weigh, like)))


def _weigh(word: str) -> tuple[str, float]:
    """Read ``dogs^2`` as dogs with weight 2; a word without has weight 1."""
    found = _WEIGHTED.fullmatch(word)
    return (found["what"], float(found["weight"])) if found else (word, 1.0)


def _print(answer: Answer) -> None:
    """Print the table; written to a file it needs no particular width, on a terminal it has the terminal's."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    results = Console(width=None if Console().is_terminal else 160)
    table = Table(box=None, pad_edge=False)
    for name in ("", "score", "probability"):
        table.add_column(name, justify="right")
    table.add_column("id", overflow="fold")
    table.add_column("caption")
    for rank, hit in enumerate(answer.hits, start=1):
        likely = "" if hit.probability is None else f"{hit.probability:.2f}"
        # Words of an index are no markup, and no commands to the terminal.
        words = [Text(_printable(word)) for word in (hit.id, hit.caption)]
        table.add_row(str(rank), f"{hit.score:.3f}", likely, *words)
    if answer.hits:
        results.print(table)
    if answer.nothing_matches:
        results.print(f"nothing matches: {answer.nothing_matches}", markup=False, highlight=False)
    console.print(f"{len(answer.hits)} hits in {answer.seconds * 1000:.1f} ms; {answer.calibrated}", markup=False)


def _printable(word: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in word)


def _show_in_terminal(searcher: Searcher, answer: Answer, wanted: bool) -> None:
    """Show thumbnails side by side, as many as fit."""
    from clipdistill.cli.thumbnails import HIGH, WIDE, inline_for

    inline = inline_for(os.environ) if wanted and sys.stdout.isatty() else None
    if inline is None:
        return
    places = os.get_terminal_size(sys.stdout.fileno()).columns // (WIDE + 1)
    shown = [jpeg for hit in answer.hits[:places] if (jpeg := searcher.index.thumbnail(hit.id))]
    if shown:
        up = f"\033[{HIGH - 1}A"  # a picture leaves the cursor in its last line
        print("\n" * (HIGH - 1) + up + f"{up} ".join(map(inline, shown)), flush=True)


def _open_page(searcher: Searcher, answer: Answer, title: str) -> None:
    """Write the hits as a page, for their owner alone to read, and open it; print where it is if nothing opens."""
    from clipdistill.cli.thumbnails import page_of

    page = page_of(title, answer, [searcher.index.thumbnail(hit.id) for hit in answer.hits])
    with tempfile.NamedTemporaryFile(
        "w", prefix="clipdistill-", suffix=".html", delete=False, encoding="utf-8"
    ) as file:
        file.write(page)
    opened = webbrowser.open(Path(file.name).as_uri())
    console.print(f"{'opened' if opened else 'no browser was found; open'} {file.name}", markup=False)
