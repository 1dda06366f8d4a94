"""Which columns of a Hugging Face dataset hold pictures, captions and labels: those chosen, else by name and type."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from clipdistill.data.sources.tables import CAPTION_COLUMNS, IMAGE_COLUMNS, NONE, Columns, no_column, unknown_column
from clipdistill.errors import DataError, need

#: Tried in this order when nothing is chosen.
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", *IMAGE_COLUMNS)
CAPTIONS = (*CAPTION_COLUMNS, "sentences", "sentence", "txt")
LABELS = ("label", "labels", "cls")
#: Where the words are in captions that are told with more about them.
_WORDS = ("raw", "text", "caption", "sentence")
_LINKS = " Links are not followed: download them with img2dataset, and name its shards."
_SHOWN = 40  # characters of a column's type in messages

Fits = Callable[[Any], bool]


def choose_columns(schema: Any, columns: Columns, uri: str, local: bool) -> Columns:
    """Fill in the columns of an Arrow schema that were not chosen, and check those that were; None is no such column.

    Paths of pictures are understood where the data is ``local``. Raises :class:`DataError` with the columns found.
    """
    if columns.sep:
        raise DataError(f"{uri}: sep={columns.sep} is for .csv and .tsv files only")
    seen, told = columns.image != NONE, columns.caption != NONE
    chosen = Columns(
        _image(schema, columns.image, uri, local) if seen else None,
        _choose(schema, "caption", columns.caption, CAPTIONS, _is_words, uri) if told else None,
        _choose(schema, "synthetic", columns.synthetic, ("syn_text",) if told else (), _is_words, uri),
        _choose(schema, "label", columns.label, LABELS, _is_plain, uri),
        _choose(schema, "group", columns.group, ("group",), _is_plain, uri),
    )
    silent = chosen.image is None or (told and chosen.label is None)
    if silent and not (chosen.caption or chosen.synthetic):
        raise no_column(uri, "caption", "captions", _found(schema), CAPTIONS)
    return chosen


def picture_form(kind: Any) -> str | None:
    """How a column of this Arrow type holds pictures: ``bytes``, a ``struct`` of bytes and path, ``path``, or None."""
    types = need("pyarrow.types", "data")
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return "bytes"
    if types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        return "struct"
    return "path" if _is_text(kind) else None


def captions(value: Any) -> list[str]:
    """The captions in a text, a list of them, or dictionaries that hold them under a usual key."""
    if value is None:
        return []
    if isinstance(value, dict):
        return captions(value[_text_key(value.keys())])
    return [one for part in value for one in captions(part)] if isinstance(value, list) else [value]


def _text_key(names: Any) -> str | None:
    return next((name for name in _WORDS if name in names), None)


def _is_text(kind: Any) -> bool:
    types = need("pyarrow.types", "data")
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def image_column(schema: Any, local: bool) -> str | None:
    """The column of pictures: one with a usual name, of their paths if there is no other, else the only one."""
    encoded = [str(field.name) for field in schema if is_encoded(field.type)]
    paths = [str(field.name) for field in schema if local and _is_text(field.type)]
    only = encoded if len(encoded) == 1 else []
    usual = [name for names in (encoded, paths) for name in IMAGES if name in names]
    return next(iter([*usual, *only]), None)


def is_encoded(kind: Any) -> bool:
    """Whether a column of this Arrow type holds encoded pictures."""
    return picture_form(kind) in ("bytes", "struct")


def is_told(kind: Any) -> bool:
    """Whether a column of this Arrow type can hold captions, labels, groups or ids."""
    return _is_words(kind) or bool(need("pyarrow.types", "data").is_primitive(kind))


def _is_words(kind: Any) -> bool:
    types = need("pyarrow.types", "data")
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_words(kind.value_type)
    if types.is_struct(kind):
        key = _text_key([field.name for field in kind])
        return key is not None and _is_words(kind.field(key).type)
    return _is_text(kind)


def _is_plain(kind: Any) -> bool:
    types = need("pyarrow.types", "data")
    return bool(types.is_integer(kind) or types.is_boolean(kind)) or _is_text(kind)


_EXPECTED = {
    "image": "pictures: encoded bytes, or a struct of bytes and path",
    "caption": "a caption or a list of them",
    "synthetic": "a caption or a list of them",
    "label": "a name or a number",
    "group": "a name or a number",
}


def _choose(schema: Any, role: str, name: str | None, usual: tuple[str, ...], fits: Fits, uri: str) -> str | None:
    if name is None:
        return next((one for one in usual if one in schema.names and fits(schema.field(one).type)), None)
    check_known(schema, role, name, uri)
    if not fits(schema.field(name).type):
        found = _shown(schema.field(name).type)
        raise DataError(f"{uri}: the column '{name}' chosen by {role}= holds {found}, expected {_EXPECTED[role]}")
    return name


def check_known(schema: Any, role: str, name: str, uri: str) -> None:
    """Raise :class:`DataError` for a column that is not there."""
    if name not in schema.names:
        hint = unknown_column(name, schema.names)
        raise DataError(f"{uri}: there is no column '{name}', chosen by {role}={name}.{hint}")


def _image(schema: Any, name: str | None, uri: str, local: bool) -> str | None:
    """The column of pictures; none for captions alone, if no column looks like one that was meant."""
    name = name or image_column(schema, local)
    if name is None:
        words = any(one in schema.names for one in CAPTIONS)
        alike = any(difflib.get_close_matches(one.lower(), IMAGES, n=1) for one in schema.names)
        if words and not alike and not _has_links(schema):
            return None
        error = no_column(uri, "image", "pictures", _found(schema), IMAGES)
        raise DataError(f"{error}{_LINKS}") if _has_links(schema) else error
    _choose(schema, "image", name, (), lambda kind: is_encoded(kind) or (local and _is_text(kind)), uri)
    return name


def _has_links(schema: Any) -> bool:
    return any("url" in name.lower() for name in schema.names)


def _found(schema: Any) -> list[str]:
    return [f"{field.name} ({_shown(field.type)})" for field in schema]


def _shown(kind: Any) -> str:
    text = str(kind)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
