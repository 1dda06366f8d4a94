"""The table for the terminal: metrics as rows, models as columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from clipdistill.evidence.report.comparison import Row, change, has_trio, points, rows, share, sizes

if TYPE_CHECKING:
    from clipdistill.evaluation.evaluate import Evaluation


def table(evaluations: Sequence[Evaluation]) -> Table:
    """Return the models side by side for the terminal; the best student's values are bold.

    With models named teacher, baseline and distilled, two columns say what distillation gained in points, and which
    share of the gap between baseline and teacher that is; otherwise differences are to the first model.
    """
    trio = has_trio(evaluations)
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("")
    for header in [*(found.name for found in evaluations), *(("gain", "gap closed") if trio else ())]:
        result.add_column(Text(header), justify="right", overflow="fold")
    for size in sizes(evaluations):
        result.add_row(size.label, *map(ascii_signs, size.texts))
    result.add_section()
    for row in rows(evaluations):
        extra = (ascii_signs(change(row.gain)), ascii_signs(share(row.closed))) if trio else ()
        result.add_row(Text(f"{row.group}, {row.label}"), *_cells(row), *extra)
    if len(evaluations) > 1 and not trio:
        result.caption, result.caption_justify = Text(f"Small figures: points above {evaluations[0].name}"), "left"
    return result


def _cells(row: Row) -> list[Text]:
    cells = []
    for value, difference, best in zip(row.values, row.changes, row.best, strict=True):
        cell = Text(ascii_signs(points(value)), style="bold" if best else "")
        if difference is not None:
            cell.append(f"  {ascii_signs(change(difference)):>5}", style="dim not bold")
        cells.append(cell)
    return cells


def ascii_signs(text: str) -> str:
    """Write signs and dashes with the hyphen that every terminal and encoding has."""
    return text.translate({ord("\N{MINUS SIGN}"): "-", ord("–"): "-", ord("\N{NO-BREAK SPACE}"): " "})
