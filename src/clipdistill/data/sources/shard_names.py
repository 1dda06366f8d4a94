"""Which tars a data URI names: ``00000.tar``, ``{00000..00099}.tar``, ``a.tar::b.tar``, ``*.tar``, a folder of tars."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path, PurePosixPath

from clipdistill.data.images import IMAGE_SUFFIXES
from clipdistill.data.sources.folder import METADATA
from clipdistill.errors import DataError

_REMOTE = re.compile(r"(?:https?|ftp|s3|gs|gcs|hf|hdfs|az|abfss?|oss|ais|pipe):")
_COMPRESSED = re.compile(r"\.(?:tar\.(?:gz|bz2|xz|zst|lz4|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def refuse_remote(uri: str) -> None:
    """Raise :class:`DataError` for data that would have to be fetched; a file of that very name is none."""
    for piece in uri.split("::"):
        if (found := _REMOTE.match(piece)) and not Path(piece).exists():
            raise DataError(
                f"{uri}: unknown kind of data '{found[0]}'. Nothing is fetched over the network: download the shards "
                "first, and name the files."
            )


def find_shards(name: str) -> list[Path] | None:
    """Return the tars that ``name`` means, in order, or None if it means something else.

    Raises :class:`DataError` for a shard that is not there, and for compressed ones.
    """
    several = "::" in name
    if not several and Path(name).is_dir():
        return _in_folder(Path(name))
    if not several and Path(name).is_file():
        if _COMPRESSED.search(name):
            raise DataError(f"{name}: found a compressed tar, expected a plain one. Decompress it first.")
        return [Path(name)] if name.lower().endswith(".tar") else None
    pieces = [path for piece in name.split("::") for path in _expand(piece)]
    if pieces == [name]:
        return None  # there is no such file: not a matter of shards
    missing = [path for path in pieces if not Path(path).is_file()]
    if missing:
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{name}: {len(missing)} of {len(pieces)} shards are not there: {few}")
    others = [path for path in pieces if not path.lower().endswith(".tar")]
    if others:
        raise DataError(f"{name}: only plain .tar files can be named together, found {others[0]}")
    return [Path(path) for path in pieces]


def _in_folder(root: Path) -> list[Path] | None:
    """The tars of a folder, unless it is one of pictures that a tar was put into."""
    tars = sorted(path for path in root.iterdir() if path.suffix.lower() == ".tar" and not path.name.startswith("."))
    if not tars or any((root / name).is_file() for name in METADATA) or _has_pictures(root):
        return None
    return tars


def _has_pictures(root: Path) -> bool:
    return any(
        PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
        for folder, _, names in os.walk(root)
        for name in names
        if not name.startswith(".")
    )


def _expand(piece: str) -> Iterator[str]:
    """Write out braces as a shell does, then stars; a star that nothing matches is an error."""
    parts = _BRACES.split(piece)
    choices = [_choices(part) if place % 2 else [part] for place, part in enumerate(parts)]
    for written in map("".join, product(*choices)):
        if "*" not in written:
            yield written
        elif not (found := _matches(Path(written))):
            raise DataError(f"{written}: no file has such a name")
        else:
            yield from found


def _matches(pattern: Path) -> list[str]:
    return sorted(str(path) for path in Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))


def _choices(inside: str) -> list[str]:
    """What one pair of braces stands for: a range of numbers, padded as they are written, or a list."""
    if not (found := _RANGE.fullmatch(inside)):
        return inside.split(",") if "," in inside else ["{" + inside + "}"]
    first, last = int(found[1]), int(found[2])
    padded = any(number.startswith("0") and len(number) > 1 for number in found.groups())
    width = max(map(len, found.groups())) if padded else 0
    step = 1 if first <= last else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]
