"""What the runs say of claims: each expectation's difference or correlation, its interval, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clipdistill.errors import ConfigError
from clipdistill.evidence.claims import FAILS, HOLDS, NOISE, SIZES, Claim, Comparison, Correlation, Found, Judged
from clipdistill.evidence.outcome import Outcome
from clipdistill.evidence.pairing import Run, count, difference, of_teacher
from clipdistill.evidence.statistics import Difference, correlation


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
    """Compare the means over the seeds that both sides have, see :mod:`clipdistill.evidence.pairing`."""
    left, right = (_figures(outcome, name, pair.figure, claim) for name in (pair.left, pair.right))
    found = difference(left, right)
    if found is None:
        raise ConfigError(f"claim {claim}: the cells {pair.left} and {pair.right} share no seed.")
    if pair.figure in SIZES:
        found = Difference(found.mean, found.mean, found.mean)
    margin = pair.margin if pair.sign == "~" else None
    return Found(str(pair), pair.figure, found, count(left, right), _verdict(pair.sign, found, margin))


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


def _figures(outcome: Outcome, name: str, figure: str, claim: str) -> list[Run]:
    """One figure of a cell, or of a teacher, by seeds."""
    found: Iterable[Run]
    if name in outcome.trials:
        found = outcome.figures(name, figure).items()
    else:
        found = of_teacher(outcome.teacher_figures(name, figure)).items()
    if not found:
        raise ConfigError(f"claim {claim}: no {figure} was measured of {name}. Name another figure or cell.")
    return list(found)


def _mean(outcome: Outcome, cell: str, figure: str, claim: str) -> float:
    found = outcome.mean(cell, figure)
    if found is None:
        raise ConfigError(f"claim {claim}: no {figure} was measured of {cell}. Name other cells.")
    return found
