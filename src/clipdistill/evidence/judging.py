"""What the runs say of claims: each expectation's difference or correlation, its interval, and the verdict."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from clipdistill.errors import ConfigError
from clipdistill.evidence.claims import FAILS, HOLDS, NOISE, Claim, Comparison, Correlation, Found, Judged
from clipdistill.evidence.grid_runs import Draw
from clipdistill.evidence.outcome import Outcome
from clipdistill.evidence.statistics import Difference, correlation, paired_difference


def judge(claims: Sequence[Claim], outcome: Outcome) -> tuple[Judged, ...]:
    """Hold every claim against what was measured.

    Raises:
        ConfigError: a model has no figure that a claim is about.
    """
    return tuple(Judged(claim, tuple(_found(one, outcome, claim.name) for one in claim.expect)) for claim in claims)


def _found(expected: Comparison | Correlation, outcome: Outcome, claim: str) -> Found:
    if isinstance(expected, Comparison):
        return _compare(expected, outcome, claim)
    return _correlate(expected, outcome, claim)


def _compare(pair: Comparison, outcome: Outcome, claim: str) -> Found:
    """Compare the means over the seeds that both cells have; a teacher's figure is the same for all it taught."""
    difference = paired_difference(*_by_draw(pair, outcome, claim))
    if difference is None:
        raise ConfigError(f"claim {claim}: the cells {pair.left} and {pair.right} share no seed.")
    draws = set.intersection(*(set(outcome.trials[cell]) for cell in pair.cells if cell in outcome.trials))
    margin = pair.margin if pair.sign == "~" else None
    return Found(str(pair), pair.figure, difference, _count(draws), _verdict(pair.sign, difference, margin))


def _correlate(pair: Correlation, outcome: Outcome, claim: str) -> Found:
    """Correlate means over seeds, one dot for each cell: the seeds of one cell are no evidence of their own."""
    x = [_mean(outcome, cell, pair.x, claim) for cell in pair.over]
    y = [_mean(outcome, cell, pair.y, claim) for cell in pair.over]
    found = correlation(x, y)
    return Found(str(pair), "correlation", found, f"{len(x)} cells", _verdict(pair.sign, found, None))


def _verdict(sign: str, found: Difference, margin: float | None) -> str:
    """Say what an interval means. A single seed has none, and decides nothing."""
    if found.low is None or found.high is None:
        return NOISE
    if margin is not None:
        if -margin <= found.low and found.high <= margin:
            return HOLDS
        return FAILS if found.low > margin or found.high < -margin else NOISE
    above, below = found.low > 0, found.high < 0
    if sign == "<":
        above, below = below, above
    return HOLDS if above else FAILS if below else NOISE


def _count(draws: Collection[Draw]) -> str:
    """Say how many runs a comparison is from: 3 seeds, or 9 of 3 teachers."""
    teachers = len({draw.teacher for draw in draws})
    if teachers > 1:
        return f"{len(draws)} of {teachers} teachers"
    return f"{len(draws)} seed{'s' if len(draws) > 1 else ''}"


def _by_draw(pair: Comparison, outcome: Outcome, claim: str) -> tuple[dict[Draw, float], dict[Draw, float]]:
    """The figure of both sides by seeds; a teacher has one for all that it taught."""
    cells = [cell for cell in (pair.left, pair.right) if cell in outcome.trials]
    draws = [draw for cell in cells for draw in outcome.trials[cell]]
    left, right = (_figures(outcome, name, pair.figure, draws, claim) for name in (pair.left, pair.right))
    return left, right


def _figures(outcome: Outcome, name: str, figure: str, draws: Sequence[Draw], claim: str) -> dict[Draw, float]:
    found = (
        outcome.figures(name, figure)
        if name in outcome.trials
        else {draw: outcome.teacher_figure(name, figure, draw) for draw in draws}
    )
    known = {draw: value for draw, value in found.items() if value is not None}
    if not known:
        raise ConfigError(f"claim {claim}: no {figure} was measured of {name}. Name another figure or cell.")
    return known


def _mean(outcome: Outcome, cell: str, figure: str, claim: str) -> float:
    found = outcome.mean(cell, figure)
    if found is None:
        raise ConfigError(f"claim {claim}: no {figure} was measured of {cell}. Name other cells.")
    return found
