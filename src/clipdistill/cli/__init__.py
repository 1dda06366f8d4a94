"""The command line: one verb per job, each importing its job when called, so that ``--help`` is instant."""

from __future__ import annotations

import sys
import traceback

import typer

from clipdistill.cli import bench, data, evaluation, export, push, recipes, retention, store, students, training
from clipdistill.errors import ClipdistillError, InterruptedRunError
from clipdistill.progress import console

app = typer.Typer(
    help="Turn a large CLIP into a small, fast one, and prove what was kept. "
    "An error is one message; --debug, anywhere on the line, adds the traceback.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(training.demo)
app.command()(training.plan)
app.command()(training.distill)
app.command(name="eval")(evaluation.evaluate)
app.command()(store.embed)
app.command()(evaluation.compare)
app.command()(retention.retention)
app.command(name="chinese-clip", context_settings={"ignore_unknown_options": True})(training.chinese_clip)
app.command()(bench.bench)
app.command()(export.export)
app.command()(export.doctor)
app.command()(push.push)
app.command()(students.students)
app.add_typer(data.app, name="data")
app.add_typer(recipes.app, name="recipes")
app.add_typer(store.app, name="store")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
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
    if isinstance(error, (ClipdistillError, OSError)):
        console.print(f"error: {error}", markup=False)
    elif isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("clipdistill"):
        hint = "Install it with: pip install 'clipdistill[train]'"
        console.print(f"error: this needs the package '{error.name}'. {hint}", markup=False)
    else:
        hint = "" if debug else " Run again with --debug for the traceback, and report it."
        console.print(f"internal error: {type(error).__name__}: {error}.{hint}", markup=False)
    return 130 if isinstance(error, InterruptedRunError) else 1
