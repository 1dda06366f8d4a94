"""What an index asks of the engine that keeps its rows: LanceDB in a folder, or a Milvus cluster.

A row is a picture. Shapes: ``Q`` queries, ``D`` the width that is searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipdistill.search.filters import Filter
from clipdistill.search.manifest import Effort, Retired

#: What a search gives back of a picture; the vector and the thumbnail are asked for by id.
TOLD = ("id", "location", "caption", "tags", "width", "height")


def schema(width: int, full: int | None = None) -> pa.Schema:
    """Columns of an index: unit vectors ``[width]``, and ``full`` ones to rescore with where those are cut short.

    ``hash`` is of the picture's bytes, ``width`` and ``height`` are pixels, the thumbnail is a JPEG.
    """
    vectors = [pa.field("vector", pa.list_(pa.float32(), width))]
    vectors += [pa.field("full", pa.list_(pa.float32(), full))] if full else []
    return pa.schema(
        [
            pa.field("id", pa.string()),
            *vectors,
            pa.field("hash", pa.string()),
            pa.field("location", pa.string()),
            pa.field("caption", pa.string()),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("thumbnail", pa.binary()),
        ]
    )


@dataclass(frozen=True)
class Found:
    """A picture that a search found; ``score`` is the cosine."""

    id: str
    score: float
    location: str
    caption: str
    tags: tuple[str, ...]
    width: int
    height: int


@dataclass(frozen=True)
class Published:
    """A snapshot that is ready to be read: readers see it once the manifest of the index names it.

    ``graph`` says whether its rows can be searched through an approximate index, else every row is compared.
    """

    snapshot: int
    graph: bool


class Table(Protocol):
    """The rows of an index. Readers see what was last published; one writer writes beside it and publishes at the end.

    ``written`` reads what is written so far, published or not, instead: that is for the writer alone. Engines give a
    table by two class methods, ``open(manifest, folder)`` for the snapshot that the manifest names, and
    ``create(manifest, folder)``, which opens for writing what there is and makes what there is not. A search gives
    ``most`` hits, and no more.
    """

    most: int

    def count(self) -> int:
        """Rows that are searched."""
        ...

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        where: Filter | None = None,
        exact: bool = False,
        effort: Effort | None = None,
    ) -> list[list[Found]]:
        """The ``k`` nearest rows of each query ``[Q, D]``, best first, fewer where ``where`` leaves fewer.

        ``exact`` compares every row; else ``effort`` says how hard to look, by default that of the manifest. Queries
        as wide as the ``full`` rows are compared with those, all of them. Safe to call from several threads at once.
        """
        ...

    def rows(self, ids: Sequence[str], columns: Sequence[str], written: bool = False) -> pa.Table:
        """The rows of those ids that there are, in no particular order, with their ``id`` and ``columns``."""
        ...

    def scan(self, columns: Sequence[str], size: int = 4096, written: bool = False) -> Iterator[pa.RecordBatch]:
        """All rows that are searched, in batches."""
        ...

    def write(self, rows: pa.Table) -> None:
        """Add rows, in place of those with the same ids; nobody sees them yet. Durable when it returns."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Take rows away; nobody sees it yet."""
        ...

    def publish(self) -> Published:
        """Compact and index what was written and taken away; the same again where nothing was."""
        ...

    def forget(self, keep: Sequence[Retired]) -> None:
        """Remove all snapshots and tables that are neither published nor in ``keep``.

        Only after the manifest that names the published one was written.
        """
        ...

    def close(self) -> None:
        """Give back what is held; it cannot be searched any more."""
        ...
