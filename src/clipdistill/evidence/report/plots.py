"""Small charts as inline SVG. No names are drawn in them, only numbers: the page writes names, in any script."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipdistill.errors import need

#: Line patterns in points, on and off, one after the other: colour never has to tell models apart alone.
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 1.5, 1.5, 1.5), (9, 2), (3, 3))
COLOURS = 6

_SIZE = (3.4, 2.3)  # inches; an SVG is 72 units to the inch
_MOST_POINTS = 240
_LOG_RATIO = 30.0
_STEPS = (1, 2, 2.5, 5, 10)
# Colours that stand for the page's own, which change with light and dark.
_INK, _RULE = "#010101", "#020202"
_SERIES = tuple(f"#0304{number:02x}" for number in range(COLOURS))
_PAGE_COLOURS = {_INK: "var(--muted)", _RULE: "var(--rule)"} | {
    colour: f"var(--s{number})" for number, colour in enumerate(_SERIES)
}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "axes.axisbelow": True,
    "path.simplify": True,
}
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))

#: Series by number (its colour and pattern): the points' x and y.
Series = Mapping[int, tuple[Sequence[float], Sequence[float]]]
#: Puts marks on the axes of a chart.
Paint = Callable[[Any], None]


@dataclass(frozen=True)
class Chart:
    """A chart with its title; ``svg`` is markup."""

    title: str
    svg: str


def recall_chart(title: str, curves: Mapping[int, Sequence[float]]) -> Chart:
    """Draw recall at k = 1, 2, ... in percent, k on a logarithmic axis, by series number."""
    series = {number: (range(1, len(curve) + 1), curve) for number, curve in curves.items()}
    longest = max(len(curve) for curve in curves.values())
    ticks = [k for k in (1, 2, 5, 10, 20, 50) if k <= longest]
    highest = max(max(curve) for curve in curves.values())
    return Chart(title, _draw(title, _lines(series), "k", ticks=ticks, top=min(103.0, highest * 1.08) or 1.0))


def loss_chart(title: str, curves: Series) -> Chart | None:
    """Draw a loss over steps, by series number; None if no value is finite. Long runs become means of stretches."""
    series = {number: thinned for number, points in curves.items() if (thinned := _thin(*points))[0]}
    if not series:
        return None
    values = [value for _, ys in series.values() for value in ys]
    log = min(values) > 0 and max(values) > _LOG_RATIO * min(values)
    return Chart(title, _draw(title, _lines(series), "step", log=log))


def metric_chart(title: str, curves: Series) -> Chart:
    """Draw a metric in percent over steps, by series number."""
    highest = max(max(values) for _, values in curves.values())
    return Chart(title, _draw(title, _lines(curves), "step", top=min(103.0, highest * 1.08) or 1.0))


def scatter_chart(title: str, dots: Mapping[int, tuple[float, float]], label: str) -> Chart:
    """Draw one point per model at (x, y), with its number beside it; ``label`` says what x is."""

    def paint(axes: Any) -> None:
        for number, (x, y) in dots.items():
            axes.plot([x], [y], "o", color=_SERIES[number % COLOURS], markersize=4)
            axes.annotate(str(number), (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8)
        axes.margins(0.12)

    return Chart(title, _draw(title, paint, label, whole=False))


def forecast_chart(
    title: str, points: Sequence[tuple[float, float]], band: Mapping[float, tuple[float, float, float]], label: str
) -> Chart:
    """Draw points (size, percent) and what is forecast by size, as (low, mean, high); sizes are logarithmic."""

    def paint(axes: Any) -> None:
        lows, means, highs = zip(*band.values(), strict=True)
        axes.fill_between(list(band), lows, highs, color=_SERIES[1], alpha=0.25, linewidth=0)
        axes.plot(list(band), means, color=_SERIES[1], linewidth=1.6)
        axes.plot(*zip(*points, strict=True), "o", color=_SERIES[0], markersize=3)

    first, last = min(band), max(band)
    ticks = [round(size) for size in (first, (first * last) ** 0.5, last)]
    top = min(103.0, max(high for _, _, high in band.values()) * 1.08) or 1.0
    return Chart(title, _draw(title, paint, label, ticks=ticks, top=top))


def _lines(series: Series) -> Paint:
    def paint(axes: Any) -> None:
        for number, (xs, ys) in series.items():
            dashes = DASHES[(number + number // COLOURS) % len(DASHES)]
            style: Any = (0, dashes) if dashes else "-"
            axes.plot(xs, ys, color=_SERIES[number % COLOURS], linestyle=style, linewidth=1.6)

    return paint


def _draw(
    name: str,
    paint: Paint,
    label: str,
    ticks: Sequence[int] = (),
    top: float | None = None,
    log: bool = False,
    whole: bool = True,
) -> str:
    """Draw what ``paint`` puts on the axes; ``whole`` keeps the ticks of x to whole numbers."""
    matplotlib = need("matplotlib", "train")
    need("matplotlib.backends.backend_svg", "train")
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = need("matplotlib.figure", "train").Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        paint(axes)
        axes.set_xlabel(label)
        _scale_x(axes, ticks, whole)
        _scale_y(axes, top, log)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=_METADATA)
    return _inline(file.getvalue())


def _scale_x(axes: Any, ticks: Sequence[int], whole: bool) -> None:
    if ticks:
        axes.set_xscale("log")
        axes.set_xticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
    else:
        ticker = need("matplotlib.ticker", "train")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=_STEPS, integer=whole))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(_plain))


def _scale_y(axes: Any, top: float | None, log: bool) -> None:
    ticker = need("matplotlib.ticker", "train")
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 3.0), numticks=7))
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=_STEPS))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(_plain))
    if top is not None:
        axes.set_ylim(0, top)


def _plain(value: float, place: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def _thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """Leave out what is not finite; of more points than a chart can show, take the means of equal stretches."""
    kept = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
    if not kept:
        return [], []
    parts = np.array_split(np.array(kept, np.float64), min(len(kept), _MOST_POINTS))
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0].tolist(), means[:, 1].tolist()


def _inline(svg: str) -> str:
    """Turn an SVG file into an element of the page: its colours, no size of its own, no ids but those referred to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r'^<svg[^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg)
    svg = svg.replace('xlink:href="', 'href="')
    for drawn, colour in _PAGE_COLOURS.items():
        svg = svg.replace(drawn, colour)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
