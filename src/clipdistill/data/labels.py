"""The classes of labelled data, and which class of a classifier a label means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from clipdistill.data.samples import Source, readable
from clipdistill.errors import DataError

#: Labels that are named in an error.
_TOLD = 5


def classes_of(source: Source) -> tuple[str, ...]:
    """The labels of a source, each once, in alphabetical order: class number ``k`` is the ``k``-th.

    Raises:
        DataError: there are fewer than two.
    """
    labels = {sample.label for _, sample in readable(source, range(len(source)))} - {None}
    if len(labels) < 2:
        raise DataError(
            f"{source.uri}: classification needs at least two labels, found {len(labels)}. Put pictures into one "
            "folder per class, or name the column that holds the class: DATA?label=COLUMN."
        )
    return tuple(sorted(str(label) for label in labels))


def labels_of(source: Source) -> dict[str, str]:
    """The label of every sample that has one, by sample id."""
    samples = readable(source, range(len(source)))
    return {sample.id: sample.label for _, sample in samples if sample.label is not None}


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
