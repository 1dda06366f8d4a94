"""How probable it is that a picture and a caption belong together, from the cosine of their rows.

``probability = 1 / (1 + exp(-(slope * score + offset)))``, fitted on pairs that match and pairs that do not. How many
of the pairs match is not left to the data, where nearly none do, but stated: ``prior`` is the share of matches among
the pairs that one looks at, and both kinds are weighted to it.

Shapes: ``P`` matched and ``Q`` unmatched pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipdistill.errors import SearchError

Scores = NDArray[np.float64]

#: Fewer matched pairs than these say too little.
LEAST_PAIRS = 10
FOLDS, BINS = 5, 10
_STEPS, _NEAR = 100, 1e-9


@dataclass(frozen=True)
class Calibration:
    """A fitted curve, and how well it foretells pairs that it was not fitted on.

    ``brier`` is the mean squared error of the probability and ``ece`` its expected calibration error, both from
    cross-validation over queries and of pairs weighted to ``prior``; ``matched`` and ``unmatched`` are the pairs.
    """

    slope: float
    offset: float
    prior: float
    matched: int
    unmatched: int
    brier: float
    ece: float

    def probability(self, scores: ArrayLike, prior: float | None = None) -> Scores:
        """Return the probability of a match for cosines of any shape, where ``prior`` of all pairs match."""
        curve = self.at(prior)
        return _sigmoid(curve.slope * np.asarray(scores, np.float64) + curve.offset)

    def of_best(self, count: int) -> Calibration:
        """The curve for the best of ``count`` pictures of which one matches, fitted on pairs drawn at random.

        The best is not drawn at random: among many, one that does not match comes near as well.
        """
        return self.at(1 / max(2, count))

    def at(self, prior: float | None) -> Calibration:
        """The same curve where ``prior`` of all pairs match, None for its own: another prior is a shift."""
        if prior is None:
            return self
        return replace(self, offset=self.offset + _logit(prior) - _logit(self.prior), prior=prior)

    def threshold(self, min_precision: float, prior: float | None = None) -> float:
        """Return the cosine from which on every pair matches with a probability of ``min_precision`` or more.

        Of the pairs above it a larger share matches. It may be above 1, where no cosine is enough. Raises
        :class:`SearchError` for a precision that is no probability between 0 and 1.
        """
        return (_logit(min_precision) - self.at(prior).offset) / self.slope

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Read what :meth:`to_dict` gave; keys beside those are left alone."""
        return cls(**{name: values[name] for name in cls.__dataclass_fields__})


def calibrate(
    matched: Scores,
    unmatched: Scores,
    queries: tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]],
    prior: float = 0.5,
) -> Calibration:
    """Fit the curve on scores ``matched [P]`` and ``unmatched [Q]``; ``queries`` are the numbers of who asked for each.

    Pairs of one query are foretold together, by a curve that saw none of them. Raises :class:`SearchError` for too few
    pairs or queries, and where a higher score does not mean a likelier match.
    """
    if len(matched) < LEAST_PAIRS or len(unmatched) < LEAST_PAIRS:
        raise SearchError(
            f"{len(matched)} matched and {len(unmatched)} unmatched pairs are too few to calibrate on: {LEAST_PAIRS} "
            "of each are needed. Use more data."
        )
    slope, offset = fit(matched, unmatched, prior)
    hits = np.repeat([1.0, 0.0], [len(matched), len(unmatched)])
    weights = _weights(len(matched), len(unmatched), prior)
    foretold = _foretold(matched, unmatched, queries, prior)
    brier = float(np.average((foretold - hits) ** 2, weights=weights))
    ece = calibration_error(foretold, hits, weights)
    return Calibration(slope, offset, prior, len(matched), len(unmatched), brier, ece)


