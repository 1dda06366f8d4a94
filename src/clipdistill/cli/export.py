"""The verb that exports models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipdistill.errors import ConfigError
from clipdistill.progress import console

if TYPE_CHECKING:
    from clipdistill.export.gate import Gate


def export(
    student: Annotated[str, typer.Argument(help="Model folder, hub name, or run folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the graphs, tokenizer.json and clipdistill.json.")],
    data: Annotated[
        str | None, typer.Option(help="Compare graphs and model on this data, not on drawn scenes.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="auto: the fastest that passes the gate. Or float32, without a gate, or one of float16, int8, "
            "int8-channel, int8-mixed, openvino-float32, openvino-bfloat16, openvino-int8."
        ),
    ] = "auto",
    max_recall_loss: Annotated[
        float, typer.Option(min=0, help="Points of recall that a faster precision may lose.")
    ] = 0.5,
    layout: Annotated[
        str | None,
        typer.Option(
            help="Write the folder of another library: huggingface, sentence-transformers, open-clip, "
            "transformers.js, immich."
        ),
    ] = None,
) -> None:
    """Write a model as ONNX graphs that run without torch, or in a layout, after comparing them with the model.

    For instance: clipdistill export runs/tiny --out tiny-onnx --data photos/test
    """
    if layout is None:
        from clipdistill.export.onnx import export as job

        exported = job(student, out, data, precision, max_recall_loss)
        parity = exported.parity
        if exported.gate is not None:
            _print_gate(exported.gate)
    else:
        from clipdistill.export.layouts import export_layout

        if (precision, max_recall_loss) != ("auto", 0.5):
            raise ConfigError(
                f"--precision and --max-recall-loss choose what our own folder ships; the layout {layout} holds "
                "float32. Leave them out, or leave out --layout."
            )
        parity = export_layout(student, out, layout, data)
    for side, cosine in (("image", parity.image), ("text", parity.text)):
        if cosine is not None:
            console.print(
                f"{side} {'rows' if layout else 'graph'}: cosine with the model {cosine:.7f} or more", markup=False
            )
    console.print(f"exported: {out}", markup=False)


def _print_gate(gate: Gate) -> None:
    """Print the table; written to a file it needs no particular width, on a terminal it has the terminal's."""
    from rich.console import Console

    from clipdistill.export.gate_table import foot, table

    results = Console(width=None if Console().is_terminal else 160)
    results.print(table(gate))
    for line in foot(gate):
        results.print(line, markup=False, highlight=False)
