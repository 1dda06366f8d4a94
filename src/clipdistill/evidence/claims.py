"""Claims: sentences of papers as comparisons between cells of a grid; judged in :mod:`clipdistill.evidence.judging`.

::

    claims:
      - claim: clip-kd-1
        says: Feature distillation is the best single loss.
        source: CLIP-KD, arXiv 2307.12732
        expect: [clip-kd-fd > clip-kd-icl, clip-kd-fd ~ clip-kd-mfd]   # ~: about equal, within the margin
        metric: mean_recall                                            # default: the grid's first
        margin: 3                                                      # in the figure's own unit, points of a metric
        cost: {train_seconds: clip-kd-fd < clip-kd-afd}                # other figures of the same cells
        correlation: feature_cosine_image ~ mean_recall > 0            # over the means of all cells, or of `cells`
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clipdistill.errors import ConfigError, did_you_mean
from clipdistill.evidence.statistics import Difference

KEYS = ("claim", "says", "source", "expect", "metric", "margin", "cost", "correlation", "cells")
#: What a model costs, by the names of comparison.csv; of the first no two runs of a cell differ.
SIZES = ("params", "image_params", "text_params")
COSTS = ("train_seconds", *SIZES, "image_ms", "text_ms")
#: How the metrics begin that classifiers have.
OF_CLASSIFIERS = ("classify_", "image_to_image_")
#: How alike a student's rows are to its teacher's.
LIKENESS = ("feature_cosine_image", "feature_cosine_text")
HOLDS, FAILS, NOISE = "holds", "does not hold", "within noise"
#: Points within which figures are about equal, unless a claim says otherwise.
MARGIN = 3.0
#: Cells that a correlation needs for an interval.
FEWEST_CELLS = 4

_COMPARISON = re.compile(r"\s*([^<>~=]+?)\s*([<>~])\s*([^<>~=]+?)\s*")
_CORRELATION = re.compile(r"\s*(\w[\w@]*)\s*~\s*(\w[\w@]*)\s*([<>])\s*0\s*")


@dataclass(frozen=True)
class Names:
    """What claims may speak of: cells, teachers, those of both that are classifiers, and metrics.

    ``likeness`` is whether students' rows are set beside a teacher's, which takes a teacher and retrieval data.
    """

    cells: tuple[str, ...]
    teachers: tuple[str, ...]
    classifiers: frozenset[str]
    metrics: tuple[str, ...]
    likeness: bool


@dataclass(frozen=True)
class Comparison:
    """``left`` is more (``>``), less (``<``) or about as much (``~``, within ``margin``) as ``right`` in a figure."""

    left: str
    sign: str
    right: str
    figure: str
    margin: float

    @property
    def cells(self) -> frozenset[str]:
        """The cells and teachers compared."""
        return frozenset((self.left, self.right))

    def __str__(self) -> str:
        within = f" within {self.margin:g}" if self.sign == "~" else ""
        return f"{self.left} {self.sign} {self.right}{within}"


@dataclass(frozen=True)
class Correlation:
    """Two figures rise together (``>``) or against each other (``<``), over the means of ``over``."""

    x: str
    y: str
    sign: str
    over: tuple[str, ...]

    @property
    def cells(self) -> frozenset[str]:
        """The cells correlated."""
        return frozenset(self.over)

    def __str__(self) -> str:
        return f"{self.x} ~ {self.y} {self.sign} 0"


@dataclass(frozen=True)
class Claim:
    """A sentence, who says so, and what it makes us expect of the cells."""

    name: str
    says: str
    source: str
    expect: tuple[Comparison | Correlation, ...]

    @property
    def cells(self) -> frozenset[str]:
        """All cells and teachers that the claim is about."""
        return frozenset().union(*(one.cells for one in self.expect))


@dataclass(frozen=True)
class Found:
    """What the runs say of one expectation: a difference or correlation with its interval, from so many of what."""

    expected: str
    figure: str
    difference: Difference
    evidence: str
    verdict: str


@dataclass(frozen=True)
class Judged:
    """A claim and what was found: it holds if all of its expectations do, and not if one of them does not."""

    claim: Claim
    found: tuple[Found, ...]

    @property
    def verdict(self) -> str:
        """``holds``, ``does not hold`` or ``within noise``."""
        said = {one.verdict for one in self.found}
        return FAILS if FAILS in said else NOISE if NOISE in said else HOLDS


def read_claims(data: Any, names: Names, metric: str, where: str) -> tuple[Claim, ...]:
    """Read a grid's claims; ``metric`` is what a claim that names none is about.

    Raises:
        ConfigError: a key, cell, figure or expectation is unknown or cannot be read; names the claim.
    """
    if data is None:
        return ()
    if not isinstance(data, (list, tuple)):
        raise ConfigError(f"{where}, claims: expected a list of claims, found {data!r:.80}.")
    claims: dict[str, Claim] = {}
    for number, item in enumerate(data, 1):
        claim = _claim(item, names, metric, f"{where}, claim {number}")
        if claim.name in claims:
            raise ConfigError(f"{where}: two claims are called '{claim.name}'. Give each a name of its own.")
        claims[claim.name] = claim
    return tuple(claims.values())


def _claim(item: Any, names: Names, metric: str, at: str) -> Claim:
    if not isinstance(item, Mapping):
        raise ConfigError(f"{at}: expected keys such as claim, says, source and expect, found {item!r:.80}.")
    at = f"{at} ({item['claim']})" if "claim" in item else at
    for key in item:
        if key not in KEYS:
            raise ConfigError(f"{at}: unknown key '{key}'.{did_you_mean(str(key), KEYS)}")
    for key in ("claim", "says", "source"):
        if not isinstance(item.get(key), str) or not item[key].strip():
            raise ConfigError(f"{at}: the key '{key}' is missing; expected text, found {item.get(key)!r}.")
    expect: tuple[Comparison | Correlation, ...]
    expect = (*_comparisons(item, names, metric, at), *_correlations(item, names, at))
    if not expect:
        raise ConfigError(f"{at}: nothing is expected. Write expect: CELL > CELL, cost or correlation.")
    return Claim(item["claim"].strip(), " ".join(item["says"].split()), item["source"].strip(), expect)


def _comparisons(item: Mapping[str, Any], names: Names, metric: str, at: str) -> Iterator[Comparison]:
    margin = item.get("margin", MARGIN)
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not margin > 0:
        raise ConfigError(f"{at}, margin: expected a number above 0, found {margin!r}.")
    figure = str(item.get("metric", metric))
    _check(figure, (*names.metrics, *LIKENESS), f"{at}, metric", "figure")
    for text in _texts(item.get("expect"), f"{at}, expect"):
        yield _comparison(text, figure, float(margin), names, f"{at}, expect")
    cost = item.get("cost")
    if cost is not None and not isinstance(cost, Mapping):
        raise ConfigError(f"{at}, cost: expected figures and comparisons, such as params: A < B; found {cost!r:.80}.")
    for name, texts in (cost or {}).items():
        _check(str(name), COSTS, f"{at}, cost", "figure")
        for text in _texts(texts, f"{at}, cost, {name}"):
            yield _comparison(text, str(name), float(margin), names, f"{at}, cost, {name}")


def _comparison(text: str, figure: str, margin: float, names: Names, at: str) -> Comparison:
    match = _COMPARISON.fullmatch(text)
    if match is None:
        raise ConfigError(f"{at}: expected a comparison such as 'A > B', 'A < B' or 'A ~ B', found {text!r}.")
    left, sign, right = match.groups()
    for name in (left, right):
        _check(name, (*names.cells, *names.teachers), at, "cell")
        _check_measured(name, figure, names, at)
    if left == right or not {left, right} & set(names.cells):
        raise ConfigError(f"{at}: expected two models, at least one of them a cell, found {text!r}.")
    return Comparison(left, sign, right, figure, margin)


def _check_measured(name: str, figure: str, names: Names, at: str) -> None:
    """Refuse what a kind of model has not: better now than when all is trained."""
    if kind := _kind_without(figure, name, names):
        raise ConfigError(f"{at}: {name} is {kind}, for which {figure} is not measured. Name another metric or cell.")


def _kind_without(figure: str, name: str, names: Names) -> str:
    """Say what a model is that a figure is not measured of; empty if it is."""
    if name in names.teachers and figure in ("train_seconds", *LIKENESS):
        return "a teacher"
    if name in names.classifiers:
        other = figure in names.metrics and not figure.startswith(OF_CLASSIFIERS)
        return "a classifier" if other or figure in ("text_ms", *LIKENESS) else ""
    if figure.startswith("classify_"):
        return "no classifier"
    return "in a grid without a teacher or without retrieval data" if figure in LIKENESS and not names.likeness else ""


def _correlations(item: Mapping[str, Any], names: Names, at: str) -> Iterator[Correlation]:
    if item.get("correlation") is None:
        if "cells" in item:
            raise ConfigError(f"{at}: cells belongs to a correlation, and there is none.")
        return
    cells = tuple(_names(item.get("cells"), f"{at}, cells")) or tuple(
        c for c in names.cells if c not in names.classifiers
    )
    for cell in cells:
        _check(cell, names.cells, f"{at}, cells", "cell")
    if len(set(cells)) < FEWEST_CELLS:
        raise ConfigError(f"{at}: a correlation needs {FEWEST_CELLS} cells or more, found {len(set(cells))}.")
    for text in _texts(item["correlation"], f"{at}, correlation"):
        match = _CORRELATION.fullmatch(text)
        if match is None:
            raise ConfigError(f"{at}, correlation: expected 'FIGURE ~ FIGURE > 0' or '< 0', found {text!r}.")
        x, y, sign = match.groups()
        for figure in (x, y):
            _check(figure, (*names.metrics, *LIKENESS, *COSTS), f"{at}, correlation", "figure")
            for cell in cells:
                _check_measured(cell, figure, names, f"{at}, correlation")
        yield Correlation(x, y, sign, tuple(dict.fromkeys(cells)))


def _check(name: str, known: Collection[str], at: str, what: str) -> None:
    if name not in known:
        raise ConfigError(f"{at}: there is no {what} '{name}'.{did_you_mean(name, known)}")


def _texts(value: Any, at: str) -> list[str]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{at}: expected text or a list of texts, found {value!r:.80}.")
    return list(texts)


def _names(value: Any, at: str) -> list[str]:
    """Read names of cells, some of which YAML reads as numbers."""
    return [str(name) for name in value] if isinstance(value, (list, tuple)) else _texts(value, at)