def fit(matched: Scores, unmatched: Scores, prior: float = 0.5) -> tuple[float, float]:
    """Fit slope and offset by Newton's method; see :func:`calibrate`.

    The targets are Platt's, a little less than 1 and more than 0, so that the slope stays finite where all matches
    score higher than all others.
    """
    scores = np.concatenate([matched, unmatched]).astype(np.float64)
    middle, spread = float(scores.mean()), float(scores.std())
    if not math.isfinite(spread) or spread == 0:
        raise SearchError("all scores are the same, or not finite: there is nothing to calibrate on.")
    targets = np.repeat(
        [(len(matched) + 1) / (len(matched) + 2), 1 / (len(unmatched) + 2)], [len(matched), len(unmatched)]
    )
    weights = _weights(len(matched), len(unmatched), prior)
    inputs = np.stack([(scores - middle) / spread, np.ones_like(scores)], axis=1)
    slope, offset = _newton(inputs, targets, weights)
    if slope <= 0:
        raise SearchError(
            "matched pairs score no higher than unmatched ones, so a score says nothing about a match. Check that the "
            "data's captions belong to their pictures, or train the model longer."
        )
    return slope / spread, offset - slope * middle / spread


def calibration_error(foretold: Scores, hits: Scores, weights: Scores) -> float:
    """Return the expected calibration error: how far probabilities are from what happened, over equal bins, ``[N]``."""
    bins = np.minimum((foretold * BINS).astype(np.intp), BINS - 1)
    mass, said, came = (np.bincount(bins, weights * what, BINS) for what in (np.ones_like(hits), foretold, hits))
    return float(np.abs(said - came).sum() / mass.sum())


def _foretold(
    matched: Scores,
    unmatched: Scores,
    queries: tuple[NDArray[np.integer[Any]], NDArray[np.integer[Any]]],
    prior: float,
) -> Scores:
    """Probabilities of all pairs, ``[P + Q]``, those of each fold by the curve of the others."""
    _, numbers = np.unique(np.concatenate(queries), return_inverse=True)
    folds = np.random.default_rng(0).permutation(int(numbers.max()) + 1)[numbers] % FOLDS
    mine, theirs = np.split(folds, [len(matched)])
    scores, found = np.concatenate([matched, unmatched]), np.empty(len(folds))
    for fold in range(FOLDS):
        one, other = matched[mine != fold], unmatched[theirs != fold]
        if not len(one) or not len(other):
            raise SearchError(
                "all pairs belong to one query: there is none to foretell from the others. Use more data."
            )
        slope, offset = fit(one, other, prior)
        held = folds == fold
        found[held] = _sigmoid(slope * scores[held] + offset)
    return found


def _newton(inputs: Scores, targets: Scores, weights: Scores) -> Scores:
    """Minimise the weighted cross-entropy of ``inputs [N, 2]``, by Newton steps, halved where they overshoot."""
    found: Scores = np.zeros(2)
    step: Scores = np.zeros(2)
    loss = math.inf
    for _ in range(_STEPS):
        trial = found + step
        logits = inputs @ trial
        now = float(weights @ (np.logaddexp(0, logits) - targets * logits))
        if now > loss + 1e-12:
            step = step / 2
            continue
        found, loss = trial, now
        said = _sigmoid(logits)
        slopes = inputs.T @ (weights * (targets - said))
        bends = (inputs * (weights * said * (1 - said))[:, None]).T @ inputs
        step = np.asarray(np.linalg.solve(bends + 1e-12 * np.eye(2), slopes), np.float64)
        if float(np.abs(step).max()) < _NEAR:
            break
    return found


def _weights(matched: int, unmatched: int, prior: float) -> Scores:
    """Weights of the pairs, whose sum is 1, of which the matched have ``prior``."""
    return np.repeat([prior / matched, (1 - prior) / unmatched], [matched, unmatched])


def _sigmoid(logits: Scores) -> Scores:
    return np.asarray(np.exp(-np.logaddexp(0, -logits)), np.float64)


def _logit(probability: float) -> float:
    if not 0 < probability < 1:
        raise SearchError(f"{probability} is no probability: expected a number between 0 and 1, without the two.")
    return math.log(probability / (1 - probability))
