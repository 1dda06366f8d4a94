"""An index of pictures, open for searching: what its manifest names, and nothing that came later.

Shapes: ``Q`` queries, ``D`` full width of the model's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipdistill.errors import SearchError
from clipdistill.files import mark
from clipdistill.search.filters import Filter
from clipdistill.search.manifest import MANIFEST, Manifest, find
from clipdistill.search.rescoring import search_rows, unit_queries, vectors_of
from clipdistill.search.table import Found, Table
from clipdistill.search.tables import open_table


class Index:
    """A published version of an index. Everything here can be called from several threads at once."""

    def __init__(self, folder: Path, manifest: Manifest, table: Table, seen: tuple[int, ...]) -> None:
        self.folder, self.manifest, self.table, self._mark = folder, manifest, table, seen

    @classmethod
    def open(cls, where: str | Path, engine: str | None = None) -> Index:
        """Open an index's folder at the version it was last published; ``engine`` says where the rows are now, if they
        have moved to another Milvus.

        Raises :class:`SearchError` for a folder that is no index, or not a complete one.
        """
        folder = Path(where)
        seen = _mark(folder)
        manifest = Manifest.read(folder)
        if engine:
            if not manifest.engine:
                raise SearchError(f"{folder} keeps its rows in LanceDB, in its own folder; leave the engine out.")
            manifest = replace(manifest, engine=engine)
        return cls(folder, manifest, open_table(manifest, folder), seen)

    @property
    def version(self) -> int:
        """The number of the published version: each one's is higher than the last's, also over a rebuild."""
        return self.manifest.version

    @property
    def count(self) -> int:
        """Pictures in it."""
        return self.manifest.count

    @property
    def model(self) -> Path:
        """Where its model is, or was."""
        return find(self.manifest.model.path, self.folder)

    def search(
        self, queries: NDArray[np.float32], k: int, where: Filter | None = None, exact: bool = False
    ) -> list[list[Found]]:
        """The ``k`` pictures nearest to each query ``[Q, D]``, best first, fewer where there are fewer.

        Queries are rows of the model's full width. Raises :class:`SearchError` for other shapes, and for rows that
        have no direction.
        """
        rows = unit_queries(queries, self.manifest.model.width)
        if k < 1:
            raise SearchError(f"{k} pictures are asked for; expected 1 or more.")
        return search_rows(self.table, self.manifest, rows, k, where, exact) if len(rows) else []

    def rows(self, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """The rows of those ids that there are, in no particular order, with their ``id`` and ``columns``."""
        return self.table.rows(ids, columns)

    def vectors(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Unit rows ``[D]``, full width, of those ids that there are."""
        column = "full" if self.manifest.full else "vector"
        return vectors_of(self.table.rows(ids, [column]), column)

    def thumbnail(self, name: str) -> bytes | None:
        """The JPEG of the picture with that id; None for an id that there is not, and for one without."""
        found = self.table.rows([name], ["thumbnail"])["thumbnail"].to_pylist()
        return found[0] or None if found else None

    def current(self) -> Index:
        """This index, or the version that was published since, opened anew. Cheap; the old one stays open."""
        return self if _mark(self.folder) == self._mark else Index.open(self.folder, self.manifest.engine)

    def close(self) -> None:
        """Give back what is held."""
        self.table.close()


def _mark(folder: Path) -> tuple[int, ...]:
    """What changes whenever the manifest is written; nothing where there is none."""
    try:
        return mark(folder / MANIFEST)
    except FileNotFoundError:
        return ()
