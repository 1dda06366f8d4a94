"""From a query to hits with probabilities: a model, an index, and what its scores mean.

Shapes: ``Q`` queries, ``D`` the model's full width.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import SearchError
from clipdistill.search.composing import Kind, Towers, compose, kind_of
from clipdistill.search.distinct import COPIES, without_copies
from clipdistill.search.index import Index
from clipdistill.search.probability import MIXED, Curve, check_precision, curves_of, nothing_matches
from clipdistill.search.query import PLAIN, Answer, Hit, Options, Query
from clipdistill.search.runtime import Runtime
from clipdistill.search.spaces import check_sides, open_model
from clipdistill.search.table import Found

#: Where copies are left out, the search goes this far for others.
_FARTHEST = 10_000


@dataclass(frozen=True)
class _Opened:
    """A version of an index with the model that embeds queries, and what the scores of such queries mean."""

    index: Index
    runtime: Runtime
    curves: dict[Kind, Curve]

    @classmethod
    def of(cls, index: Index, runtime: Runtime) -> _Opened:
        return cls(index, runtime, curves_of(index.manifest, runtime))


class Searcher:
    """Searches an index. Everything here can be called from several threads at once."""

    def __init__(self, index: Index, runtime: Runtime, threads: int | None = None, own: bool = True) -> None:
        self._opened, self._threads, self._own = _Opened.of(index, runtime), threads, own
        self._changing = threading.Lock()

    @classmethod
    def open(cls, index: Index | str | Path, model: str | Path | None = None, threads: int | None = None) -> Searcher:
        """Open an index with the model that it was made with, or for its queries with another, ``model``.

        ``threads`` of the CPU embed a query. Raises :class:`SearchError` for another model whose rows are not of the
        index's space, and for a model that has moved or has changed.
        """
        found = index if isinstance(index, Index) else Index.open(index)
        return cls(found, open_model(found, model, threads), threads, own=model is None)

    @property
    def index(self) -> Index:
        """The version that is searched now."""
        return self._opened.index

    @property
    def runtime(self) -> Runtime:
        """The model that embeds queries."""
        return self._opened.runtime

    def curve(self, kind: Kind | None) -> Curve:
        """What makes probabilities for one kind of query, and what it was learnt from."""
        return _curve(self._opened, kind)

    def embed(self, query: Query) -> NDArray[np.float32]:
        """Return a query's row, ``float32 [D]``; see :func:`clipdistill.search.composing.compose`."""
        opened = self._opened
        check_sides(opened.index, opened.runtime, query)
        return compose(query, opened.runtime, opened.index.vectors)

    def search(
        self, query: Query, options: Options = PLAIN, through: Callable[[Runtime], Towers] | None = None
    ) -> Answer:
        """Find what is nearest to a query; pictures of the index that are part of it are not among the hits.

        ``through`` gives what embeds the query in place of the runtime, as one that batches those of many.
        Raises :class:`SearchError` and :class:`DataError` for a query that cannot be embedded, and for a
        ``min_precision`` where there are no probabilities.
        """
        started, opened = time.perf_counter(), self._opened
        check_sides(opened.index, opened.runtime, query)
        towers = through(opened.runtime) if through else opened.runtime
        row = compose(query, towers, opened.index.vectors)
        return _answers(opened, row[None], options, kind_of(query), started, query.ids)[0]

    def search_many(
        self, rows: NDArray[np.float32], options: Options = PLAIN, kind: Kind | None = None
    ) -> list[Answer]:
        """Search for many rows ``[Q, D]`` at once; they have probabilities if ``kind`` says what they are rows of.

        Raises :class:`SearchError` for rows of another shape or without a direction, and as :meth:`search` does.
        """
        return _answers(self._opened, rows, options, kind, time.perf_counter())

    def reload(self) -> bool:
        """Go over to what was published since, if anything was, and say so; searches that run keep what they have.

        Raises :class:`SearchError` where the new version cannot be opened; the searcher then stays with the old one.
        """
        with self._changing:
            opened = self._opened
            index = opened.index.current()
            if index is opened.index:
                return False
            runtime = opened.runtime
            if index.manifest.model.fingerprint != opened.index.manifest.model.fingerprint:
                runtime = open_model(index, None if self._own else runtime.folder, self._threads)
            self._opened = _Opened.of(index, runtime)
            return True

    def close(self) -> None:
        """Give back what the index holds."""
        self._opened.index.close()


def _answers(
    opened: _Opened,
    rows: NDArray[np.float32],
    options: Options,
    kind: Kind | None,
    started: float,
    known: Collection[str] = (),
) -> list[Answer]:
    curve = _curve(opened, kind)
    check_precision(curve, options.min_precision)
    if options.k < 1:
        raise SearchError(f"{options.k} hits are asked for; expected 1 or more.")
    found = _distinct(opened, rows, options, known) if options.distinct else _nearest(opened, rows, options, known)
    seconds = time.perf_counter() - started
    return [_answer(opened, hits, curve, options, seconds) for hits in found]


def _answer(opened: _Opened, found: Sequence[Found], curve: Curve, options: Options, seconds: float) -> Answer:
    probabilities = curve.probabilities([one.score for one in found])
    hits = [Hit(**vars(one), probability=likely) for one, likely in zip(found, probabilities, strict=True)]
    least = options.min_precision
    kept = [hit for hit in hits if least is None or (hit.probability or 0) >= least]
    why = nothing_matches(hits, kept, least, options.where is not None)
    return Answer(tuple(kept), seconds, opened.index.version, why, curve.told)


def _nearest(
    opened: _Opened, rows: NDArray[np.float32], options: Options, known: Collection[str], k: int | None = None
) -> list[list[Found]]:
    """The best ``k`` of every row, ``known`` pictures left out."""
    k = k or options.k
    found = opened.index.search(rows, k + len(known), options.where, options.exact)
    return [[one for one in hits if one.id not in known][:k] for hits in found]


def _distinct(
    opened: _Opened, rows: NDArray[np.float32], options: Options, known: Collection[str]
) -> list[list[Found]]:
    """The best of every row that are no copies of each other: more is asked for until there are enough, or no more."""
    cosine = float(opened.index.manifest.calibration.get("copies", {}).get("cosine", COPIES))
    answers: list[list[Found]] = []
    for row in rows:
        asked = 2 * options.k
        while True:
            (found,) = _nearest(opened, row[None], options, known, asked)
            kept = without_copies(opened.index, found, options.k, cosine)
            if len(kept) == options.k or len(found) < asked or asked >= _FARTHEST:
                break
            asked = min(4 * asked, _FARTHEST)
        answers.append(kept)
    return answers


def _curve(opened: _Opened, kind: Kind | None) -> Curve:
    return MIXED if kind is None else opened.curves[kind]
