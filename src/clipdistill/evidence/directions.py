"""One model's rows as searches: who asks, what is searched, what answers, and to which picture a query belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipdistill.evaluation.agreement import Asked, strips
from clipdistill.evaluation.compression import cut
from clipdistill.evaluation.evaluate import Evaluation, Gallery, class_prompts, embed_texts
from clipdistill.evaluation.metrics import Indices, Rows, best_ranks, mean_average_precision, unit
from clipdistill.evaluation.retrieval import matches, texts_of_pictures
from clipdistill.evaluation.zeroshot import class_embeddings
from clipdistill.models.encoder import DualEncoder

#: The figure by which a direction is told in one number.
FIRST = {
    "text_to_image": "text_to_image_R@1",
    "image_to_text": "image_to_text_R@1",
    "image_to_image": "image_to_image_R@1",
    "zeroshot": "zeroshot_acc1",
}


@dataclass(frozen=True)
class Direction:
    """Queries that have something to find, as the model gives them.

    ``queries [Q, D]``, ``gallery [N, D]``; ``positives[q]`` the gallery rows that answer query ``q``, ``numbers [Q]``
    its place among all texts or pictures, ``pictures [Q]`` the picture it belongs to. With ``itself`` the gallery holds
    the queries, in the places ``numbers``, and none finds itself.
    """

    queries: Rows
    gallery: Rows
    positives: Sequence[Indices]
    numbers: NDArray[np.intp]
    pictures: NDArray[np.intp]
    itself: bool = False

    @property
    def asked(self) -> Asked:
        """Queries and what is searched."""
        return self.queries, self.gallery

    @property
    def exclude(self) -> NDArray[np.intp] | None:
        """The gallery row that each query leaves out."""
        return self.numbers if self.itself else None

    def ranks(self) -> NDArray[np.intp]:
        """The rank of the most similar positive of each query, 1 is first, ``[Q]``."""
        return best_ranks(self.asked, self.positives, self.exclude)

    def average_precisions(self) -> NDArray[np.float64]:
        """The average precision of each query, as a fraction, ``[Q]``."""
        queries, gallery = unit(self.queries), unit(self.gallery)
        found = np.empty(len(queries))
        for part in strips(len(queries), len(gallery)):
            scores = queries[part] @ gallery.T
            for row, query in enumerate(range(part.start, part.stop)):
                left_out = self.numbers[query : query + 1] if self.itself else None
                found[query] = mean_average_precision(scores[row : row + 1], [self.positives[query]], left_out) / 100
        return found

    def few(self, most: int) -> Direction:
        """At most so many of the queries, spread evenly."""
        if len(self.queries) <= most:
            return self
        kept = np.linspace(0, len(self.queries) - 1, most).astype(np.intp)
        return replace(
            self,
            queries=self.queries[kept],
            positives=[self.positives[query] for query in kept],
            numbers=self.numbers[kept],
            pictures=self.pictures[kept],
        )


@dataclass(frozen=True)
class Prompts:
    """Zero-shot classes under one model.

    ``rows [P, D]`` are the prompts' rows, class after class, ``sizes [C]`` how many each class has; ``labelled [Q]``
    are the pictures that have a label, and ``labels [Q]`` the numbers of their classes.
    """

    rows: Rows
    sizes: list[int]
    labelled: NDArray[np.intp]
    labels: NDArray[np.intp]

    @classmethod
    def of(cls, encoder: DualEncoder, gallery: Gallery) -> Prompts:
        """Embed the classes that a gallery's labels make, with the sentences of ``eval``."""
        labelled = [index for index, sample in enumerate(gallery.samples) if sample.label is not None]
        labels = [str(gallery.samples[index].label) for index in labelled]
        names, prompts = class_prompts(labels)
        place = {prompt: number for number, prompt in enumerate(dict.fromkeys(p for each in prompts for p in each))}
        rows = embed_texts(encoder, list(place))[[place[prompt] for each in prompts for prompt in each]]
        number = {name: number for number, name in enumerate(names)}
        own = np.array([number[label] for label in labels], np.intp)
        return cls(rows, [len(each) for each in prompts], np.array(labelled, np.intp), own)


@dataclass(frozen=True)
class Side:
    """One of the two models: what was measured of it, the bytes of its weights, and its zero-shot classes."""

    found: Evaluation
    weight_bytes: int
    prompts: Prompts | None = None

    @classmethod
    def of(cls, encoder: DualEncoder, found: Evaluation) -> Side:
        """Look at a model that was evaluated; a classifier's own head needs no prompts."""
        size = sum(parameter.numel() * parameter.element_size() for parameter in encoder.module.parameters())
        gallery = found.galleries.get("zeroshot")
        sentences = gallery is not None and gallery.ranks is None
        return cls(found, size, Prompts.of(encoder, gallery) if gallery is not None and sentences else None)

    @property
    def width(self) -> int:
        """The width of its rows."""
        return int(next(iter(self.found.galleries.values())).images.shape[1])

    def directions(self, width: int | None = None) -> dict[str, Direction]:
        """Return every direction that was measured by its name, as in :data:`FIRST`; with rows cut to ``width``."""
        result: dict[str, Direction] = {}
        galleries = self.found.galleries
        if "retrieval" in galleries and self.found.texts is not None:
            result |= _captioned(galleries["retrieval"], _cut(self.found.texts, width), width)
        if "image_retrieval" in galleries:
            result["image_to_image"] = _alike(galleries["image_retrieval"], width)
        if self.prompts is not None:
            result["zeroshot"] = _classes(galleries["zeroshot"], self.prompts, width)
        return result


def _cut(rows: Rows, width: int | None) -> Rows:
    return rows if width is None else cut(rows, width)


def _captioned(gallery: Gallery, texts: Rows, width: int | None) -> dict[str, Direction]:
    """Both directions between captions and pictures; every caption belongs to the picture it was told of."""
    images, pictures = _cut(gallery.images, width), gallery.questions[1]
    copies = _copies(gallery)
    owners = np.array([owner for owner, _ in gallery.told], np.intp)
    answers = texts_of_pictures(pictures, len(images))
    asking = np.flatnonzero([len(own) > 0 for own in answers])
    return {
        "text_to_image": Direction(texts, images, pictures, np.arange(len(texts)), copies[owners]),
        "image_to_text": Direction(images[asking], texts, [answers[own] for own in asking], asking, copies[asking]),
    }


def _alike(gallery: Gallery, width: int | None) -> Direction:
    images, answers = _cut(gallery.images, width), matches(gallery.alike)
    asking = np.flatnonzero([len(own) > 1 for own in answers])
    return Direction(
        images[asking], images, [answers[own] for own in asking], asking, _copies(gallery)[asking], itself=True
    )


def _copies(gallery: Gallery) -> NDArray[np.intp]:
    """The first picture with the same content as each, ``[N]``: copies are drawn together, as one picture is."""
    first: dict[int, int] = {}
    return np.array([first.setdefault(content, row) for row, content in enumerate(gallery.contents)], np.intp)


def _classes(gallery: Gallery, prompts: Prompts, width: int | None) -> Direction:
    """Labelled pictures search the classes; of classes with the same embedding the first is the answer."""
    centres = class_embeddings(_cut(prompts.rows, width), prompts.sizes)
    _, kinds = np.unique(centres, axis=0, return_inverse=True)
    kinds = kinds.reshape(-1)
    wins = [first + np.flatnonzero(kinds[first:] == kinds[first]) for first in range(len(centres))]
    images = _cut(gallery.images, width)[prompts.labelled]
    return Direction(images, centres, [wins[label] for label in prompts.labels], prompts.labelled, prompts.labelled)
