"""The classes of labelled data."""

from __future__ import annotations

from clipdistill.data.samples import Source
from clipdistill.errors import DataError


def classes_of(source: Source) -> tuple[str, ...]:
    """The labels of a source, each once, in alphabetical order: class number ``k`` is the ``k``-th.

    Raises:
        DataError: there are fewer than two.
    """
    labels = {source[index].label for index in range(len(source))} - {None}
    if len(labels) < 2:
        raise DataError(
            f"{source.uri}: classification needs at least two labels, found {len(labels)}. Put pictures into one "
            "folder per class, or name the column that holds the class: DATA?label=COLUMN."
        )
    return tuple(sorted(str(label) for label in labels))
