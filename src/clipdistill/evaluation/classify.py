"""Classification by a model's own head: pictures against the classes it was trained to tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import DataError
from clipdistill.evaluation.metrics import Rows, best_ranks

#: Labels that are named in an error.
_TOLD = 5


def class_numbers(labels: Mapping[str, str], classes: Sequence[str], where: str, model: str) -> dict[str, int]:
    """Return the number of each sample's class, by sample id, from its label.

    A label is a class's name; failing that, the name in other letters or with underscores for spaces, or one of
    several that commas separate, as ImageNet's are ("tench, Tinca tinca"). ``where`` and ``model`` name the data and
    the classifier in messages. Raises :class:`DataError` for labels that are no class or could be several.
    """
    exact, alike = _places(classes, lambda name: [name]), _places(classes, _names)
    known = {label: exact.get(label) or alike.get(_plain(label), []) for label in sorted(set(labels.values()))}
    if lost := [label for label, numbers in known.items() if not numbers]:
        raise DataError(
            f"{_listing(lost)} of {where} {'is' if len(lost) == 1 else 'are'} not among the {len(classes)} classes of "
            f"{model} ({_listing(classes)}). Name the labels as the classifier does, or evaluate on other data."
        )
    if double := [label for label, numbers in known.items() if len(numbers) > 1]:
        raise DataError(
            f"{_listing(double)} of {where} could be several classes of {model}: {known[double[0]]}. "
            "Name the labels in full, as the classifier does."
        )
    return {sample: known[label][0] for sample, label in labels.items()}


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


def _places(classes: Sequence[str], names: Callable[[str], Iterable[str]]) -> dict[str, list[int]]:
    """The numbers of the classes that go by each name."""
    places: dict[str, list[int]] = {}
    for number, title in enumerate(classes):
        for name in names(title):
            places.setdefault(name, []).append(number)
    return places


def _names(name: str) -> set[str]:
    return {_plain(part) for part in (name, *name.split(","))}


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _listing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(repr(name) for name in names[:_TOLD]) + more
