"""Tables that list pictures and captions, or one of them alone: CSV, TSV, JSON lines and parquet."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipdistill.data.samples import Sample
from clipdistill.errors import DataError, did_you_mean, need

#: Tried in this order when nothing is chosen.
IMAGE_COLUMNS = ("file_name", "image", "filepath")
CAPTION_COLUMNS = ("text", "caption", "title", "captions")
_OPEN_CLIP = ("filepath", "title")  # a CSV or TSV with both is read as open_clip reads it
#: Chosen as a column, it leaves the pictures or the captions of a source aside.
NONE = "none"
#: The column, or key of JSON, that gives a sample's id where data were converted to a format that names them otherwise.
OWN_ID = "clipdistill_id"
_SEPARATORS = {"tab": "\t", "comma": ","}


@dataclass(frozen=True)
class Columns:
    """Which columns hold what: None leaves it to the usual names, :data:`NONE` leaves pictures or captions aside."""

    image: str | None = None
    caption: str | None = None
    synthetic: str | None = None
    label: str | None = None
    group: str | None = None
    sep: str | None = None


@dataclass(frozen=True)
class Table:
    """Rows as dictionaries, each with the line it began on (for parquet the row, from 1)."""

    path: Path
    columns: list[str]
    rows: list[tuple[int, Mapping[str, Any]]]


@dataclass
class _Entry:
    """What the rows of one picture have said so far."""

    image: Path
    texts: dict[str, dict[str, None]] = field(default_factory=dict)
    label: str | None = None
    group: str | None = None
    id: str | None = None


def read_table(path: Path, columns: Columns) -> list[Sample]:
    """Read a table's samples; rows of the same picture become one sample with several captions.

    Without a column of pictures each row is a sample of its captions alone, called by its line (in parquet its row).
    Relative paths start at the table's folder. Raises :class:`DataError` with file and line for a broken line,
    and with the columns found for a missing one.
    """
    reader = TABLES.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of file '{path.suffix}'. Known: {', '.join(sorted(TABLES))}.")
    if columns.sep and reader is not _read_csv:
        raise DataError(f"{path}: sep={columns.sep} is for .csv and .tsv files only")
    table = reader(path, columns)
    if not table.rows:
        raise DataError(f"{path}: the table has no rows")
    chosen = _choose(table, columns)
    return list(_samples(table, chosen) if chosen.image else _words(table, chosen))


def read_text(path: Path) -> str:
    """Read UTF-8 text with or without a byte order mark; raises :class:`DataError` naming the line that is not."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise DataError(f"{path}:{line}: found {found}, expected UTF-8 text; save the file as UTF-8") from error


def _read_csv(path: Path, columns: Columns) -> Table:
    text = read_text(path)
    first = text.split("\n", 1)[0]
    tab = path.suffix.lower() == ".tsv" or ("\t" in first and "," not in first)
    separator = _SEPARATORS[columns.sep or ("tab" if tab else "comma")]
    csv.field_size_limit(max(len(text), 131_072))  # a caption may be as long as the file
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    lines = _csv_lines(reader, path)
    _, header = next(lines, (1, []))
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for line, values in lines:
        if len(values) != len(header):
            raise DataError(
                f"{path}:{line}: found {len(values)} fields, expected {len(header)} ({', '.join(header)}); "
                "put fields that contain the separator in double quotes"
            )
        rows.append((line, dict(zip(header, values, strict=True))))
    return Table(path, header, rows)


