"""How hard a search has to look to find what is really nearest: measured on queries such as people will ask.

Captions ask where the model reads any: rows of texts lie elsewhere than rows of pictures, and need a longer search.
Shapes: ``Q`` queries, ``D`` full width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipdistill.search.manifest import Effort, Manifest
from clipdistill.search.rescoring import TEN, matrix, nearest, search_rows
from clipdistill.search.runtime import SECTION, Runtime
from clipdistill.search.table import Table

Rows = NDArray[np.float32]

#: The share of the true ten that a search is to find; of the candidates that a graph gives for rescoring a little more.
GOAL, GOAL_BEFORE = 0.99, 0.995
#: What is tried, the cheapest first.
EFS = (24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
REFINES, RESCORES = (1, 2, 4), (2, 4, 8, 16, 32)
#: So many captions ask; where there are fewer than half of that, other rows ask too.
QUERIES = 200
#: Scores that differ by less are the same: whichever of two copies is found is right.
_SAME = 1e-5


@dataclass(frozen=True)
class Questions:
    """Rows to ask with, ``[Q, D]``, and what they are rows of."""

    rows: Rows
    asked: str


def questions(table: Table, manifest: Manifest, runtime: Runtime) -> Questions:
    """Captions of the index and of the model's own examples, and where these are few, pictures of the index."""
    rows, kinds = [np.empty((0, runtime.width), np.float32)], []
    if "T" in runtime.sides:
        captions = _some(sorted(set(_column(table, "caption")) - {""}), QUERIES)
        rows.append(runtime.texts(captions))
        kinds.append(f"{len(captions)} captions")
        if len(captions) < QUERIES // 2:
            rows.append(_golden(runtime))
            kinds.append(f"{len(rows[-1])} captions of the model's own examples")
    if (missing := QUERIES // 2 - sum(map(len, rows))) > 0:
        column = "full" if manifest.full else "vector"
        rows.append(matrix(table.rows(_some(list(_column(table, "id")), missing), [column])[column]))
        kinds.append(f"{len(rows[-1])} pictures")
    return Questions(np.concatenate(rows), ", ".join(kinds))


def tune(table: Table, manifest: Manifest, ask: Questions, graph: bool) -> Effort:
    """Find the least effort whose recall of the true ten nearest reaches :data:`GOAL`, else the one that comes closest.

    ``graph`` says whether there is one to search; else rows are rescored, or there is nothing to tune. ``table`` holds
    what the manifest describes.
    """
    chosen = Effort(queries=len(ask.rows), asked=ask.asked)
    truth = truth_of(table, manifest, ask.rows)

    def measured(effort: Effort) -> Effort:
        return replace(effort, recall=recall_of(table, manifest, ask.rows, truth, effort))

    if manifest.full:
        chosen = _first((measured(replace(chosen, rescore=more)) for more in RESCORES), GOAL_BEFORE if graph else GOAL)
    return _least_graph(replace(chosen, kind="hnsw"), measured) if graph else chosen


def truth_of(table: Table, manifest: Manifest, rows: Rows) -> list[tuple[list[str], Rows]]:
    """The ids and cosines of the ten rows nearest to each query, every row compared by all it has."""
    column = "full" if manifest.full else "vector"
    return nearest(table.scan(["id", column]), column, rows, TEN)


def recall_of(
    table: Table, manifest: Manifest, rows: Rows, truth: Sequence[tuple[list[str], Rows]], effort: Effort
) -> float:
    """The share of the true ten that a search finds; a row as near as the tenth is as right."""
    shares = [
        sum(hit.score >= scores[-1] - _SAME for hit in hits) / len(scores)
        for hits, (_, scores) in zip(search_rows(table, manifest, rows, TEN, effort=effort), truth, strict=True)
    ]
    return float(np.mean(shares))


def _first(efforts: Iterator[Effort], goal: float) -> Effort:
    """The first that reaches the goal, else the best of all."""
    tried = []
    for effort in efforts:
        tried.append(effort)
        if effort.recall >= goal:
            return effort
    return max(tried, key=lambda effort: effort.recall)


def _least_graph(base: Effort, measured: Callable[[Effort], Effort]) -> Effort:
    """The smallest ``ef`` that reaches the goal, and of those that do the least to compare again; else the best."""
    tried: list[Effort] = []
    efs: tuple[int, ...] = EFS
    for refine in REFINES:
        low, high = 0, len(efs)  # recall rises with ef, so halving finds the first that is enough
        while low < high:
            middle = (low + high) // 2
            tried.append(measured(replace(base, ef=max(efs[middle], TEN * refine), refine=refine)))
            low, high = (low, middle) if tried[-1].recall >= GOAL else (middle + 1, high)
        efs = efs[:high]  # what is compared more often must pay by a shorter search
    enough = [effort for effort in tried if effort.recall >= GOAL]
    if enough:
        return min(enough, key=lambda effort: (effort.ef, effort.refine))
    return max(tried, key=lambda effort: effort.recall)


def _column(table: Table, name: str) -> Iterator[str]:
    for batch in table.scan([name]):
        yield from batch[name].to_pylist()


def _golden(runtime: Runtime) -> Rows:
    with np.load(runtime.folder / runtime.record[SECTION]["golden"]["file"], allow_pickle=False) as kept:
        return np.asarray(kept["text_embeds"], np.float32)


def _some(values: Sequence[str], most: int) -> list[str]:
    """Some of many, by chance, and always the same."""
    if len(values) <= most:
        return list(values)
    places = np.random.default_rng(0).choice(len(values), most, replace=False)
    return [values[place] for place in sorted(places)]
