"""What the runs say of claims: as plain data, CSV, Markdown, a table for the terminal, and words for the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from clipdistill.evidence.claims import HOLDS, NOISE, Found, Judged
from clipdistill.evidence.report import comparison
from clipdistill.evidence.report.comparison import change, short_count
from clipdistill.evidence.report.terminal import ascii_signs

_HEAD = ("claim", "says", "source", "verdict", "expected", "figure", "difference", "low", "high", "evidence", "of it")
_COST_NAMES = {
    "train_seconds": "training, s",
    "params": "parameters",
    "image_params": "parameters, image tower",
    "text_params": "parameters, text tower",
    "image_ms": "picture, ms",
    "text_ms": "caption, ms",
    "feature_cosine_image": "cosine of pictures",
    "feature_cosine_text": "cosine of captions",
}
_STYLES = {HOLDS: "bold", NOISE: "dim"}


def claims_as_dicts(claims: Sequence[Judged]) -> list[dict[str, Any]]:
    """Return the claims as report.json has them: with all figures, and a verdict on each expectation and the whole."""
    return [
        {
            "claim": one.claim.name,
            "says": one.claim.says,
            "source": one.claim.source,
            "verdict": one.verdict,
            "found": [_as_dict(found) for found in one.found],
        }
        for one in claims
    ]


def claims_csv(claims: Sequence[Judged]) -> str:
    """Return a line for each expectation; ``verdict`` is the claim's, ``of it`` the expectation's own."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_HEAD)
    for one in claims:
        for found in one.found:
            said = _as_dict(found)
            figures = ("" if said[key] is None else said[key] for key in ("difference", "low", "high"))
            about = (one.claim.name, one.claim.says, one.claim.source, one.verdict, found.expected, found.figure)
            writer.writerow((*about, *figures, found.evidence, found.verdict))
    return file.getvalue()


def claims_markdown(claims: Sequence[Judged]) -> str:
    """Return a Markdown table with a row for each claim."""
    lines = ["| claim | says | found | verdict |", "|---|---|---|---|"]
    for one in claims:
        found = "<br>".join(_escaped(f"{part.expected}: {told(part)}") for part in one.found)
        about = (one.claim.name, f"{one.claim.says} ({one.claim.source})")
        lines.append(f"| {' | '.join(map(_escaped, about))} | {found} | {one.verdict} |")
    return "\n".join(lines) + "\n"


def claims_table(claims: Sequence[Judged]) -> Table:
    """Return the claims for the terminal, a row for each expectation."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Claims", title_justify="left")
    for head in ("", "expected", "figure"):
        table.add_column(head)
    for head in ("difference", "95% interval", "of"):
        table.add_column(Text(head), justify="right")
    table.add_column("verdict")
    for one in claims:
        for number, found in enumerate(one.found):
            about = (one.claim.name if number == 0 else "", found.expected, figure_name(found.figure))
            numbers = (amount(found, found.difference.mean), interval(found), found.evidence)
            cells = (Text(ascii_signs(text)) for text in (*about, *numbers))
            table.add_row(*cells, Text(found.verdict, _STYLES.get(found.verdict, "")))
        if len(one.found) > 1:
            table.add_row("", "all of it", "", "", "", "", Text(one.verdict, _STYLES.get(one.verdict, "")))
    return table


def told(found: Found) -> str:
    """Write what was found in words: +4.2 mean recall (+1.0 to +7.4, 3 seeds)."""
    known = interval(found)
    span = f"{known}, {found.evidence}" if known else found.evidence
    return f"{amount(found, found.difference.mean)} {figure_name(found.figure)} ({span})"


def interval(found: Found) -> str:
    """Write the 95% interval; a single seed has none."""
    low, high = found.difference.low, found.difference.high
    return "" if low is None or high is None else f"{amount(found, low)} to {amount(found, high)}"


def amount(found: Found, value: float) -> str:
    """Write a difference of a figure, with its sign, as exactly as that figure deserves."""
    if found.figure.endswith("params"):
        text = ("+" if value > 0 else "-" if value < 0 else "") + short_count(round(abs(value)))
    elif found.figure == "correlation" or found.figure.startswith("feature_cosine"):
        text = f"{value:+.2f}"
    elif found.figure.endswith(("_seconds", "_ms")):
        text = f"{value:+.3g}"
    else:
        text = change(value)
    return text.replace("-", "\N{MINUS SIGN}")


def figure_name(figure: str) -> str:
    """Return a figure's name for people."""
    if figure == "correlation":
        return figure
    return _COST_NAMES.get(figure) or ", ".join(comparison.label(figure))


def _as_dict(found: Found) -> dict[str, Any]:
    numbers = {"difference": found.difference.mean, "low": found.difference.low, "high": found.difference.high}
    rounded = {key: None if value is None else round(value, 4) for key, value in numbers.items()}
    told_of = {"expected": found.expected, "figure": found.figure}
    return {**told_of, **rounded, "evidence": found.evidence, "verdict": found.verdict}


def _escaped(text: str) -> str:
    """Keep a text within its cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("~", "\\~")
