"""Which tars a data URI names: ``00000.tar``, ``{00000..00099}.tar``, ``a.tar::b.tar``, ``*.tar``, a folder of tars.

Names may also be URLs, ``s3://bucket/{00000..00099}.tar``, and commands, ``pipe:aws s3 cp s3://bucket/00000.tar -``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path, PurePosixPath

from clipdistill.data.images import IMAGE_SUFFIXES
from clipdistill.data.remote import Remote, is_remote, look_up, matches
from clipdistill.data.sources.folder import METADATA
from clipdistill.errors import DataError

_COMPRESSED = re.compile(r"\.(?:tar\.(?:gz|bz2|xz|zst|lz4|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def find_shards(name: str) -> list[Path] | list[Path | Remote] | None:
    """Return the tars that ``name`` means, in order, or None if it means something else.

    Raises :class:`DataError` for a shard that is not there, and for compressed ones.
    """
    if is_remote(name):
        return _elsewhere(name)
    several = "::" in name
    if not several and Path(name).is_dir():
        return _in_folder(Path(name))
    if not several and Path(name).is_file():
        if _COMPRESSED.search(name):
            raise DataError(f"{name}: found a compressed tar, expected a plain one. Decompress it first.")
        return [Path(name)] if name.lower().endswith(".tar") else None
    pieces = [path for piece in name.split("::") for path in expand(piece)]
    if pieces == [name]:
        return None  # there is no such file: not a matter of shards
    _check_files(pieces, name, len(pieces))
    return [Path(path) for path in pieces]


def _check_files(paths: Sequence[str], name: str, count: int) -> None:
    """Raise :class:`DataError` for files that are not there or no tars, of ``count`` that ``name`` means."""
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{name}: {len(missing)} of {count} shards are not there: {few}")
    others = [path for path in paths if not path.lower().endswith(".tar")]
    if others:
        raise DataError(f"{name}: only plain .tar files can be named together, found {others[0]}")


def _elsewhere(name: str) -> list[Path | Remote]:
    """Shards that have to be fetched, all or some of them, after a look at what is there."""
    pieces = [path for piece in name.split("::") for path in expand(piece)]
    far = [path for path in pieces if is_remote(path)]
    for url in far:
        name_there = Remote(url).place.name
        if not url.startswith("pipe:") and not name_there.lower().endswith(".tar"):
            found = "a compressed tar" if _COMPRESSED.search(name_there) else name_there or "no name"
            raise DataError(
                f"{url}: found {found}, expected plain .tar files. Of data elsewhere only shards, and parquet that "
                f"holds pictures, can be opened: name the files, such as s3://bucket/{{00000..00099}}.tar or "
                f"s3://bucket/*.parquet, or download the data first."
            )
    _check_files([path for path in pieces if not is_remote(path)], name, len(pieces))
    remotes = iter(look_up(far))
    return [next(remotes) if is_remote(path) else Path(path) for path in pieces]


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


def expand(piece: str) -> Iterator[str]:
    """Write out braces as a shell does, then stars; a star that nothing matches is an error."""
    parts = _BRACES.split(piece)
    choices = [_choices(part) if place % 2 else [part] for place, part in enumerate(parts)]
    for written in map("".join, product(*choices)):
        if "*" not in written or written.startswith("pipe:"):
            yield written
        elif not (found := matches(written) if is_remote(written) else _matches(Path(written))):
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
