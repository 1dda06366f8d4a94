"""Verbs of an index: make, sync, check, rebuild, calibrate, import and export."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from clipdistill.cli.data import SOURCES


class SourceFirst(TyperGroup):
    """A group whose first word may be a source: then it is made into an index."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words; ``make`` is meant where none of the commands is said."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            close = get_close_matches(args[0], self.commands, n=1)
            if close and not Path(args[0]).exists():
                ctx.fail(f"there is no command '{args[0]}', and no such folder. Did you mean '{close[0]}'?")
            args = ["make", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=SourceFirst,
    help="Make an index of pictures, and look after it: clipdistill index PHOTOS --model MODEL --out X.index. "
    "A folder that is called like a command is written ./sync.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that clipdistill index wrote.")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that embed, of one thread each; 0 does it in this one.")
]

Engine = Annotated[str | None, typer.Option(help="milvus://HOST:PORT/COLLECTION keeps the rows in a cluster.")]
Width = Annotated[int | None, typer.Option(min=1, help="Search by so many dimensions, and compare the best by all.")]
Model = Annotated[Path, typer.Option(help="A folder that clipdistill export wrote.")]
Out = Annotated[Path, typer.Option(help="Folder for the index.")]


@app.command()
def make(
    source: Annotated[str, typer.Argument(help=f"Pictures: {SOURCES}.")],
    model: Model,
    out: Out,
    engine: Engine = None,
    width: Width = None,
    workers: Workers = None,
) -> None:
    """Embed pictures into an index; the word make can be left out. Stop at any time, and go on with the same command.

    For instance: clipdistill index photos --model exported/student --out photos.index
    """
    from clipdistill.search.build import build_index

    build_index(source, model, out, engine, width, workers).close()


@app.command()
def sync(
    index: Folder,
    workers: Workers = None,
    allow_deletes: Annotated[
        bool, typer.Option("--allow-deletes", help="Go on where more than half of the pictures are gone.")
    ] = False,
) -> None:
    """Read the source again: add what is new, embed what changed, remove what is gone. Searches go on meanwhile."""
    from clipdistill.search.index import Index
    from clipdistill.search.sync import sync as run_sync

    print(run_sync(Index.open(index), workers, allow_deletes))


@app.command()
def check(index: Folder) -> None:
    """Examine rows, thumbnails and recall, and embed some pictures again. Exit status 1 and a list of faults."""
    from clipdistill.search.checking import check as run_check
    from clipdistill.search.index import Index

    opened = Index.open(index)
    findings = run_check(opened)
    for finding in findings:
        print(finding)
    if findings:
        raise typer.Exit(1)
    print(f"{index}: {opened.count:,} pictures, version {opened.version}; nothing is wrong")


@app.command()
def rebuild(
    index: Folder,
    model: Model,
    width: Width = None,
    workers: Workers = None,
) -> None:
    """Embed all pictures with another model, beside what is searched, and go over to that when it is complete."""
    from clipdistill.search.index import Index
    from clipdistill.search.sync import rebuild as run_rebuild

    run_rebuild(Index.open(index), model, width, workers).close()


@app.command()
def calibrate(
    index: Folder,
    labels: Annotated[
        Path | None, typer.Option(help='Judged hits, lines of {"query": text, "id": ..., "match": 0 or 1}.')
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="The model that asks: if it has moved, or a student that learnt its rows.")
    ] = None,
) -> None:
    """Learn anew what scores mean in an index: from labels, or else from its captions and tags."""
    from clipdistill.search.corpus_calibration import recalibrate, told

    for line in told(recalibrate(index, labels, model)):
        print(line)


@app.command(name="import")
def import_rows(
    rows: Annotated[Path, typer.Argument(help="A store, a clip-retrieval folder, or an array with its table.")],
    model: Annotated[Path, typer.Option(help="The exported folder of the model that made the rows.")],
    out: Out,
    engine: Engine = None,
    width: Width = None,
    data: Annotated[
        str | None, typer.Option(help="The pictures that were embedded: for ids, captions, thumbnails, and a sync.")
    ] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="The column of ids.")] = None,
    unchecked: Annotated[bool, typer.Option("--unchecked", help="Take it on trust that the model made them.")] = False,
) -> None:
    """Make an index of pictures that were embedded before, without embedding them again.

    For instance: clipdistill index import stores/student --model exported/student --out photos.index
    """
    from clipdistill.coming_from.index import import_index

    import_index(rows, model, out, engine, width, data, id_column, unchecked).close()


@app.command(name="export")
def export_rows(index: Folder, out: Annotated[Path, typer.Option(help="Folder to write.")]) -> None:
    """Write an index as img_emb/*.npy and metadata/*.parquet, which clip-retrieval and pandas read."""
    from clipdistill.search.exporting import export_index

    print(f"{out}: {export_index(index, out):,} rows")
