"""Searches of an evaluation, one per direction: who asks, what is searched, what counts as found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipdistill.evaluation.metrics import Indices, best_ranks, unit
from clipdistill.evaluation.retrieval import matches, texts_of_pictures

if TYPE_CHECKING:
    from clipdistill.evaluation.evaluate import Evaluation

SHOWN = 10
_CURVE = 50
_CANDIDATES = 40


@dataclass(frozen=True)
class Search:
    """One direction under one model.

    ``queries [Q, D]`` and ``gallery [N, D]`` are unit rows, ``positives[q]`` the gallery rows that answer query
    ``q``; with ``itself`` the gallery is its own queries, and none finds itself.
    """

    queries: NDArray[np.float32]
    gallery: NDArray[np.float32]
    positives: Sequence[Indices]
    itself: bool = False

    def asking(self) -> list[int]:
        """The queries that have something to find."""
        return [query for query, own in enumerate(self.positives) if len(own) > self.itself]

    def curve(self) -> list[float]:
        """Recall at k = 1, 2, ... up to 50 or the size of the gallery, in percent."""
        exclude = np.arange(len(self.queries)) if self.itself else None
        ranks = np.sort(best_ranks((self.queries, self.gallery), self.positives, exclude))
        ks = np.arange(1, min(_CURVE, len(self.gallery) - self.itself) + 1)
        return [float(hits) * 100 / len(ranks) for hits in np.searchsorted(ranks, ks, side="right")]

    def answer(self, query: int) -> Answer:
        """Sort the gallery for one query; of equally similar rows, those that do not answer it come first."""
        scores = self.gallery @ self.queries[query]
        hit = np.zeros(len(scores), bool)
        hit[self.positives[query]] = True
        order = np.lexsort((hit, -scores))
        if self.itself:
            order = order[order != query]
        ranks = np.flatnonzero(hit[order]) + 1
        return Answer(order[:SHOWN].tolist(), hit[order[:SHOWN]].tolist(), int(ranks[0]), len(ranks))


@dataclass(frozen=True)
class Answer:
    """The first ten gallery rows for a query, which of them are hits, the first hit's rank, how many there are."""

    top: list[int]
    hits: list[bool]
    first: int
    matches: int

    @property
    def worth(self) -> float:
        """The sum over the hits shown of one over their rank: more for more hits, more for early ones."""
        return sum(1 / rank for rank, hit in enumerate(self.hits, 1) if hit)


def searches(found: Evaluation) -> dict[str, Search]:
    """Return the searches a model's galleries allow, by name: text_to_image, image_to_text, image_to_image.

    Positives are those of the metrics in :mod:`clipdistill.evaluation.retrieval`.
    """
    result: dict[str, Search] = {}
    gallery = found.galleries.get("retrieval")
    if gallery and found.texts is not None and len(found.texts):
        images, texts = unit(gallery.images), unit(found.texts, "captions")
        pictures = gallery.questions[1]
        result["text_to_image"] = Search(texts, images, pictures)
        result["image_to_text"] = Search(images, texts, texts_of_pictures(pictures, len(images)))
    if gallery := found.galleries.get("image_retrieval"):
        images = unit(gallery.images)
        search = Search(images, images, matches(gallery.alike), itself=True)
        result |= {"image_to_image": search} if search.asking() else {}
    return result


def choose(models: Sequence[Search], count: int) -> list[int]:
    """Choose up to ``count`` queries, the same for the same input, without a wish for who should look good.

    One from each of ``count`` equal stretches of the gallery: the one whose first ten results differ most in
    :attr:`Answer.worth` between models, whichever way, among 40 spread over the stretch.
    """
    asking = models[0].asking()
    stretches = np.array_split(np.array(asking), min(count, len(asking)))
    chosen = []
    for stretch in stretches:
        few = stretch[np.unique(np.linspace(0, len(stretch) - 1, _CANDIDATES).astype(int))]
        spreads = [_spread([search.answer(int(query)).worth for search in models]) for query in few]
        chosen.append(int(few[int(np.argmax(spreads))]))
    return chosen


def _spread(worths: Sequence[float]) -> float:
    return max(worths) - min(worths)