def _csv_lines(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line each record begins on and its fields, leaving out empty lines."""
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}:{line}: not a record of a CSV file ({error}); check its quotes") from error
        if values:
            yield line, values


def _read_jsonl(path: Path, columns: Columns) -> Table:
    rows = [
        (line, _json_object(path, line, text))
        for line, text in enumerate(read_text(path).split("\n"), 1)
        if text.strip()
    ]
    return Table(path, list(dict.fromkeys(key for _, row in rows for key in row)), rows)


def _json_object(path: Path, line: int, text: str) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        told = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise DataError(
            f"{path}:{line}: not JSON ({told}): found {_short(text)}; "
            "expected one object per line. Correct or remove the line."
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{path}:{line}: found {_short(text)}, expected an object such as {{...}} on each line")
    return row


def _read_parquet(path: Path, columns: Columns) -> Table:
    parquet = need("pyarrow.parquet", "train")
    try:
        names = parquet.read_schema(path).names
        wanted = _choose(Table(path, names, []), columns)
        roles = (wanted.image, wanted.caption, wanted.synthetic, wanted.label, wanted.group, OWN_ID)
        chosen = [name for name in roles if name in names]
        rows = parquet.read_table(path, columns=chosen).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a parquet file that can be read ({error})") from error
    return Table(path, names, list(enumerate(rows, 1)))


#: Which reader opens which file.
TABLES: dict[str, Callable[[Path, Columns], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _choose(table: Table, columns: Columns) -> Columns:
    """Fill in the columns that were not chosen, and check those that were; None is then no such column."""
    left_aside = [role for role in ("image", "caption") if getattr(columns, role) == NONE]
    for role in ("image", "caption", "synthetic", "label", "group"):
        name = getattr(columns, role)
        if name is not None and name not in table.columns and role not in left_aside:
            hint = unknown_column(name, table.columns)
            raise DataError(f"{table.path}: there is no column '{name}', chosen by {role}={name}.{hint}")
    open_clip = TABLES[table.path.suffix.lower()] is _read_csv and set(_OPEN_CLIP) <= set(table.columns)
    images, captions = ((name,) for name in _OPEN_CLIP) if open_clip else (IMAGE_COLUMNS, CAPTION_COLUMNS)
    image = None if "image" in left_aside else columns.image or _first(images, table.columns)
    caption = None if "caption" in left_aside else columns.caption or _first(captions, table.columns)
    synthetic = columns.synthetic or (None if "caption" in left_aside else _first(("syn_text",), table.columns))
    label = columns.label or _first(("label",), table.columns)
    chosen = Columns(image, caption, synthetic, label, columns.group or _first(("group",), table.columns))
    _check_sides(table, chosen, left_aside)
    return chosen


def _check_sides(table: Table, chosen: Columns, left_aside: list[str]) -> None:
    """Refuse a table that seems to lack a column, unless the user left that side aside."""
    words = chosen.caption or chosen.synthetic
    if chosen.image is None and "image" not in left_aside:
        if not words:
            raise no_column(table.path, "image", "picture paths", table.columns, IMAGE_COLUMNS)
        used = {chosen.caption, chosen.synthetic, chosen.label, chosen.group}
        for name in table.columns:
            if name not in used and difflib.get_close_matches(name.lower(), IMAGE_COLUMNS, n=1):
                raise _misspelt(table, name)
    silent = chosen.image is None or (chosen.label is None and "caption" not in left_aside)
    if not words and silent:
        raise no_column(table.path, "caption", "captions", table.columns, CAPTION_COLUMNS)


def _first(names: tuple[str, ...], columns: list[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def no_column(where: str | Path, role: str, what: str, found: Iterable[str], usual: Iterable[str]) -> DataError:
    """The error for data none of whose columns has a usual name."""
    return DataError(
        f"{where}: no column for {what}. Found: {', '.join(found) or 'none'}. "
        f"Expected one of: {', '.join(dict.fromkeys(usual))}. Choose one with ?{role}=COLUMN."
    )


def unknown_column(name: str, known: Iterable[str]) -> str:
    """What to say of a column that was chosen and is not there: what is, and what ``none`` is for."""
    return did_you_mean(name, known) + f" Only image and caption can be {NONE}." * (name == NONE)


def _misspelt(table: Table, name: str) -> DataError:
    path = table.path
    return DataError(
        f"{path}: no column for picture paths, expected one of: {', '.join(IMAGE_COLUMNS)}. The column '{name}' looks "
        f"like one: open {path.name}?image={name}, or {path.name}?image={NONE} for the captions alone."
    )


def _words(table: Table, columns: Columns) -> Iterator[Sample]:
    """Make each row a sample of words alone."""
    for line, row in table.rows:
        where = f"{table.path}:{line}"
        names = (columns.label, columns.group, OWN_ID)
        label, group, own = (_agree(None, _value(row, name), "", "", where) for name in names)
        yield Sample(own or str(line), None, _texts(row, columns, where), label, group)


def _texts(row: Mapping[str, Any], columns: Columns, where: str) -> dict[str, list[str]]:
    """Return the captions of a row by text view, no caption twice."""
    found = {
        view: list(dict.fromkeys(_captions(_value(row, column), column, where)))
        for view, column in (("", columns.caption), ("syn", columns.synthetic))
        if column
    }
    return {view: captions for view, captions in found.items() if captions or view == ""}


def _samples(table: Table, columns: Columns) -> Iterator[Sample]:
    """Merge the rows of each picture, in the order of first mention."""
    folder = table.path.parent
    root = os.path.normpath(folder.absolute())
    entries: dict[str, _Entry] = {}
    for line, row in table.rows:
        where = f"{table.path}:{line}"
        name = _path(_value(row, columns.image), columns.image, where, root)
        if not entries:
            _check_place(folder, name, where)
        if name not in entries:
            entries[name] = _Entry(folder / name)
        entry = entries[name]
        for view, captions in _texts(row, columns, where).items():
            entry.texts.setdefault(view, {}).update(dict.fromkeys(captions))
        entry.label = _agree(entry.label, _value(row, columns.label), "label", name, where)
        entry.group = _agree(entry.group, _value(row, columns.group), "group", name, where)
        entry.id = _agree(entry.id, _value(row, OWN_ID), OWN_ID, name, where)
    for name, entry in entries.items():
        texts = {view: list(captions) for view, captions in entry.texts.items()}
        yield Sample(entry.id or name, entry.image, texts, entry.label, entry.group)


def _check_place(folder: Path, name: str, where: str) -> None:
    """Refuse a table whose first picture lies where open_clip would look for it: from the current folder."""
    if not (folder / name).exists() and Path(name).exists():
        raise DataError(
            f"{where}: {name} counts from the folder of the table, and there is no {folder / name}; there is one from "
            "the current folder. Move the table here, or write whole paths."
        )


def _value(row: Mapping[str, Any], column: str | None) -> Any:
    return None if column is None else row.get(column)


def _path(value: Any, column: str | None, where: str, root: str) -> str:
    """Return a picture's path relative to the table's folder where it lies inside, with forward slashes."""
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: found {_short(value)} in column '{column}', expected the path of a picture")
    if re.match("https?://", value):
        raise DataError(
            f"{where}: found {_short(value)} in column '{column}', an address, expected the path of a picture. "
            "Download pictures first, as img2dataset does."
        )
    if "\0" in value or not _fits_a_file(value):
        raise DataError(f"{where}: found {_short(value)} in column '{column}', which no file can be called; correct it")
    path = os.path.normpath(value.strip()).removeprefix(root + os.sep)
    return path.replace(os.sep, "/")


def _fits_a_file(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def _captions(value: Any, column: str | None, where: str) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for caption in values:
        if not isinstance(caption, str):
            found = _short(caption)
            raise DataError(f"{where}: found {found} in column '{column}', expected a caption or a list of captions")
    return values


def _agree(known: str | None, value: Any, what: str, name: str, where: str) -> str | None:
    """Return the label or group of a picture after one more row; rows must not contradict each other."""
    given = None if value is None or value == "" else str(value)
    if known is not None and given is not None and known != given:
        raise DataError(f"{where}: {what} of {name} is '{given}', but an earlier line says '{known}'")
    return known if given is None else given


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
