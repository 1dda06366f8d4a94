"""The outcome of a grid: per metric and cell the mean, its spread, the difference to the baseline, the gap closed."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipdistill.evidence.claims import Judged
from clipdistill.evidence.grid_runs import Draw
from clipdistill.evidence.laws import Forecast
from clipdistill.evidence.measure import Measured
from clipdistill.evidence.pairing import difference
from clipdistill.evidence.report.claims_page import claims_as_dicts
from clipdistill.evidence.report.comparison import points
from clipdistill.evidence.report.forecast_page import forecasts_as_dicts
from clipdistill.evidence.report.results import plain
from clipdistill.evidence.statistics import Difference, Spread, spread


@dataclass(frozen=True)
class Trial:
    """One finished run: what its student measured, the seconds its training took, its metrics by step."""

    measured: Measured
    seconds: float | None = None
    curve: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Every figure of the run by name, as the CSV calls them."""
        extra = {f"feature_cosine_{side}": value for side, value in self.measured.cosines.items()}
        seconds = {} if self.seconds is None else {"train_seconds": self.seconds}
        return {**self.measured.metrics, **extra, **seconds, **costs(self.measured)}


def costs(measured: Measured) -> dict[str, float]:
    """Parameters and latencies of a model, by the names that the CSV and claims have for them."""
    sizes = {"params": measured.params, "image_params": measured.image_params, "text_params": measured.text_params}
    return {**sizes, **measured.latency}


@dataclass(frozen=True)
class Line:
    """One cell under one metric. ``closed`` is the percentage of the gap between baseline and teacher."""

    number: int
    cell: str
    spread: Spread
    difference: Difference | None
    closed: float | None
    best: bool
    seconds: float | None


@dataclass(frozen=True)
class Outcome:
    """All trials by cell and seeds; ``headline`` are the metrics told first.

    ``teachers`` are what students should become: those that the grid trained, for each of their seeds where they have
    several, or was given, by name. ``taught`` names the one of each cell, which is none of them where only its rows are
    there. ``claims`` were held against the trials, ``forecasts`` made from them.
    """

    trials: dict[str, dict[Draw, Trial]]
    baseline: str
    headline: tuple[str, ...]
    teachers: Mapping[str, Mapping[int | None, Measured]] = field(default_factory=dict)
    taught: Mapping[str, str] = field(default_factory=dict)
    claims: tuple[Judged, ...] = ()
    forecasts: tuple[Forecast, ...] = ()

    def top(self, cell: str, metric: str) -> float | None:
        """What the teacher of a cell reaches."""
        return self.reached(metric).get(self.taught.get(cell, ""))

    def reached(self, metric: str) -> dict[str, float]:
        """What the teachers reach that have the metric, by name: means over their seeds."""
        found = {name: [one.metrics.get(metric) for one in own.values()] for name, own in self.teachers.items()}
        known = {name: [value for value in values if value is not None] for name, values in found.items()}
        return {name: spread(values).mean for name, values in known.items() if values}

    def teacher_figures(self, name: str, figure: str) -> dict[int | None, float]:
        """One figure of the teacher of that name by its seed."""
        found = {seed: {**one.metrics, **costs(one)}.get(figure) for seed, one in self.teachers[name].items()}
        return {seed: value for seed, value in found.items() if value is not None}

    @property
    def teacher_seeds(self) -> list[int]:
        """The seeds of the teachers, where the grid trained them from several."""
        return sorted({seed for own in self.teachers.values() for seed in own if seed is not None})

    def by_teacher(self, metric: str) -> dict[str, list[float]]:
        """What teachers reach, and the means of cells, for each of ``teacher_seeds``."""
        seeds = self.teacher_seeds
        reached = {name: [own[seed].metrics.get(metric) for seed in seeds] for name, own in self.teachers.items()}
        means = {cell: [self.mean(cell, metric, seed) for seed in seeds] for cell in self.trials}
        known = {name: [value for value in row if value is not None] for name, row in {**reached, **means}.items()}
        return {name: row for name, row in known.items() if row and len(row) == len(seeds)}

    @property
    def metrics(self) -> list[str]:
        """Every metric that was measured, in order."""
        runs = (trial for own in self.trials.values() for trial in own.values())
        return list(dict.fromkeys(metric for trial in runs for metric in trial.measured.metrics))

    def figures(self, cell: str, name: str) -> dict[Draw, float]:
        """One figure of a cell by seeds."""
        found = {draw: trial.figures().get(name) for draw, trial in self.trials[cell].items()}
        return {draw: value for draw, value in found.items() if value is not None}

    def mean(self, cell: str, name: str, teacher: int | None = None) -> float | None:
        """The mean of a figure over a cell's runs, all or those with the teacher of one seed, or with none."""
        found = self.figures(cell, name).items()
        values = [value for draw, value in found if teacher is None or draw.teacher in (None, teacher)]
        return spread(values).mean if values else None

    def lines(self, metric: str) -> list[Line]:
        """One line per cell that has the metric; the best mean is marked as far as shown digits go."""
        base = self.figures(self.baseline, metric)
        cells = {cell: values for cell in self.trials if (values := self.figures(cell, metric))}
        means = {cell: spread(list(values.values())) for cell, values in cells.items()}
        best = points(max((found.mean for found in means.values()), default=None))
        return [
            Line(
                number=number,
                cell=cell,
                spread=means[cell],
                difference=None if cell == self.baseline else difference(cells[cell].items(), base.items()),
                closed=self._closed(cell, metric),
                best=len(means) > 1 and points(means[cell].mean) == best,
                seconds=self.mean(cell, "train_seconds"),
            )
            for number, cell in enumerate(self.trials, 1)
            if cell in cells
        ]

    def _closed(self, cell: str, metric: str) -> float | None:
        top = self.top(cell, metric)
        base, own = self.mean(self.baseline, metric), self.mean(cell, metric)
        if cell == self.baseline or top is None or base is None or own is None or top <= base:
            return None
        return 100 * (own - base) / (top - base)

    def curves(self, metric: str) -> dict[int, tuple[list[float], list[float]]]:
        """Steps and means over seeds of a metric logged in training, by the cell's number."""
        return {
            number: (steps, values)
            for number, own in enumerate(self.trials.values(), 1)
            for steps, values in [_mean_curve(list(own.values()), metric)]
            if steps
        }


