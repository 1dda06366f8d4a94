"""Plain arrays with ids: ``.npy``, ``.npz``, ``.safetensors`` and ``.parquet``.

Ids are inside (``ids``, or ``image_ids`` and ``text_ids``), or in a file beside: ``NAME.ids``, ``NAME_ids`` or ``ids``
with the ending ``.txt`` (one per line), ``.json`` (a list) or ``.npy``. An array whose name begins with ``text`` or
``txt`` holds text rows, found by the ids of their pictures; every other one image rows. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.sources.tables import read_text
from clipdistill.errors import StoreError, did_you_mean, need
from clipdistill.teachers.foreign.blocks import ROWS, Block, Choice, Foreign, Origin, as_ids, check_rows, load_npy

LAYOUT = "arrays with ids (.npy, .npz, .safetensors, .parquet)"
ID_COLUMNS = ("id", "ids", "image_id", "image_path", "file_name", "key", "uid", "url")
#: Rows ``[start, stop)`` of some array.
Take = Callable[[int, int], NDArray[Any]]


def is_arrays(path: Path) -> bool:
    """Whether ``path`` is such a file."""
    return path.is_file() and path.suffix in READERS


def read_arrays(path: Path, choice: Choice) -> Foreign:
    """Open such a file; raises StoreError for ids that are missing or do not fit."""
    return READERS[path.suffix](path, choice)


def _read_npy(path: Path, choice: Choice) -> Foreign:
    rows = check_rows(load_npy(path), str(path))
    return _foreign(path, {path.stem: (rows.shape[0], lambda start, stop: rows[start:stop])}, {})


def _read_npz(path: Path, choice: Choice) -> Foreign:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(
            f"{path} cannot be read as arrays of numbers or strings: {error}. "
            "Save ids as strings, np.asarray(ids, str): a pickle is not read, because it can run code."
        ) from error
    ids = {name: values for name, values in held.items() if name.endswith("ids") and values.ndim == 1}
    arrays = {name: check_rows(rows, f"{path}, array '{name}'") for name, rows in held.items() if name not in ids}
    takes = {name: (len(rows), _slices(rows)) for name, rows in arrays.items()}
    return _foreign(path, takes, {name: values.tolist() for name, values in ids.items()})


def _slices(rows: NDArray[Any]) -> Take:
    return lambda start, stop: rows[start:stop]


def _read_safetensors(path: Path, choice: Choice) -> Foreign:
    import torch

    safetensors = need("safetensors", "train")
    try:
        file = safetensors.safe_open(path, "pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path}: not a safetensors file that can be read ({error})") from error
    takes: dict[str, tuple[int, Take]] = {}
    ids: dict[str, list[Any]] = {}
    for name in file.keys():  # noqa: SIM118 - not a dictionary
        part = file.get_slice(name)
        shape = part.get_shape()
        if name.endswith("ids") and len(shape) == 1:
            ids[name] = file.get_tensor(name).tolist()
        elif len(shape) != 2 or not part[:0].is_floating_point():
            raise StoreError(f"{path}: the tensor '{name}' is {shape}, expected floating-point [rows, width].")
        else:
            takes[name] = shape[0], _tensors(part, torch.bfloat16)
    return _foreign(path, takes, ids)


def _tensors(part: Any, bfloat16: Any) -> Take:
    def take(start: int, stop: int) -> NDArray[Any]:
        rows = part[start:stop]
        array: NDArray[Any] = (rows.float() if rows.dtype == bfloat16 else rows).numpy()  # numpy has no bfloat16
        return array

    return take


def _foreign(path: Path, arrays: dict[str, tuple[int, Take]], ids: dict[str, list[Any]]) -> Foreign:
    """Put arrays and their ids together; raises StoreError if they do not fit each other."""
    sides = _sides(path, list(arrays))
    parts: list[tuple[str, str, int, Take, list[str]]] = []
    for side, name in sides.items():
        count, take = arrays[name]
        where, keys = _ids(path, side, ids)
        if len(keys) != count:
            raise StoreError(f"{where} has {len(keys)} ids, '{name}' in {path} has {count} rows; they must be as many.")
        parts.append((side, name, count, take, keys))
    return Foreign(LAYOUT, _blocks(path, parts), sum(count for _, _, count, _, _ in parts), "rows")


def _blocks(path: Path, parts: list[tuple[str, str, int, Take, list[str]]]) -> Iterator[Block]:
    done = 0
    for side, name, count, take, keys in parts:
        for start in range(0, count, ROWS):
            stop = min(start + ROWS, count)
            done += stop - start
            unit = f"{name}, row" if name != path.stem else "row"
            origin = Origin(path, unit, range(start, stop))
            yield Block(_literal(side), keys[start:stop], take(start, stop), origin, done)


def _literal(side: str) -> Literal["image", "text"]:
    return "text" if side == "text" else "image"


def _sides(path: Path, names: list[str]) -> dict[str, str]:
    """Which array is of which side; raises StoreError for none or for two of one side."""
    found: dict[str, str] = {}
    for name in names:
        side = "text" if name.lower().startswith(("text", "txt")) else "image"
        if side in found:
            raise StoreError(
                f"{path}: '{found[side]}' and '{name}' could both be {side} embeddings. Expected one array, or two "
                "called 'image' and 'text'."
            )
        found[side] = name
    if not found:
        raise StoreError(f"{path}: there are no embeddings: expected 'embeddings', or 'image' and 'text'.")
    return found


def _ids(path: Path, side: str, inside: dict[str, list[Any]]) -> tuple[str, list[str]]:
    """The ids of a side, from inside the file or from one beside it, and where they were found."""
    for name in (f"{side}_ids", "ids"):
        if name in inside:
            return f"'{name}' in {path}", as_ids(inside[name], f"{path}, array '{name}'", "entry")
    stems = [f"{path.stem}.ids", f"{path.stem}_ids", f"{side}_ids", "ids"]
    for beside in (path.with_name(stem + ending) for stem in stems for ending in (".txt", ".json", ".npy")):
        if beside.is_file() and beside != path:
            return str(beside), as_ids(_listed(beside), str(beside), "entry")
    raise StoreError(
        f"{path}: nothing says whose rows these are. Write the ids beside it, one per line and row, as "
        f"{path.with_name(path.stem + '.ids.txt')} or {path.with_name('ids.txt')}."
    )


def _listed(path: Path) -> list[Any]:
    if path.suffix == ".txt":
        lines = read_text(path).removesuffix("\n").split("\n")
        return [line.removesuffix("\r") for line in lines]
    if path.suffix == ".npy":
        return list(load_npy(path).tolist())
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON: {error}.") from error
    if not isinstance(values, list):
        raise StoreError(f"{path}: expected a list of ids, found {str(values)[:60]}.")
    return values


def _read_parquet(path: Path, choice: Choice) -> Foreign:
    parquet = need("pyarrow.parquet", "train")
    try:
        schema = parquet.read_schema(path)
        total = int(parquet.read_metadata(path).num_rows)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not a parquet file that can be read ({error})") from error
    lists = [field.name for field in schema if str(field.type).startswith(("list<", "fixed_size_list<", "large_list<"))]
    sides = _sides(path, lists)
    column = choice.id_column or next((name for name in ID_COLUMNS if name in schema.names), None)
    if column is None or column not in schema.names:
        what = f"there is no column '{column}'" if column else f"no column of ids, expected {', '.join(ID_COLUMNS)}"
        raise StoreError(f"{path}: {what}.{did_you_mean(column or 'id', schema.names)} Choose one with --id COLUMN.")
    return Foreign(LAYOUT, _table_blocks(path, sides, column), total * len(sides), "rows")


def _table_blocks(path: Path, sides: dict[str, str], column: str) -> Iterator[Block]:
    file = need("pyarrow.parquet", "train").ParquetFile(path)
    start = done = 0
    for batch in file.iter_batches(batch_size=ROWS, columns=[column, *sides.values()]):
        keys = as_ids(batch.column(column).to_pylist(), str(path), f"column '{column}', row", start)
        for side, name in sides.items():
            rows = _matrix(batch.column(name), f"{path}, column '{name}'", start)
            done += len(keys)
            yield Block(_literal(side), keys, rows, Origin(path, "row", range(start, start + len(keys))), done)
        start += batch.num_rows


def _matrix(column: Any, where: str, start: int) -> NDArray[Any]:
    """A column of lists as ``[n, D]``; raises StoreError for one that is missing or of another length."""
    lengths = [None if not value.is_valid else len(value) for value in column]
    for row, length in enumerate(lengths, start):
        if length is None or length != lengths[0]:
            raise StoreError(f"{where}, row {row}: found {length or 'no'} numbers, expected {lengths[0] or 'some'}.")
    values = column.flatten()
    if values.null_count:
        raise StoreError(f"{where}: {values.null_count} numbers are missing between rows {start} and {row}.")
    return check_rows(values.to_numpy(zero_copy_only=False).reshape(len(lengths), -1), where)


READERS: dict[str, Callable[[Path, Choice], Foreign]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}
