"""The rows of an index in LanceDB, in the index's own folder: every write makes a version, and a reader holds one.

Vectors are searched exactly while there are few, else by a graph with scalar quantisation (Lance's IVF_HNSW_SQ), whose
candidates are compared again by their full precision. Shapes: ``Q`` queries, ``W`` width that is searched.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipdistill.errors import UnavailableError
from clipdistill.progress import console
from clipdistill.search.filters import Comparison, Filter
from clipdistill.search.manifest import Effort, Manifest, Retired
from clipdistill.search.rescoring import TEN, nearest
from clipdistill.search.table import TOLD, Found, Published, schema

#: The folder of the database, in that of the index.
ROWS = "rows"
#: So many rows are compared one by one; with more of them a graph is built.
FEW = 10_000
#: A search that would keep a larger share of the rows compares all of them instead.
MOST_OF = 0.05
#: Candidates that a search beside a filter keeps at least, and times k compares again: of 100,000 rows it then missed
#: less than half a percent of the nearest, whatever share of them the filter left.
FILTERED = (256, 4)
#: A graph is for so many rows; there is another for the next.
LARGEST_GRAPH = 2_000_000
#: Every publishing adds a small graph of what is new; with more of them one is built of all.
MOST_GRAPHS = 8
#: With more queries than these it is quicker to read the rows once than to ask the database for each.
MANY = 4
_IDS = 1000
_NEVER = timedelta(days=36_500)
#: Lance compares ages by the clock: what is to stay is given some seconds.
_MARGIN = timedelta(seconds=10)


class LanceTable:
    """The :class:`~clipdistill.search.table.Table` of a version, or of the newest one for whoever writes."""

    most = sys.maxsize

    def __init__(self, database: Any, table: Any, manifest: Manifest, folder: Path) -> None:
        self._database, self._table, self._manifest, self._folder = database, table, manifest, folder
        self._count: int = table.count_rows()
        self._snapshot = manifest.snapshot

    @classmethod
    def open(cls, manifest: Manifest, folder: Path) -> LanceTable:
        """Open the version that the manifest names; raises :class:`SearchError` where it is not there any more."""
        database = _connect(folder)
        with _told(folder):
            table = database.open_table(manifest.table)
            table.checkout(manifest.snapshot)
            return cls(database, table, manifest, folder)

    @classmethod
    def create(cls, manifest: Manifest, folder: Path) -> LanceTable:
        """Open the newest version for writing, and make an empty table if there is none."""
        database = _connect(folder)
        with _told(folder):
            columns = schema(manifest.width, manifest.full)
            table = database.create_table(manifest.table, schema=columns, exist_ok=True)
            return cls(database, table, manifest, folder)

    def count(self) -> int:
        return self._count

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        where: Filter | None = None,
        exact: bool = False,
        effort: Effort | None = None,
    ) -> list[list[Found]]:
        column = "full" if queries.shape[1] == self._manifest.full else "vector"
        effort = effort or self._manifest.effort
        with _told(self._folder):
            reach = None if exact or column == "full" else self._reach(effort, k, where is not None)
            if reach is None and where is None and len(queries) > MANY:
                return self._read_through(queries, k, column)
            return [self._ask(query, k, where, column, reach) for query in queries]

    def rows(self, ids: Sequence[str], columns: Sequence[str], written: bool = False) -> pa.Table:
        columns = list(dict.fromkeys(["id", *columns]))
        parts = [pa.schema([self._table.schema.field(name) for name in columns]).empty_table()]
        wanted = list(dict.fromkeys(ids))
        with _told(self._folder):
            for start in range(0, len(wanted), _IDS):
                some = tuple(wanted[start : start + _IDS])
                asked = self._table.search().where(Comparison("id", "in", some).to_sql()).select(columns)
                parts.append(asked.limit(len(some)).to_arrow())
        return pa.concat_tables(parts)

    def scan(self, columns: Sequence[str], size: int = 4096, written: bool = False) -> Iterator[pa.RecordBatch]:
        with _told(self._folder):
            yield from self._table.search().select(list(columns)).to_batches(size)

    def write(self, rows: pa.Table) -> None:
        if rows.num_rows:
            with _told(self._folder):
                merging = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                merging.execute(rows.cast(self._table.schema))

    def delete(self, ids: Sequence[str]) -> None:
        with _told(self._folder):
            for start in range(0, len(ids), _IDS):
                self._table.delete(Comparison("id", "in", tuple(ids[start : start + _IDS])).to_sql())

    def publish(self) -> Published:
        with _told(self._folder):
            self._table.optimize(cleanup_older_than=_NEVER)
            self._count = self._table.count_rows()
            kept = {one.name: one for one in self._table.list_indices()}
            if self._count and "id_idx" not in kept:
                self._table.create_index("id", config=_ordered(), replace=True)
            graphs = kept["vector_idx"].num_segments if "vector_idx" in kept else 0
            if self._count > FEW and not 0 < graphs <= MOST_GRAPHS:
                self._build_graph()
            self._snapshot = self._table.version
            return Published(self._snapshot, self._count > FEW)

    def forget(self, keep: Sequence[Retired]) -> None:
        tables = {self._manifest.table, *(one.table for one in keep)}
        oldest = min([self._snapshot, *(one.snapshot for one in keep if one.table == self._manifest.table)])
        with _told(self._folder):
            made = {one["version"]: one["timestamp"].timestamp() for one in self._table.list_versions()}
            if oldest in made:  # with the lock held, nobody else is writing what Lance cannot account for
                age = timedelta(seconds=max(time.time() - made[oldest], 0)) + _MARGIN
                self._table.optimize(cleanup_older_than=age, delete_unverified=True)
            for name in self._database.list_tables().tables:
                if name not in tables:
                    self._database.drop_table(name)

    def close(self) -> None:
        """There is nothing to give back: what is held ends with the objects."""

    def _reach(self, effort: Effort, k: int, filtered: bool) -> tuple[int, int] | None:
        """How many candidates a search of the graph keeps, and times k compares again; None: it compares every row.

        What was tuned for ten hits is more for more, whose last ones are harder to find. A filter makes the way through
        the graph longer; one that leaves less than a tenth of the rows is searched without it, by Lance itself.
        """
        if effort.kind == "exact" or not effort.ef:
            return None
        reach, refine = (effort.ef if k <= TEN else effort.ef * k * 2 // TEN), effort.refine or 1
        if filtered:
            reach, refine = max(reach * 4, FILTERED[0]), max(refine, FILTERED[1])
        refine = -(-refine * max(k, TEN) // k)
        return None if reach > self._count * MOST_OF else (max(reach, k * refine), refine)

    def _ask(
        self, query: NDArray[np.float32], k: int, where: Filter | None, column: str, reach: tuple[int, int] | None
    ) -> list[Found]:
        asked = self._table.search(query, vector_column_name=column, query_type="vector").distance_type("cosine")
        asked = asked.limit(k).select([*TOLD, "_distance"])
        if where is not None:
            asked = asked.where(where.to_sql(), prefilter=True)
        if reach is None:
            asked = asked.bypass_vector_index()
        else:
            asked = asked.ef(reach[0]).refine_factor(reach[1]).nprobes(_graphs(self._count))
        rows = asked.to_arrow()
        scores = 1 - rows["_distance"].to_numpy()
        return _ordered_hits([_found(row, float(score)) for row, score in zip(rows.to_pylist(), scores, strict=True)])

    def _read_through(self, queries: NDArray[np.float32], k: int, column: str) -> list[list[Found]]:
        """Compare all rows with all queries at once."""
        near = nearest(self._table.search().select(["id", column]).to_batches(4096), column, queries, k)
        ids = [name for names, _ in near for name in names]
        told = {row["id"]: row for row in self.rows(ids, TOLD).to_pylist()}
        return [
            _ordered_hits([_found(told[name], float(score)) for name, score in zip(names, scores, strict=True)])
            for names, scores in near
        ]

    def _build_graph(self) -> None:
        from lancedb.index import HnswSq

        console.print(f"building the graph of {self._count:,} rows", markup=False)
        config = HnswSq(distance_type="cosine", num_partitions=_graphs(self._count))
        self._table.create_index("vector", config=config, replace=True)


def _connect(folder: Path) -> Any:
    # Its log is about things that are done on purpose here, such as statistics that nobody asked for.
    os.environ.setdefault("LANCEDB_LOG", "error")
    import lancedb

    return lancedb.connect(str((folder / ROWS).absolute()))


def _ordered() -> Any:
    from lancedb.index import BTree

    return BTree()


def _graphs(rows: int) -> int:
    return -(-rows // LARGEST_GRAPH)


def _found(row: dict[str, Any], score: float) -> Found:
    return Found(score=score, **{name: row[name] for name in TOLD} | {"tags": tuple(row["tags"] or ())})


def _ordered_hits(hits: list[Found]) -> list[Found]:
    """Best first; what is equally near by its id, so that the same search gives the same hits."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Tell of the database's errors, which are of many classes, as one of ours."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UnavailableError(
            f"the rows of {folder} cannot be read or written: {reason}. If the index was published several times since "
            f"it was opened, open it again; else see what is wrong with: clipdistill index check {folder}"
        ) from error
