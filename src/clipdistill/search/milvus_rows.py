"""A picture's row as Milvus keeps it, and back: it knows no bytes, no nulls here, and texts up to 64 KB.

Shapes: ``D`` the width that is searched.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from clipdistill.search.filters import SEARCHABLE, searchable
from clipdistill.search.table import Found

if TYPE_CHECKING:
    from pymilvus import CollectionSchema

#: What tells rows apart: the primary key is the hash of the id with the version that brought the row.
KEYS = ("pk", "key", "born", "died")
#: In no snapshot yet: ``died`` of a row that nobody took away.
ALIVE = 2**62
#: The primary key of the row that is in no snapshot ever, and whose id is the name of the index's folder.
OWNER = "owner"
LONGEST = 65_535
_TEXTS = ("id", "hash", "location", "caption", SEARCHABLE, "thumbnail")
#: Never searched, only shown: the nodes of a cluster keep them on disk.
_ON_DISK = ("hash", "location", "caption", "thumbnail")


def key_of(name: str) -> str:
    """A picture's id as 32 hexadecimal digits, which need no quoting."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def add_fields(rows: CollectionSchema, width: int, full: int | None) -> None:
    """Give a collection its fields: those of an index, :data:`KEYS`, and the caption as filters look into it."""
    from pymilvus import DataType

    rows.add_field("pk", DataType.VARCHAR, is_primary=True, max_length=64)
    rows.add_field("key", DataType.VARCHAR, max_length=32)
    for name in ("born", "died"):
        rows.add_field(name, DataType.INT64)
    for name in _TEXTS:
        rows.add_field(
            name, DataType.VARCHAR, max_length=LONGEST, **({"mmap_enabled": True} if name in _ON_DISK else {})
        )
    for name in ("width", "height"):
        rows.add_field(name, DataType.INT32)
    rows.add_field("tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=4096, max_length=LONGEST)
    rows.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
    if full:
        rows.add_field("full", DataType.ARRAY, element_type=DataType.FLOAT, max_capacity=full, mmap_enabled=True)


def to_records(batch: pa.RecordBatch, born: int, died: int) -> list[dict[str, Any]]:
    """Rows of an index as Milvus takes them."""
    return list(_records(batch, born, died))


def owner_record(index: str, schema: pa.Schema) -> dict[str, Any]:
    """The row that says whose the collection is."""
    empty: dict[str, Any] = {field.name: _empty(field.type) for field in schema}
    return {**empty, SEARCHABLE: "", "id": index, "pk": OWNER, "key": "", "born": ALIVE, "died": ALIVE}


def _empty(kind: pa.DataType) -> Any:
    if pa.types.is_fixed_size_list(kind):
        return [1.0] * kind.list_size
    return 0 if pa.types.is_integer(kind) else [] if pa.types.is_list(kind) else ""


def _records(batch: pa.RecordBatch, born: int, died: int) -> Iterator[dict[str, Any]]:
    for row in batch.to_pylist():
        key = key_of(row["id"])
        shown = {"thumbnail": _text(row["thumbnail"]), SEARCHABLE: searchable(row["caption"])}
        yield {**row, **shown, "pk": f"{key}.{born}", "key": key, "born": born, "died": died}


def to_batch(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], schema: pa.Schema) -> pa.RecordBatch:
    """Rows as Milvus gives them as those ``columns`` of an index."""
    fields = [schema.field(name) for name in columns]
    values = [pa.array([_value(row[field.name], field.name) for row in rows], field.type) for field in fields]
    return pa.RecordBatch.from_arrays(values, schema=pa.schema(fields))


def found_of(row: Mapping[str, Any], score: float) -> Found:
    """What a search tells of a row."""
    size = int(row["width"]), int(row["height"])
    return Found(row["id"], float(score), row["location"], row["caption"], tuple(row["tags"]), *size)


def ordered(hits: list[Found]) -> list[Found]:
    """Best first; what is equally near by its id, so that the same search gives the same hits."""
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))


def _value(value: Any, name: str) -> Any:
    if name == "thumbnail":
        return base64.b64decode(value)
    return list(value) if name == "tags" else value


def _text(thumbnail: bytes | None) -> str:
    """Write a thumbnail as text, coarser where it would be too long."""
    text, quality = base64.b64encode(thumbnail or b"").decode(), 80
    while thumbnail and len(text) > LONGEST:
        quality //= 2
        file = io.BytesIO()
        Image.open(io.BytesIO(thumbnail)).save(file, "JPEG", quality=quality)
        text = base64.b64encode(file.getvalue()).decode()
    return text
