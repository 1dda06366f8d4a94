"""What longer runs, or more data, would bring: a saturating law through what runs of several sizes reached.

    quality = a - (a - q) * ((size + c) / (last + c)) ** -d,    0 <= q <= a <= 100

``last`` is the largest size there is, ``q`` the quality there, ``a`` what no size surpasses. Every law of a grid of
``a``, ``c`` and ``d`` is weighed by how well it explains the points; what is forecast is the mean over draws of laws
by weight, and its interval their 5th to 95th percentile. Few points leave many laws, and a wide interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from urllib.parse import parse_qsl, urlencode

import numpy as np
from numpy.typing import NDArray

from clipdistill.config import Plan, RunConfig
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError
from clipdistill.evidence.grid import Grid
from clipdistill.evidence.grid_runs import Draw
from clipdistill.evidence.outcome import Outcome

#: How many times the largest size is looked ahead to.
AHEAD = (2, 4, 10)
#: Twice the size pays if it brings so many points.
WORTH = 1.0
LEAST_SIZES = 3
DRAWS = 1000

_OFFSETS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_EXPONENTS = np.geomspace(0.1, 3, 14)
_CEILINGS = np.arange(1.0, 101.0)
#: Runs differ by noise even where few points happen to lie on a law: half a point, believed as much as one point.
_NOISE, _BELIEF = 0.5, 1
#: Seeds of a learning curve are drawn so often, to be the sample anew.
_RESAMPLED = 40
_LENGTHS = ("steps", "epochs", "samples")

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Runs of several sizes: ``kind`` is "length" (samples seen) or "data" (samples there are), with a size for each
    cell; or "curve", one cell's evaluations while it trained, with the samples seen in a step.
    """

    kind: str
    sizes: dict[str, float]

    @property
    def name(self) -> str:
        """The cells."""
        return ", ".join(self.sizes)


@dataclass(frozen=True)
class Expected:
    """A forecast and its 90% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Laws:
    """Laws drawn by weight, as arrays of equal length; see the module."""

    last: float
    a: Values
    q: Values
    c: Values
    d: Values

    def at(self, size: float) -> Values:
        """What each law says of a size, ``[draws]``."""
        return self.a - (self.a - self.q) * ((size / self.last + self.c) / (1 + self.c)) ** -self.d

    def expected(self, size: float) -> Expected:
        """The forecast for a size."""
        found = self.at(size)
        low, high = np.quantile(found, (0.05, 0.95)).tolist()
        return Expected(float(found.mean()), low, high)


@dataclass(frozen=True)
class Forecast:
    """One metric of one group.

    ``points`` are (size, value) of every run, ``ahead`` what is forecast for multiples of the largest size (1 is the
    law there), ``gain`` what twice the size brings, and ``band`` forecasts by size, for a chart.
    """

    group: Group
    metric: str
    points: list[tuple[float, float]]
    ahead: dict[int, Expected]
    gain: Expected
    band: dict[float, Expected] = field(default_factory=dict)

    @property
    def last(self) -> float:
        """The largest size."""
        return max(size for size, _ in self.points)

    @property
    def pays(self) -> str:
        """Whether twice the size brings at least :data:`WORTH` points: yes, no or unclear."""
        return "yes" if self.gain.low >= WORTH else "no" if self.gain.high < WORTH else "unclear"


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
        raise ConfigError(
            f"--forecast needs at least {LEAST_SIZES} sizes to fit a law to, and no cell has them. Add "
            "evaluate.every=10% for learning curves, or, better, cells that differ in train.steps alone."
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


def fit(points: Sequence[tuple[float, float]], draws: int, random: np.random.Generator) -> Laws:
    """Draw laws that explain (size, quality in percent).

    Raises:
        ConfigError: there are fewer than three sizes.
    """
    size, quality = np.array(points, np.float64).reshape(-1, 2).T
    if (count := len(np.unique(size))) < LEAST_SIZES:
        raise ConfigError(f"a forecast needs {LEAST_SIZES} sizes or more, found {count}. Add lengths, or evaluations.")
    last = float(size.max())
    c, d, a = np.array(list(product(_OFFSETS, _EXPONENTS, _CEILINGS))).T
    # Of a law without q, quality = rest + q * u; q is found by least squares, and its error is Student's t.
    u = ((size / last + c[:, None]) / (1 + c[:, None])) ** -d[:, None]
    rest = quality - a[:, None] * (1 - u)
    weight = np.sum(u * u, axis=1)
    q = np.sum(u * rest, axis=1) / weight
    squares = np.sum((rest - q[:, None] * u) ** 2, axis=1) + _BELIEF * _NOISE**2
    freedom = len(size) - 1 + _BELIEF
    error = np.sqrt(squares / freedom / weight)
    likely = -0.5 * np.log(weight) - 0.5 * freedom * np.log(squares)
    likely[q > a + 2 * error] = -np.inf
    chances = np.exp(likely - likely.max())
    drawn = random.choice(len(a), draws, p=chances / chances.sum())
    q_drawn = q[drawn] + error[drawn] * random.standard_t(freedom, draws)
    return Laws(last, a[drawn], np.clip(q_drawn, 0, a[drawn]), c[drawn], d[drawn])


def _forecast(group: Group, metric: str, seeds: Mapping[Draw, list[tuple[float, float]]]) -> Forecast:
    """Fit and look ahead; the draws are the same whenever the points are."""
    random = np.random.default_rng(0)
    points = [point for own in seeds.values() for point in own]
    laws = _of_curves(seeds, random) if group.kind == "curve" and len(seeds) > 1 else fit(points, DRAWS, random)
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


def _of_curves(seeds: Mapping[Draw, list[tuple[float, float]]], random: np.random.Generator) -> Laws:
    """Fit seeds drawn anew: the points of one run lie above or below the law together."""
    curves = list(seeds.values())
    found = []
    for _ in range(_RESAMPLED):
        chosen = random.integers(len(curves), size=len(curves))
        found.append(fit([point for number in chosen for point in curves[number]], DRAWS // _RESAMPLED, random))
    a, q, c, d = (np.concatenate([getattr(laws, name) for laws in found]) for name in ("a", "q", "c", "d"))
    return Laws(found[0].last, a, q, c, d)


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
    return repr(cell.model_dump(exclude={"out": True, "train": set(_LENGTHS)}))


def _but_n(cell: RunConfig) -> str:
    uri, mark, query = cell.data.partition("?")
    kept = urlencode([(key, value) for key, value in parse_qsl(query) if key != "n"]) if mark else ""
    return repr((f"{uri}?{kept}", cell.model_dump(exclude={"out": True, "data": True})))


def _evaluations(grid: Grid, plan: Plan) -> int:
    """How often a run is evaluated while it trains."""
    every = grid.evaluate.every
    return plan.steps // max(1, every.steps(plan)) if every else 0
