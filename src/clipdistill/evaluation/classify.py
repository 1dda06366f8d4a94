"""Classification by a model's own head: pictures against the classes it was trained to tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.labels import class_numbers
from clipdistill.errors import DataError
from clipdistill.evaluation.metrics import Rows, best_ranks
from clipdistill.evaluation.zeroshot import Classes


@dataclass(frozen=True)
class Answers:
    """What a classifier is asked: ``numbers`` are the samples' classes by id, ``columns`` the logits that count.

    With ``columns`` a number is a place among them: a benchmark of 200 classes is told apart by their 200 logits.
    """

    numbers: Mapping[str, int]
    columns: tuple[int, ...] | None = None

    def ranks(self, logits: Rows, ids: Sequence[str]) -> NDArray[np.intp]:
        """Return the rank of each sample's class among its logits ``[N, K]``, see :func:`label_ranks`, ``[N]``."""
        own = logits if self.columns is None else logits[:, list(self.columns)]
        return label_ranks(own, [self.numbers.get(id, -1) for id in ids])


def answers(
    labels: Mapping[str, str], heads: Sequence[str], classes: Classes | None, where: str, model: str
) -> Answers:
    """Find what a classifier with the classes ``heads`` has to answer for samples with ``labels``, by id.

    Labels are found by name, see :func:`class_numbers`; the ``classes`` of a benchmark by their published numbers where
    the head has as many as are published, unless its names are in another order. Raises :class:`DataError` for
    labels that are not found.
    """
    if classes is None:
        return Answers(class_numbers(labels, heads, where, model))
    place = {label: number for number, label in enumerate(classes.labels)}
    return Answers({id: place[label] for id, label in labels.items()}, _columns(classes, heads, where, model))


def _columns(classes: Classes, heads: Sequence[str], where: str, model: str) -> tuple[int, ...]:
    """The number in a head of every class of a benchmark."""
    if len(heads) == len(classes.published) > 0 and _in_order(heads, classes.published):
        return classes.numbers
    try:
        found = class_numbers({label: label for label in classes.labels}, heads, where, model)
    except DataError as error:
        order = f", or the {len(classes.published):,} of the benchmark in their order" if classes.published else ""
        raise DataError(
            f"{model} is a classifier of {len(heads):,} classes, and this suite tells {len(classes.labels):,} others "
            f"apart ({where}). Its head can be measured here if its classes have the same names{order}. Leave it out "
            "of this suite."
        ) from error
    return tuple(found.values())


def _in_order(heads: Sequence[str], published: Sequence[str]) -> bool:
    """Whether the names of a head do not speak against an order; a few that ImageNet uses have several meanings."""
    places: dict[str, set[int]] = {}
    for number, head in enumerate(heads):
        for name in (head, *head.split(",")):
            places.setdefault(_plain(name), set()).add(number)
    known = [number in places[_plain(name)] for number, name in enumerate(published) if _plain(name) in places]
    return 2 * sum(known) >= len(known)


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold().strip()


def label_ranks(logits: Rows, numbers: Sequence[int]) -> NDArray[np.intp]:
    """Return the rank of each picture's own class among its logits ``[N, K]``, 1 is first, ``[N]``.

    ``numbers [N]`` is the class of each picture, -1 for none: its rank is 0. A class that is exactly as likely counts
    against the true one.
    """
    own = np.asarray(numbers, np.intp)
    ranks = np.zeros(len(own), np.intp)
    if (own >= 0).any():
        ranks[own >= 0] = best_ranks(logits[own >= 0], list(own[own >= 0, None]))
    return ranks


def accuracies(ranks: NDArray[np.intp]) -> dict[str, float]:
    """Return ``classify_top1`` and ``classify_top5`` in percent of the pictures that have a label.

    ``ranks [N]`` are those of :func:`label_ranks`. With five classes or fewer, top 5 is 100. Raises
    :class:`DataError` if there is no label.
    """
    known = ranks[ranks > 0]
    if not len(known):
        raise DataError(f"classification needs labels, and none of the {len(ranks)} pictures has one.")
    return {f"classify_top{k}": 100.0 * float(np.mean(known <= k)) for k in (1, 5)}
