"""The verb that gives a model away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipdistill.progress import console


def push(
    folder: Annotated[Path, typer.Argument(help="A student's folder, or one that clipdistill export wrote.")],
    repository: Annotated[str, typer.Argument(metavar="REPO_ID", help="owner/name on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to, made if it is not there.")] = None,
) -> None:
    """Examine a model, tell its licences, and upload it to the hub; log in before with: hf auth login."""
    from clipdistill.export.push import push as job

    address = job(folder, repository, lambda line: console.print(line, markup=False), private, revision)
    console.print(f"pushed: {address}", markup=False)
