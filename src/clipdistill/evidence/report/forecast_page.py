"""What longer runs or more data would bring: as plain data, a table for the terminal, and charts with a band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from clipdistill.evidence.laws import Expected, Forecast
from clipdistill.evidence.report import plots
from clipdistill.evidence.report.comparison import label, points

#: What the sizes of a group count, and what its points are.
SIZES = {"length": "samples seen", "curve": "samples seen", "data": "samples of data"}
POINTS = {"length": "lengths", "curve": "its curve", "data": "amounts of data"}


def forecasts_as_dicts(forecasts: Sequence[Forecast]) -> list[dict[str, Any]]:
    """Return the forecasts as report.json has them."""
    return [
        {
            "cells": list(one.group.sizes),
            "metric": one.metric,
            "sizes": SIZES[one.group.kind],
            "from": POINTS[one.group.kind],
            "points": [[size, round(value, 4)] for size, value in one.points],
            "largest": one.last,
            "ahead": {str(times): _as_dict(found) for times, found in one.ahead.items()},
            "gain_of_2x": _as_dict(one.gain),
            "more_pays": one.pays,
        }
        for one in forecasts
    ]


def forecast_table(forecasts: Sequence[Forecast]) -> Table:
    """Return the forecasts of one metric for the terminal, a row for each group of runs."""
    title = f"Forecast of {metric_of(forecasts[0])}, with 90% intervals"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for head in ("", "from"):
        table.add_column(head)
    for head in ("largest", *(f"{times}x" for times in forecasts[0].ahead)):
        table.add_column(Text(head), justify="right")
    table.add_column("more pays")
    for one in forecasts:
        about = (one.group.name, POINTS[one.group.kind], largest(one))
        table.add_row(*map(Text, (*about, *map(told, one.ahead.values()), one.pays)))
    return table


def charts(forecasts: Sequence[Forecast]) -> list[plots.Chart]:
    """Draw the forecasts of the first metric."""
    return [
        plots.forecast_chart(
            f"{one.group.name}: {metric_of(one)}",
            one.points,
            {size: (found.low, found.mean, found.high) for size, found in one.band.items()},
            SIZES[one.group.kind],
        )
        for one in forecasts
        if one.metric == forecasts[0].metric
    ]


def metric_of(one: Forecast) -> str:
    """The metric's full name."""
    return ", ".join(label(one.metric))


def largest(one: Forecast) -> str:
    """The largest size that was trained: 44,800 samples seen."""
    return f"{one.last:,.0f} {SIZES[one.group.kind]}"


def told(found: Expected) -> str:
    """A forecast with its interval."""
    return f"{points(found.mean)} ({points(found.low)} to {points(found.high)})"


def _as_dict(found: Expected) -> dict[str, float]:
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}