def as_csv(outcome: Outcome) -> str:
    """Return every figure on a line of its own: cell, teacher's seed, seed, metric, value.

    A teacher has no seed but its own, which is told where there are several.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("cell", "teacher_seed", "seed", "metric", "value"))
    for name, own in outcome.teachers.items():
        for teacher, one in own.items():
            writer.writerows((name, teacher, "", metric, round(value, 4)) for metric, value in one.metrics.items())
    for cell, trials in outcome.trials.items():
        for draw, trial in sorted(trials.items()):
            told = (cell, draw.teacher, draw.seed)
            writer.writerows((*told, name, round(value, 4)) for name, value in trial.figures().items())
    return file.getvalue()


def as_models(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as reports have it: ``{"models": {cell: {"metrics": means, "spread", "seeds", ...}}}``."""
    teachers = {name: _about(list(own.values())) for name, own in outcome.teachers.items()}
    lines = {metric: {line.cell: line for line in outcome.lines(metric)} for metric in outcome.metrics}
    models = {
        cell: _model(outcome, cell, {m: own[cell] for m, own in lines.items() if cell in own})
        for cell in outcome.trials
    }
    claims = {"claims": claims_as_dicts(outcome.claims)} if outcome.claims else {}
    forecast = {"forecast": forecasts_as_dicts(outcome.forecasts)} if outcome.forecasts else {}
    return {"models": plain({**teachers, **models}), "baseline": outcome.baseline, **claims, **forecast}


def _model(outcome: Outcome, cell: str, lines: Mapping[str, Line]) -> dict[str, Any]:
    trials = outcome.trials[cell]
    differences = {
        metric: {"mean": _rounded(found.mean), "low": _rounded(found.low), "high": _rounded(found.high)}
        for metric, line in lines.items()
        if (found := line.difference)
    }
    return {
        **_about([trial.measured for trial in trials.values()]),
        "spread": {metric: _rounded(line.spread.sd) for metric, line in lines.items()},
        "seeds": sorted({draw.seed for draw in trials}),
        **({"teacher_seeds": known} if (known := sorted({t for _, t in trials if t is not None})) else {}),
        "differences": differences,
        "gap_closed": {metric: _rounded(line.closed) for metric, line in lines.items() if line.closed is not None},
        "train_seconds": _rounded(outcome.mean(cell, "train_seconds")),
    }


def _about(found: Sequence[Measured]) -> dict[str, Any]:
    """What models of one cell have in common, and the means of what they measured."""
    first = found[0]
    return {
        "params": first.params,
        "image_params": first.image_params,
        "text_params": first.text_params,
        "uri": first.uri,
        "metrics": _means(found, lambda one: one.metrics),
        "latency": _means(found, lambda one: one.latency),
        "feature_cosines": _means(found, lambda one: one.cosines),
    }


def _means(found: Sequence[Measured], part: Callable[[Measured], Mapping[str, float]]) -> dict[str, float | None]:
    names = dict.fromkeys(name for one in found for name in part(one))
    return {name: _rounded(spread([part(one)[name] for one in found if name in part(one)]).mean) for name in names}


def _mean_curve(trials: Sequence[Trial], metric: str) -> tuple[list[float], list[float]]:
    """The mean over the trials at each step that all of them logged."""
    logged = [{step: found[metric] for step, found in trial.curve.items() if metric in found} for trial in trials]
    steps = sorted(set.intersection(*map(set, logged)))
    return [float(step) for step in steps], [spread([one[step] for one in logged]).mean for step in steps]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
