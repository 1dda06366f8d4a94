"""Verbs of exported models: export and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipdistill.progress import console


def export(
    student: Annotated[str, typer.Argument(help="Model folder, hub name, or run folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the graphs, tokenizer.json and clipdistill.json.")],
    data: Annotated[
        str | None, typer.Option(help="Compare graphs and model on this data, not on drawn scenes.")
    ] = None,
) -> None:
    """Write a model as ONNX graphs that run without torch, after comparing them with the model.

    For instance: clipdistill export runs/tiny --out tiny-onnx --data photos/test
    """
    from clipdistill.export.onnx import export as job

    parity = job(student, out, data)
    for side, cosine in (("image", parity.image), ("text", parity.text)):
        if cosine is not None:
            console.print(f"{side} graph: cosine with the model {cosine:.7f} or more", markup=False)
    console.print(f"exported: {out}", markup=False)


def doctor(
    folder: Annotated[Path, typer.Argument(help="A folder that clipdistill export wrote.")],
) -> None:
    """Examine an exported model: its files against their checksums, its rows against those that the model gave."""
    from clipdistill.search.golden import check_golden

    findings = check_golden(folder)
    for finding in findings:
        print(finding)
    if findings:
        raise typer.Exit(1)
    console.print(f"{folder}: nothing is wrong", markup=False)
