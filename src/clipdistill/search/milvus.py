"""The rows of an index in a Milvus cluster: many machines, the same searches.

A collection cannot be pinned to a snapshot as a Lance table can. So every row says itself in which snapshot it appears,
``born``, and in which it is gone, ``died``, and a reader of snapshot s asks for rows with ``born <= s < died``. What is
written for the next snapshot is seen by nobody until the manifest names that one, and then all at once. A changed
picture is a new row; its old one stays until no reader needs it.

Vectors are searched by HNSW at full precision. A path that ends in ``.db`` instead of a host is a Milvus Lite file: a
prototype of one process, for tests and trials.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipdistill.errors import SearchError, UnavailableError, need
from clipdistill.search.filters import SEARCHABLE, Filter
from clipdistill.search.manifest import Effort, Manifest, Retired
from clipdistill.search.milvus_rows import (
    ALIVE,
    KEYS,
    OWNER,
    add_fields,
    found_of,
    key_of,
    ordered,
    owner_record,
    to_batch,
    to_records,
)
from clipdistill.search.rescoring import nearest
from clipdistill.search.table import TOLD, Found, Published, schema

if TYPE_CHECKING:
    from pymilvus import MilvusClient

#: Holds user and password, or an API key; it is never written down.
TOKEN = "MILVUS_TOKEN"
#: The graph: neighbours of a row, candidates when it is built, candidates of a search that is not tuned yet.
GRAPH = {"M": 32, "efConstruction": 360}
EF = 128
#: An index of so many rows is searched with so many candidates at least: that costs little, and misses next to nothing.
FEW, REACH_OF_FEW = 10_000, 1024
#: A search gives no more, says Milvus.
MOST = 16_384
#: Rows and ids in one message, which Milvus takes up to 64 MB of.
WRITTEN, ASKED, QUERIES = 500, 500, 100
_SECONDS_BETWEEN_LOOKS = 0.2


def address(engine: str) -> tuple[str, str]:
    """The address that pymilvus connects to, and the collection: of ``milvus://host:19530/photos`` or ``photos.db``.

    ``milvus+https`` is a connection in TLS. Raises :class:`SearchError` for anything else.
    """
    if "://" not in engine and engine.endswith(".db"):
        return str(Path(engine).absolute()), "pictures"
    found = re.fullmatch(r"milvus(\+https)?://([^/@\s]+)/([A-Za-z_]\w{0,199})", engine, re.ASCII)
    if found is None:
        raise SearchError(
            f"the engine '{engine}' is none: expected milvus://HOST:PORT/COLLECTION, with milvus+https for TLS. "
            f"A collection has letters, digits and underscores; user and password belong in {TOKEN}, as USER:PASSWORD."
        )
    secure, host, collection = found.groups()
    return f"{'https' if secure else 'http'}://{host}", collection


class MilvusTable:
    """The :class:`~clipdistill.search.table.Table` of one collection: of a snapshot, or of what is written so far."""

    most = MOST

    def __init__(self, client: MilvusClient, name: str, manifest: Manifest) -> None:
        self._client, self.name, self.snapshot = client, name, manifest.snapshot
        self.collection = collection_of(name, manifest.table)
        self.schema = schema(manifest.width, manifest.full)
        self._ef = manifest.effort.ef
        self._counted: tuple[int, int] | None = None

    @classmethod
    def open(cls, manifest: Manifest, folder: Path) -> MilvusTable:
        """Open the collection of an index at the snapshot that its manifest names.

        Raises :class:`SearchError` where Milvus cannot be reached, and where there is no such collection, or another.
        """
        table = cls(*connect(manifest), manifest)
        table._load()
        return table

    @classmethod
    def create(cls, manifest: Manifest, folder: Path) -> MilvusTable:
        """Open the collection of an index for writing, and make it if there is none.

        Raises :class:`SearchError` where Milvus cannot be reached, and for a collection that is another index's.
        """
        table = cls(*connect(manifest), manifest)
        with told(table.collection):
            _create(table._client, table.collection, manifest.width, manifest.full)
        table._load()
        table._own(folder.absolute().name)
        return table

    def _own(self, index: str) -> None:
        """Put the index's name into the collection, if none is there yet; refuse to begin in another's."""
        owner = self._owner(self.collection)
        if owner is None:
            self._upsert([owner_record(index, self.schema)])
        elif owner != index and not self.snapshot:
            raise SearchError(
                f"the collection {self.collection} is in Milvus already, and belongs to the index {owner}, not to "
                f"{index}. Name another collection, or drop that one."
            )

    def _owner(self, collection: str) -> str | None:
        with told(collection):
            found = self._client.query(collection, filter=f'pk == "{OWNER}"', output_fields=["id"], **_latest(True))
        return str(found[0]["id"]) if found else None

    def _load(self) -> None:
        """Make the collection ready for searching; raises :class:`SearchError` if it is not what is expected."""
        with told(self.collection):
            if not self._client.has_collection(self.collection):
                raise SearchError(
                    f"there is no collection {self.collection} in Milvus. Was it dropped, or is this another cluster? "
                    "Make the index again with clipdistill index."
                )
            fields = self._fields(self.collection)
            if missing := [name for name in (*KEYS, *self.schema.names) if name not in fields]:
                raise SearchError(f"the collection {self.collection} has no {missing[0]}: it is no index's.")
            found, width = int(fields["vector"]["params"]["dim"]), self.schema.field("vector").type.list_size
            if found != width:
                raise SearchError(f"the collection {self.collection} has rows of width {found}, expected {width}.")
            self._client.load_collection(self.collection)

    def close(self) -> None:
        self._client.close()

    def count(self) -> int:
        if self._counted is None or self._counted[0] != self.snapshot:
            self._counted = self.snapshot, self._count(_alive(self.snapshot))
        return self._counted[1]

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        where: Filter | None = None,
        exact: bool = False,
        effort: Effort | None = None,
    ) -> list[list[Found]]:
        """As :meth:`Table.search`; ``exact`` fetches every vector, which takes its time on a large collection."""
        if k > MOST:
            raise SearchError(f"{k} hits are asked for, and Milvus gives {MOST} at most.")
        expression = _alive(self.snapshot) + (f" and ({where.to_milvus()})" if where else "")
        if exact:
            return self._exact(np.asarray(queries, np.float32), k, expression)
        ef = self._reach(effort.ef if effort else self._ef, k)
        parts = (queries[start : start + QUERIES] for start in range(0, len(queries), QUERIES))
        return [hits for part in parts for hits in self._near(part, k, expression, ef)]

    def rows(self, ids: Sequence[str], columns: Sequence[str], written: bool = False) -> pa.Table:
        wanted = list(dict.fromkeys(("id", *columns)))
        found = self._of(ids, self._next if written else self.snapshot, wanted, written)
        return pa.Table.from_batches([to_batch(found, wanted, self.schema)])

    def scan(self, columns: Sequence[str], size: int = 4096, written: bool = False) -> Iterator[pa.RecordBatch]:
        yield from self._scan(_alive(self._next if written else self.snapshot), columns, size, written)

    def write(self, rows: pa.Table) -> None:
        for batch in rows.to_batches(max_chunksize=WRITTEN):
            self._bury(batch["id"].to_pylist())  # first: killed in between, pictures are missing, and not there twice
            self._upsert(to_records(batch, self._next, ALIVE))

    def delete(self, ids: Sequence[str]) -> None:
        self._bury(ids)
        for part in _parts([key_of(name) for name in ids]):
            self._remove(f"{_among(part)} and born == {self._next}")

    def publish(self) -> Published:
        """Wait until what was written is on disk, in the graph, and seen by every node that answers."""
        if self._count(f"born == {self._next} or died == {self._next}"):
            with told(self.collection):
                self._client.flush(self.collection)
                while int((self._client.describe_index(self.collection, "vector") or {}).get("pending_index_rows", 0)):
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
            self._count(_alive(self._next))
            self.snapshot = self._next
        return Published(self.snapshot, graph=True)

    def forget(self, keep: Sequence[Retired]) -> None:
        kept = [one.snapshot for one in keep if collection_of(self.name, one.table) == self.collection]
        self._remove(f"died <= {min([self.snapshot, *kept])}")
        held = {self.collection, *(collection_of(self.name, one.table) for one in keep)}
        with told(self.collection):
            others = [one for one in self._client.list_collections() if re.fullmatch(rf"{self.name}_\d+", one)]
            ours = {one for one in others if set(KEYS) <= self._fields(one).keys()}
        owner = self._owner(self.collection)
        for other in ours - held:
            with told(other):
                self._client.load_collection(other)
                if self._owner(other) == owner:
                    self._client.drop_collection(other)

    @property
    def _next(self) -> int:
        return self.snapshot + 1

    def _fields(self, collection: str) -> dict[str, Any]:
        return {one["name"]: one for one in self._client.describe_collection(collection)["fields"]}

    def _reach(self, ef: int | None, k: int) -> int:
        """How many candidates a search keeps: what was tuned for ten hits is more for more; of few rows, most are."""
        reach = max((ef or EF) * max(k, 10) // 10, k)
        return max(reach, REACH_OF_FEW) if self.count() <= FEW else reach

    def _count(self, expression: str) -> int:
        with told(self.collection):
            answer = self._client.query(self.collection, filter=expression, output_fields=["count(*)"], **_latest(True))
        return int(answer[0]["count(*)"])

    def _near(self, queries: NDArray[np.float32], k: int, expression: str, ef: int) -> Iterator[list[Found]]:
        with told(self.collection):
            answers = self._client.search(
                self.collection,
                np.ascontiguousarray(queries, np.float32),
                filter=expression,
                limit=k,
                anns_field="vector",
                output_fields=list(TOLD),
                search_params={"params": {"ef": ef}},
            )
        for hits in answers:
            yield ordered([found_of(hit["entity"], hit["distance"]) for hit in hits])

    def _exact(self, queries: NDArray[np.float32], k: int, expression: str) -> list[list[Found]]:
        """Compare every row, here, by as many dimensions as the queries have: the graph looks at some rows only."""
        column = "vector" if queries.shape[1] == self.schema.field("vector").type.list_size else "full"
        near = nearest(self._scan(expression, ("id", column)), column, queries, k)
        ids = list(dict.fromkeys(name for names, _ in near for name in names))
        known = {row["id"]: row for row in self._of(ids, self.snapshot, TOLD)}
        return [
            ordered([found_of(known[name], score) for name, score in zip(names, scores.tolist(), strict=True)])
            for names, scores in near
        ]

    def _scan(
        self, expression: str, columns: Sequence[str], size: int = 1000, written: bool = False
    ) -> Iterator[pa.RecordBatch]:
        wanted = list(dict.fromkeys(columns))
        with told(self.collection):
            rows = self._client.query_iterator(
                self.collection,
                batch_size=min(size, 1000),
                filter=expression,
                output_fields=wanted,
                **_latest(written),
            )
            try:
                while found := rows.next():
                    yield to_batch(found, wanted, self.schema)
            finally:
                rows.close()

    def _of(
        self, ids: Sequence[str], snapshot: int, columns: Sequence[str], written: bool = False
    ) -> list[dict[str, Any]]:
        """Rows of those ids that there are at a snapshot, as Milvus gives them."""
        found: list[dict[str, Any]] = []
        for part in _parts([key_of(name) for name in ids]):
            with told(self.collection):
                found += self._client.query(
                    self.collection,
                    filter=f"{_among(part)} and {_alive(snapshot)}",
                    output_fields=list(columns),
                    **_latest(written),
                )
        return found

    def _bury(self, ids: Sequence[str]) -> None:
        """Let the published rows of those ids end with the next snapshot."""
        if not self.snapshot:
            return
        columns = [*KEYS, *(field.name for field in self.schema)]
        held = self._of(ids, self.snapshot, [*columns, SEARCHABLE], written=True)
        self._upsert([{**row, "died": self._next} for row in held if row["died"] != self._next])

    def _upsert(self, records: Sequence[Mapping[str, Any]]) -> None:
        with told(self.collection):
            for start in range(0, len(records), WRITTEN):
                self._client.upsert(self.collection, [dict(one) for one in records[start : start + WRITTEN]])

    def _remove(self, expression: str) -> None:
        with told(self.collection):
            self._client.delete(self.collection, filter=expression)


@contextmanager
def told(collection: str) -> Iterator[None]:
    """Raise what Milvus says as a :class:`SearchError`."""
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        reason = " ".join(str(error.message).split())[:600]
        raise UnavailableError(f"Milvus, collection {collection}: {reason}") from error


def connect(manifest: Manifest) -> tuple[MilvusClient, str]:
    """Connect to the Milvus of an index, and say what its collections are called."""
    library = need("pymilvus", "milvus")
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what it would print is raised
    uri, name = address(str(manifest.engine))
    if uri.endswith(".db"):
        logging.getLogger("grpc._server").setLevel(logging.CRITICAL)  # Lite has not all that its client asks for
    with told(name):
        return library.MilvusClient(uri, token=os.environ.get(TOKEN, "")), name


def refuse_taken(manifest: Manifest, folder: Path) -> None:
    """Raise :class:`SearchError` where the collection that a new index would begin is in Milvus already."""
    client, name = connect(manifest)
    collection = collection_of(name, manifest.table)
    with told(collection):
        taken = client.has_collection(collection)
    client.close()
    if taken:
        raise SearchError(
            f"the collection {collection} is in Milvus already, and {folder} has not begun it: its rows may be another "
            "index's. Name another collection, or drop that one."
        )


def collection_of(name: str, table: str) -> str:
    """The collection of a table: photos_2 for pictures-2 of milvus://host:19530/photos."""
    return f"{name}_{table.rpartition('-')[2]}"


def _create(client: MilvusClient, collection: str, width: int, full: int | None) -> None:
    """Make a collection and its indexes; what there is of them stays."""
    if not client.has_collection(collection):
        rows = client.create_schema(auto_id=False, enable_dynamic_field=False)
        add_fields(rows, width, full)
        client.create_collection(collection, schema=rows, consistency_level="Bounded")
    indexes = client.prepare_index_params()
    indexes.add_index("vector", "HNSW", "vector", metric_type="COSINE", params=GRAPH)
    for name in ("key", "born", "died"):
        indexes.add_index(name, "INVERTED", name)
    if len(client.list_indexes(collection)) < len(indexes):
        client.create_index(collection, indexes, sync=False)  # of no rows: there is nothing to wait for


def _latest(written: bool) -> dict[str, str]:
    """Ask for what was written this moment; a published row was there long before, and waits for nothing."""
    return {"consistency_level": "Strong"} if written else {}


def _alive(snapshot: int) -> str:
    return f"born <= {snapshot} and died > {snapshot}"


def _among(keys: Sequence[str]) -> str:
    quoted = ", ".join(f'"{key}"' for key in keys)
    return f"key in [{quoted}]"


def _parts(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + ASKED] for start in range(0, len(keys), ASKED))
