"""What is in a parquet file elsewhere: read through once, and kept in the cache.

::

    NAME.tar.words     beside the file's copy, and kept when that goes: an Arrow stream of the columns that can be read
                       as words or numbers, with sizes in the place of pictures

What its samples are is then known without the file.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from clipdistill.data.remote import Remote
from clipdistill.data.sources.arrow_columns import is_encoded, is_told, picture_form
from clipdistill.errors import DataError, need
from clipdistill.progress import progress

_VERSION = 1
_ROWS = 128  # with their pictures, decoded at a time
_RECORDS = 1000  # rows of words that are found together


@dataclass(frozen=True, eq=False)
class Indexed:
    """A parquet file whose rows are known without it.

    ``words`` is a :class:`datasets.Dataset` of the columns kept of it, ``schema`` that of the file; the largest row
    group has ``group`` bytes.
    """

    path: Remote
    words: Any
    schema: Any
    group: int


def index_files(paths: Sequence[Remote]) -> list[Indexed]:
    """What is in each file, from the cache or by fetching it.

    Raises :class:`DataError` for what cannot be fetched, is no whole parquet file, or cannot be kept.
    """
    known = {path: file for path in paths if (file := _load(path)) is not None}
    missing = [path for path in paths if path not in known]
    if missing:
        with progress("index parquet files", len(missing), "files") as advance:
            for number, path in enumerate(missing, 1):
                known[path] = _load(path) or _build(path)
                advance(number, "")
    return [known[path] for path in paths]


def _words_file(path: Remote) -> Path:
    return path.cached.with_name(f"{path.cached.name}.words")


def _load(path: Remote) -> Indexed | None:
    """Read the index of a file, or None if there is none that is whole."""
    arrow, file = need("pyarrow", "data"), _words_file(path)
    datasets = need("datasets", "data")
    if not file.is_file():
        return None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with arrow.memory_map(str(file)) as stream:
            kept = arrow.ipc.open_stream(stream).schema.metadata
        told = json.loads(kept[b"clipdistill"])
        words = datasets.Dataset.from_file(str(file))
        if (told["version"], told["rows"]) == (_VERSION, words.num_rows):
            schema = arrow.ipc.read_schema(arrow.py_buffer(kept[b"clipdistill_schema"]))
            return Indexed(replace(path, size=told["size"], content=told["content"]), words, schema, told["group"])
    return None


def _build(path: Remote) -> Indexed:
    """Fetch a file, and keep the words in it."""
    file = _words_file(path)
    beside = file.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        _write(beside, _words(path.known()))
        beside.replace(file)
    except DataError:
        path.forget()  # cut off on the way without a word: fetched again next time
        raise
    except OSError as error:
        raise DataError(f"{path}: its captions cannot be kept in {file.parent} ({error}). Make room there.") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
    found = _load(path)
    if found is None:
        raise DataError(f"{path}: its captions, just written to {file}, cannot be read back")
    return found


def _write(file: Path, table: Any) -> None:
    arrow = need("pyarrow", "data")
    with arrow.OSFile(str(file), "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=_RECORDS)


def _words(path: Remote) -> Any:
    """The table that is kept of a file: words and numbers, with sizes in the place of pictures."""
    arrow, datasets = need("pyarrow", "data"), need("datasets", "data")
    with path.open("rb") as file, readable(path):
        parquet = open_file(file)
        features = datasets.Features.from_arrow_schema(parquet.schema_arrow)
        schema = features.arrow_schema
        size = datasets.Value("int64")
        kept = {field.name: size if is_encoded(field.type) else features[field.name] for field in _kept(schema)}
        target = datasets.Features(kept).arrow_schema
        groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
        told = {"version": _VERSION, "size": path.size, "content": path.content, "rows": parquet.metadata.num_rows}
        told["group"] = max((group.total_byte_size for group in groups), default=0)
        batches = list(_batches(parquet, list(kept)))
        table = arrow.Table.from_batches(batches).cast(arrow.schema(list(target))) if batches else target.empty_table()
        own = {b"clipdistill": json.dumps(told), b"clipdistill_schema": schema.serialize().to_pybytes()}
        return table.replace_schema_metadata({**(target.metadata or {}), **own}).combine_chunks()


def _kept(schema: Any) -> list[Any]:
    return [field for field in schema if is_encoded(field.type) or is_told(field.type)]


def _batches(parquet: Any, names: Sequence[str]) -> Iterator[Any]:
    """Read columns through, some rows at a time; of pictures only their sizes stay."""
    arrow, compute = need("pyarrow", "data"), need("pyarrow.compute", "data")
    leaves = [_leaf(parquet, name) for name in names]
    for batch in parquet.iter_batches(_ROWS, columns=leaves, use_threads=False):
        arrays = [batch.column(name) for name in names]
        encoded = [is_encoded(parquet.schema_arrow.field(name).type) for name in names]
        told = [
            compute.binary_length(_encoded(values)).cast(arrow.int64()) if pictures else values
            for values, pictures in zip(arrays, encoded, strict=True)
        ]
        yield arrow.RecordBatch.from_arrays(told, names)


def read_group(parquet: Any, column: str, group: int) -> Any:
    """The pictures of a row group; in parts, because Arrow cannot hold 2 GB of nested ones in one."""
    leaf = [_leaf(parquet, column)]
    batches = parquet.iter_batches(_ROWS, row_groups=[group], columns=leaf, use_threads=False)
    return need("pyarrow", "data").chunked_array([_encoded(batch.column(column)) for batch in batches])


def _leaf(parquet: Any, name: str) -> str:
    """What of a column is read: of a struct that holds a picture its bytes alone."""
    return f"{name}.bytes" if picture_form(parquet.schema_arrow.field(name).type) == "struct" else name


def _encoded(values: Any) -> Any:
    """The bytes of pictures, whether they stand in a struct or on their own."""
    nested = need("pyarrow.types", "data").is_struct(values.type)
    return need("pyarrow.compute", "data").struct_field(values, "bytes") if nested else values


def open_file(file: IO[bytes], footer: Any = None) -> Any:
    """The :class:`pyarrow.parquet.ParquetFile` in an open file."""
    return need("pyarrow.parquet", "data").ParquetFile(file, metadata=footer)


@contextlib.contextmanager
def readable(path: Remote) -> Iterator[None]:
    """Raise :class:`DataError` for what the library finds wrong with a file."""
    try:
        yield
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise DataError(
            f"{path}: not a parquet file that can be read, or damaged or cut off ({error}). Write it again, or leave "
            "it out by naming the others."
        ) from error
