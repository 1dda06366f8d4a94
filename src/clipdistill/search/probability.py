"""Which curve makes the probability of a hit, and what is said where there is none.

The curves of an index are in its manifest, see :mod:`clipdistill.search.corpus_calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipdistill.errors import SearchError
from clipdistill.search.calibrate import Calibration
from clipdistill.search.composing import Kind
from clipdistill.search.manifest import Manifest
from clipdistill.search.query import Hit
from clipdistill.search.runtime import Runtime

#: What an entry of a manifest's calibration may be learnt from.
LABELS, CAPTIONS, TAGS, MODEL = "labels", "captions", "tags", "model"
_TOLD = {
    LABELS: "probabilities were learnt from the labels that this index was given",
    CAPTIONS: "probabilities were learnt from the captions of this index",
    TAGS: "probabilities were learnt from the tags of this index",
    MODEL: "probabilities are those of the model on other pictures",
}
_MIXED = "a query of several parts, or of rows, has no probabilities: scores of mixtures mean something else each time"
_NEVER = "the index was not calibrated for such queries (clipdistill index calibrate does)"


@dataclass(frozen=True)
class Curve:
    """The curve of the best hit, ``fitted``, and that of the rest, or None; ``told`` says from what, or why none."""

    fitted: Calibration | None
    rest: Calibration | None
    told: str

    def probabilities(self, scores: Sequence[float]) -> list[float] | list[None]:
        """The probabilities that hits with those scores, best first, are matches; no hit's is above a better one's."""
        if self.fitted is None or self.rest is None:
            return [None] * len(scores)
        found = [*self.fitted.probability(scores[:1]), *self.rest.probability(scores[1:])]
        return [float(one) for one in np.minimum.accumulate(found)]


MIXED = Curve(None, None, _MIXED)


def curves_of(manifest: Manifest, runtime: Runtime) -> dict[Kind, Curve]:
    """Return the curve of each kind of query, for queries that ``runtime`` embeds."""
    text, image = (_curve(manifest.calibration.get(kind, {}), runtime, manifest.count) for kind in ("text", "image"))
    own = runtime.calibration if runtime.fingerprint == manifest.model.fingerprint else None
    if not manifest.calibration and own:
        own = own.of_best(manifest.count)
        text = Curve(own, own, _TOLD[MODEL])
    return {"text": text, "image": image}


def check_precision(curve: Curve, min_precision: float | None) -> None:
    """Raise :class:`SearchError` for a precision that is none, or that no probability can be held against."""
    if min_precision is None:
        return
    if not 0 < min_precision < 1:
        raise SearchError(f"the least precision is {min_precision}; expected a number between 0 and 1.")
    if curve.fitted is None:
        raise SearchError(f"no precision can be promised: {curve.told}.")


def nothing_matches(hits: list[Hit], kept: list[Hit], min_precision: float | None, filtered: bool) -> str | None:
    """Say why nothing matches, from all hits and those that were precise enough; None where something does."""
    if not hits:
        return "no picture passes the filter" if filtered else "there is no other picture in the index"
    best = hits[0]
    if best.probability is None:
        return None
    figures = f"the best hit has a probability of {best.probability:.2f} (score {best.score:.3f})"
    if min_precision is not None and not kept:
        return f"no hit has a probability of {min_precision:g} or more: {figures}"
    if best.probability < 0.5:
        return f"{figures}: more likely than not, it is no match"
    return None


def _curve(entry: Mapping[str, Any], runtime: Runtime, count: int) -> Curve:
    if not entry:
        return Curve(None, None, _NEVER)
    if entry["model"] != runtime.fingerprint:
        return Curve(None, None, "the index was calibrated for queries of another model")
    if "slope" not in entry:
        return Curve(None, None, str(entry["reason"]))
    reason = f", as {entry['reason']}" if entry.get("reason") else ""
    best, rest = (Calibration.from_dict(entry.get(part, entry)) for part in ("best", "rest"))
    if entry["from"] == MODEL:
        best, rest = best.of_best(count), rest.of_best(count)
    return Curve(best, rest, _TOLD[entry["from"]] + reason)
