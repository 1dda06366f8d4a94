"""What longer runs, or more data, would bring: :mod:`clipdistill.evidence.laws` through the runs of a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.parse import parse_qsl, urlencode

import numpy as np

from clipdistill.config import LENGTHS, Plan, RunConfig
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError
from clipdistill.evidence.grid import Grid
from clipdistill.evidence.grid_runs import Draw
from clipdistill.evidence.laws import LEAST_SIZES, Expected, Forecast, Group, Laws, fit
from clipdistill.evidence.outcome import Outcome
from clipdistill.evidence.statistics import t_quantile

#: How many times the largest size is looked ahead to.
AHEAD = (2, 4, 10)
DRAWS = 1000

#: Seeds are drawn so often, to be the sample anew.
_RESAMPLED = 20


def groups(grid: Grid) -> list[Group]:
    """Find the runs of a grid, yet to be trained, that a law can be fitted to.

    Cells that differ in nothing but their length are one group, and so are cells that differ in nothing but the number
    of their data (``?n=``); cells that are in no group of lengths are forecast by their own learning curves.

    Raises:
        ConfigError: there are none.
    """
    plans = {name: cell.train.plan(len(pairs(cell.data))) for name, cell in grid.cells.items() if not cell.stages}
    lengths = {name: float(plan.steps * plan.batch_size) for name, plan in plans.items()}
    found = [Group("length", own) for own in _families(grid, lengths, _but_length)]
    found += [Group("data", own) for own in _families(grid, {n: float(p.samples) for n, p in plans.items()}, _but_n)]
    grouped = {name for group in found if group.kind == "length" for name in group.sizes}
    found += [
        Group("curve", {name: float(plan.batch_size)})
        for name, plan in plans.items()
        if name not in grouped and _evaluations(grid, plan) >= LEAST_SIZES
    ]
    if not found:
        staged = " Cells of several stages are not forecast." if len(plans) < len(grid.cells) else ""
        raise ConfigError(
            f"--forecast needs at least {LEAST_SIZES} sizes to fit a law to, and no cell has them. Add "
            f"evaluate.every=10% for learning curves, or, better, cells that differ in train.steps alone.{staged}"
        )
    return found


def forecasts(grid_groups: Sequence[Group], outcome: Outcome) -> list[Forecast]:
    """Return a forecast for every group and headline metric that it has."""
    found = []
    for metric in outcome.headline:
        for group in grid_groups:
            seeds = _points(group, outcome, metric)
            if any(seeds.values()):
                found.append(_forecast(group, metric, seeds))
    return found


def _forecast(group: Group, metric: str, seeds: Mapping[Draw, list[tuple[float, float]]]) -> Forecast:
    """Fit and look ahead; the draws are the same whenever the points are."""
    random = np.random.default_rng(0)
    points = [point for own in seeds.values() for point in own]
    laws = _of_seeds(list(seeds.values()), random) if len(seeds) > 1 else fit(points, DRAWS, random)
    gain = laws.at(2 * laws.last) - laws.at(laws.last)
    low, high = np.quantile(gain, (0.05, 0.95)).tolist()
    sizes = np.geomspace(min(size for size, _ in points), max(AHEAD) * laws.last, 40)
    return Forecast(
        group=group,
        metric=metric,
        points=points,
        ahead={times: laws.expected(times * laws.last) for times in (1, *AHEAD)},
        gain=Expected(float(gain.mean()), low, high),
        band={float(size): laws.expected(float(size)) for size in sizes},
    )


def _of_seeds(seeds: Sequence[Sequence[tuple[float, float]]], random: np.random.Generator) -> Laws:
    """Fit seeds drawn anew: the points of one seed lie above or below the law together.

    One seed fewer is drawn than there are, whose means spread as the mean of all does (Rao and Wu, 1988). So few are
    spread wider, by Student's t to the normal distribution.
    """
    level = np.array([np.mean([value for _, value in own]) for own in seeds])
    wider = t_quantile(len(seeds) - 1) / t_quantile(10**6) - 1
    found, shifts = [], []
    for _ in range(_RESAMPLED):
        chosen = random.integers(len(seeds), size=len(seeds) - 1)
        found.append(fit([point for number in chosen for point in seeds[number]], DRAWS // _RESAMPLED, random))
        shifts += [wider * (level[chosen].mean() - level.mean())] * len(found[-1].a)
    a, q, c, d = (np.concatenate([getattr(laws, name) for laws in found]) for name in ("a", "q", "c", "d"))
    a = np.clip(a + shifts, 0, 100)
    return Laws(found[0].last, a, np.clip(q + shifts, 0, a), c, d)


def _points(group: Group, outcome: Outcome, metric: str) -> dict[Draw, list[tuple[float, float]]]:
    """(size, value) of every run that has the metric, or of every evaluation, by seed."""
    points: dict[Draw, list[tuple[float, float]]] = {}
    for cell, size in group.sizes.items():
        if group.kind == "curve":
            for draw, trial in outcome.trials[cell].items():
                points[draw] = [(step * size, own[metric]) for step, own in trial.curve.items() if metric in own]
        else:
            for draw, value in outcome.figures(cell, metric).items():
                points.setdefault(draw, []).append((size, value))
    return points


def _families(grid: Grid, sizes: Mapping[str, float], key: Callable[[RunConfig], str]) -> Iterator[dict[str, float]]:
    """The cells that are equal but for their size, also in what they train from, where there are enough sizes."""
    found: dict[tuple[str, int | None], dict[str, float]] = {}
    for name, size in sizes.items():
        found.setdefault((key(grid.cells[name]), grid.stored.get(name)), {})[name] = size
    for family in found.values():
        if len(set(family.values())) >= LEAST_SIZES:
            yield family


def _but_length(cell: RunConfig) -> str:
    return repr(cell.model_dump(exclude={"out": True, "train": set(LENGTHS)}))


def _but_n(cell: RunConfig) -> str:
    uri, mark, query = cell.data.partition("?")
    kept = urlencode([(key, value) for key, value in parse_qsl(query) if key != "n"]) if mark else ""
    return repr((f"{uri}?{kept}", cell.model_dump(exclude={"out": True, "data": True})))


def _evaluations(grid: Grid, plan: Plan) -> int:
    """How often a run is evaluated while it trains."""
    every = grid.evaluate.every
    return plan.steps // max(1, every.steps(plan)) if every else 0
