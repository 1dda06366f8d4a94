"""What a benchmark found: ratios, everything measured, and the text a terminal shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clipdistill.bench.versus import Verdict


@dataclass(frozen=True)
class Result:
    """``ratios`` by name, above 1 where the way of this program is ahead; ``measured`` is plain data for JSON."""

    ratios: dict[str, float]
    measured: dict[str, Any]
    text: str


def of_verdicts(verdicts: Mapping[str, Verdict]) -> Result:
    """The result of a benchmark that is nothing but comparisons."""
    return Result(
        {name: verdict.ratio for name, verdict in verdicts.items()},
        {name: asdict(verdict) for name, verdict in verdicts.items()},
        "\n".join(map(str, verdicts.values())),
    )


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows of equally many cells: the first column on the left, figures on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
