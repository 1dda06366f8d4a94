"""The command line: one verb per job, each importing its job when called, so that ``--help`` is instant."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from clipdistill import __version__
from clipdistill.cli import (
    bench,
    completion,
    data,
    doctor,
    evaluation,
    export,
    index,
    init,
    overview,
    push,
    recipes,
    retention,
    search,
    serve,
    store,
    students,
    training,
)
from clipdistill.errors import ClipdistillError, InterruptedRunError
from clipdistill.progress import console

app = typer.Typer(
    help="Turn a large CLIP into a small, fast one, and prove what was kept. "
    "An error is one message; --debug, anywhere on the line, adds the traceback.",
    cls=overview.VerbGroup,
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(training.demo)
app.command()(init.init)
app.command()(training.plan)
app.command()(training.distill)
app.command(name="eval")(evaluation.evaluate)
app.command()(store.embed)
app.command()(evaluation.compare)
app.command()(retention.retention)
app.command(name="chinese-clip", context_settings={"ignore_unknown_options": True})(training.chinese_clip)
app.command()(bench.bench)
app.command()(export.export)
app.command()(doctor.doctor)
app.command()(push.push)
app.command()(students.students)
app.add_typer(index.app, name="index")
app.command()(search.search)
app.command()(serve.serve)
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")
app.add_typer(store.app, name="store")


@app.callback()
def _first(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(f"clipdistill {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(overview.overview(ctx))


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        with completion.whole_words():
            app([word for word in words if word != "--debug"], prog_name="clipdistill")
    except SystemExit as ending:
        if ending.code == 130:  # how typer ends after Ctrl-C, without a word
            console.print("stopped")
        return ending.code if isinstance(ending.code, int) else 1
    except Exception as error:  # the last stop: whatever happens, the user sees one message
        return _explain(error, debug)
    return 0


def _explain(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if isinstance(error, OSError) and error.filename and error.strerror:
        console.print(f"error: {_about_file(error)}", markup=False)
    elif isinstance(error, (ClipdistillError, OSError)):
        console.print(f"error: {error}", markup=False)
    elif isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("clipdistill"):
        hint = "Install it with: pip install 'clipdistill[train]'"
        console.print(f"error: this needs the package '{error.name}'. {hint}", markup=False)
    else:
        hint = "" if debug else " Run again with --debug for the traceback, and report it."
        console.print(f"internal error: {type(error).__name__}: {error}.{hint}", markup=False)
    return 130 if isinstance(error, InterruptedRunError) else 1


def _about_file(error: OSError) -> str:
    """What the system refused, and what to do about it."""
    path = Path(str(error.filename))
    if isinstance(error, FileNotFoundError):
        missing = next((folder for folder in reversed(path.parents) if not folder.exists()), None)
        found = (
            f"there is no folder {missing}. Make it, or name" if missing else "there is no such file or folder. Name"
        )
        return f"{path}: {found} another."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder, where a file is expected. Name a file."
    if isinstance(error, NotADirectoryError):
        return f"{path} is a file, or in one, where a folder is expected. Name a folder."
    if isinstance(error, PermissionError):
        return f"{path}: this user may not read or write there. Change its permissions, or name another place."
    return f"{path} cannot be read or written: {error.strerror}."
