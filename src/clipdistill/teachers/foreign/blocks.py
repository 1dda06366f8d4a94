"""What every reader of other people's files gives: blocks of rows with their keys, a few megabytes at a time.

Shapes: ``n`` samples of a block, ``V`` views of each, ``D`` width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.samples import Source
from clipdistill.errors import StoreError
from clipdistill.teachers.foreign.known import Known
from clipdistill.teachers.manifest import ViewPlan

#: Rows read at once.
ROWS = 8192


@dataclass(frozen=True)
class Origin:
    """Where the samples of a block stand, for errors: ``photos/0.npy, row 12``."""

    file: Path
    unit: str
    numbers: Sequence[int | str]

    def place(self, sample: int) -> str:
        """Where sample number ``sample`` of the block stands."""
        return f"{self.file}, {self.unit} {self.numbers[sample]}"


@dataclass(frozen=True)
class Block:
    """Some rows of one side as somebody else wrote them, ``[n * V, D]``, with the ``n`` keys that find them.

    ``views [n * V, 9]`` are explicit views. ``done`` is how far the reading is, in the units of :class:`Foreign`.
    """

    side: Literal["image", "text"]
    keys: list[str]
    rows: NDArray[Any]
    origin: Origin
    done: int = 0
    views: NDArray[np.float64] | None = None

    def only(self, kept: Sequence[int], keys: list[str]) -> Block:
        """The samples at positions ``kept``, under other keys."""
        if len(kept) == len(self.keys):
            return replace(self, keys=keys)
        rows, views = (None if a is None else _pick(a, kept, len(self.keys)) for a in (self.rows, self.views))
        assert rows is not None
        origin = replace(self.origin, numbers=[self.origin.numbers[at] for at in kept])
        return replace(self, keys=keys, rows=rows, views=views, origin=origin)


@dataclass(frozen=True)
class Choice:
    """What the user chose: the column of ids, and the data that were embedded."""

    id_column: str | None = None
    source: Source | None = None
    known: Known | None = None


@dataclass
class Foreign:
    """Files of one layout, opened: ``total`` units long, to be read once.

    ``by`` says what finds the text rows. ``left_out`` counts, by what they are, things that are not imported, and is
    filled while ``blocks`` is read. ``remarks`` are lines for the user.
    """

    layout: str
    blocks: Iterator[Block]
    total: int
    unit: str
    by: Literal["id", "caption"] = "id"
    views: ViewPlan = field(default_factory=ViewPlan)
    left_out: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The layout without the files it consists of."""
        return self.layout.partition(" (")[0]


def load_rows(path: Path) -> NDArray[Any]:
    """Map the rows of a ``.npy``, ``[N, D]``; raises StoreError for anything else."""
    return check_rows(load_npy(path), str(path))


def load_npy(path: Path) -> NDArray[Any]:
    """Map an array, never unpickling; raises StoreError."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreError(f"{path} cannot be read as an array of numbers or strings: {error}") from error
    return array


def check_rows(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Return ``array`` if it can be embeddings; raises StoreError with its type and shape if not."""
    if array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        raise StoreError(
            f"{where} is {array.dtype} {list(array.shape)}, expected embeddings: floating-point numbers [rows, width]."
        )
    return array


def as_ids(values: Sequence[Any], where: str, unit: str, first: int = 0) -> list[str]:
    """Ids as strings; raises StoreError for one that is neither a string nor a whole number, or empty."""
    for number, value in enumerate(values, first):
        if not isinstance(value, (str, int, np.integer)) or isinstance(value, bool) or value == "":
            raise StoreError(f"{where}, {unit} {number}: the id is {value!r}, expected a string or a whole number.")
    return [str(value) for value in values]


def as_caption(value: Any) -> str:
    """A caption as data sources give those of text files: without white space at its ends; None is empty."""
    return "" if value is None else str(value).strip()


def _pick(array: NDArray[Any], kept: Sequence[int], samples: int) -> NDArray[Any]:
    picked: NDArray[Any] = array.reshape(samples, -1, array.shape[1])[list(kept)].reshape(-1, array.shape[1])
    return picked
