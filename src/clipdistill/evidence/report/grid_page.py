"""The report of a grid: cells with their means and spreads as rows, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdistill.evidence.outcome import Line, Outcome, as_csv, as_models
from clipdistill.evidence.report import claims_page, comparison, forecast_page, plots
from clipdistill.evidence.report.page import render
from clipdistill.evidence.report.results import plain
from clipdistill.evidence.report.writing import to_json, write_file


@dataclass(frozen=True)
class Bar:
    """A bar in percent of its column's width: its end, the whiskers' ends, and the teacher's place if there is one."""

    end: float
    low: float
    high: float
    teacher: float | None = None


@dataclass(frozen=True)
class Sheet:
    """One metric: its lines, each with its bar, what the teachers have, by name, and all by the teachers' seeds."""

    title: str
    lines: list[tuple[Line, Bar]]
    teachers: dict[str, float]
    by_teacher: dict[str, list[float]]


def write_grid_report(outcome: Outcome, out: Path, title: str, facts: Mapping[str, Any]) -> Path:
    """Write comparison.csv, report.json and report.html into the folder ``out``; return the page.

    With claims also claims.csv and claims.md.
    """
    out.mkdir(parents=True, exist_ok=True)
    if outcome.claims:
        write_file(out / "claims.csv", claims_page.claims_csv(outcome.claims))
        write_file(out / "claims.md", claims_page.claims_markdown(outcome.claims))
    write_file(out / "comparison.csv", as_csv(outcome))
    write_file(out / "report.json", to_json({"title": title, **as_models(outcome), "facts": plain(facts)}))
    write_file(out / "report.html", grid_page(outcome, title, facts))
    return out / "report.html"


def grid_page(outcome: Outcome, title: str, facts: Mapping[str, Any]) -> str:
    """Return the HTML of a grid's report."""
    curves = [
        plots.metric_chart(metric_name(metric), found)
        for metric in outcome.headline
        if (found := outcome.curves(metric))
    ]
    rest = [metric for metric in outcome.metrics if metric not in outcome.headline]
    return render(
        "grid.html.j2",
        title=title,
        names=["", *outcome.trials],
        dashes=plots.DASHES,
        colours=plots.COLOURS,
        baseline=outcome.baseline,
        several=any(len(own) > 1 for own in outcome.trials.values()),
        has_teacher=bool(outcome.teachers),
        teacher_seeds=outcome.teacher_seeds,
        sheets=[_sheet(outcome, metric) for metric in (*outcome.headline, *rest)],
        open_sheets=len(outcome.headline),
        scatters=list(_scatters(outcome)),
        curves=curves,
        curve_cells=sorted({number for metric in outcome.headline for number in outcome.curves(metric)}),
        facts={str(key): str(value) for key, value in facts.items()},
        claims=outcome.claims,
        amount=claims_page.amount,
        interval=claims_page.interval,
        figure_name=claims_page.figure_name,
        forecasts=outcome.forecasts,
        forecast_charts=forecast_page.charts(outcome.forecasts),
        forecast_points=forecast_page.POINTS,
        metric_of=forecast_page.metric_of,
        largest=forecast_page.largest,
        told=forecast_page.told,
    )


def metric_name(metric: str) -> str:
    """Return a metric's full name for people: Text to image, R@1."""
    return ", ".join(comparison.label(metric))


def _sheet(outcome: Outcome, metric: str) -> Sheet:
    lines, teachers = outcome.lines(metric), outcome.reached(metric)
    reach = max([*(line.spread.mean + (line.spread.sd or 0) for line in lines), *teachers.values(), 1e-9])
    bars = [(line, _bar(line, outcome.top(line.cell, metric), 100 / reach)) for line in lines]
    return Sheet(metric_name(metric), bars, teachers, outcome.by_teacher(metric))


def _bar(line: Line, teacher: float | None, zoom: float) -> Bar:
    mean, sd = line.spread.mean, line.spread.sd or 0.0
    place = None if teacher is None else round(teacher * zoom, 2)
    return Bar(round(mean * zoom, 2), round(max(0.0, mean - sd) * zoom, 2), round((mean + sd) * zoom, 2), place)


def _scatters(outcome: Outcome) -> Iterator[plots.Chart]:
    """The first metric against what it costs, and against how alike the student's rows are to the teacher's."""
    metric = outcome.headline[0]
    against: Sequence[tuple[str, str]] = (
        ("train_seconds", "seconds of training"),
        ("feature_cosine_image", "mean cosine of pictures to the teacher's"),
        ("feature_cosine_text", "mean cosine of captions to the teacher's"),
    )
    for name, label in against:
        dots = {
            number: (x, y)
            for number, cell in enumerate(outcome.trials, 1)
            if (x := outcome.mean(cell, name)) is not None and (y := outcome.mean(cell, metric)) is not None
        }
        if dots:
            yield plots.scatter_chart(f"{metric_name(metric)} by {label}", dots, label)
