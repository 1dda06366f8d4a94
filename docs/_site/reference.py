"""The pages of the site that are made and not written: every command, every public name, the changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

import clipdistill
from clipdistill.cli import app

ROOT = Path(__file__).parents[2]


def on_files(files: Files, config: Any) -> Files:
    """Add the made pages."""
    made = {"reference/cli.md": commands(), "reference/python.md": names(), "changes.md": changes()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Drop the roles of docstrings, as in :class:`Recipe`, which Markdown does not know."""
    return re.sub(r":(?:class|func|meth|mod|data|attr):(?=<code>|<a )", "", html)


def commands() -> str:
    """Every verb with its arguments and options, as ``--help`` tells them."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="clipdistill")
    return get_docs_for_click(obj=command, ctx=context, name="clipdistill", title="Commands")


def names() -> str:
    """Every public name of the package; mkdocstrings reads the rest from the source, without importing it."""
    homes, there = clipdistill._HOMES, clipdistill._NAMED_THERE
    lines = ["# Python\n\n`import clipdistill` is quick: each of these names is loaded when it is first used.\n"]
    for name, home in sorted(homes.items(), key=lambda pair: pair[0].lower()):
        lines.append(f"::: {home}.{there.get(name, name)}\n    options:\n      heading: clipdistill.{name}\n")
    return "\n".join(lines)


def changes() -> str:
    """The changelog."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
