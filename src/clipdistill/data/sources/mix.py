"""A mix: several sources behind one URI, each with the weight that training draws it by.

::

    # mix.yaml
    mix:
      - {data: photos, weight: 3}
      - {data: "icons?caption=title", weight: 1}

Relative paths start at the file's folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_plus

import numpy as np
import yaml

from clipdistill.data.remote import no_commands
from clipdistill.data.samples import Sample, Source, gives, id_at, key64
from clipdistill.data.sources.listed import Kept
from clipdistill.data.sources.tables import read_text
from clipdistill.errors import DataError, unreadable_yaml

MIX_SUFFIXES = (".yaml", ".yml")
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:")
_IMAGES = re.compile(r"((?:^|&)images=)([^&]*)")
_SIDES = {"IT": "pictures and captions", "I": "pictures alone", "T": "captions alone"}


@dataclass(frozen=True)
class Part:
    """One entry of a mix: a data URI as it is written there, and its weight."""

    data: str
    weight: float


@dataclass
class Mixed:
    """Several sources one after the other: what embedding and evaluation see; training draws by ``weights``.

    ``prefixes`` begin the ids of each part.
    """

    uri: str
    parts: Sequence[Source]
    weights: tuple[float, ...]
    prefixes: tuple[str, ...]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        part, place = self._place(index)
        sample = self.parts[part][place]
        prefix = self.prefixes[part]
        return replace(sample, id=prefix + sample.id) if prefix else sample

    def id_of(self, index: int) -> str:
        """The id of a sample, where its part knows that without reading it."""
        part, place = self._place(index)
        return self.prefixes[part] + id_at(self.parts[part], place)

    @property
    def blocks(self) -> list[int] | None:
        """How many samples in a row are fetched together, if a part has to be fetched; else None."""
        blocks = [getattr(part, "blocks", None) for part in self.parts]
        if not any(blocks):
            return None
        return [size for part, own in zip(self.parts, blocks, strict=True) for size in own or [len(part)]]

    def keep(self, places: Collection[int]) -> Mixed:
        """The same mix of the samples at some places alone; raises :class:`DataError` if a part has none of them."""
        sorted_, parts, start = np.sort(np.fromiter(places, np.int64, len(places))), list[Source](), 0
        for source, end in zip(self.parts, self._ends, strict=True):
            first, last = np.searchsorted(sorted_, [start, end])
            if first == last:
                raise DataError(f"{self.uri}: no sample of {source.uri} is left. Drop that part.")
            parts.append(Kept(source.uri, source, sorted_[first:last] - start))
            start = end
        return Mixed(self.uri, parts, self.weights, self.prefixes)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the parts' fingerprints, their weights, and what their ids begin with: 32 hexadecimal digits."""
        record = [[part.fingerprint for part in self.parts], list(self.weights), list(self.prefixes)]
        return hashlib.blake2b(json.dumps(record).encode(), digest_size=16).hexdigest()

    def _place(self, index: int) -> tuple[int, int]:
        """The number of a part, and the place in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.uri} has {len(self)} samples, asked for position {index}")
        part = bisect_right(self._ends, index)
        return part, index - self._ends[part] + len(self.parts[part])


def open_mix(path: Path, open_part: Callable[[str], Source], uri: str) -> Mixed:
    """Open a mix as :func:`open_parts` does; raises :class:`DataError` also for a file that is none."""
    return open_parts(read_mix(path), path.parent, open_part, uri)


def open_parts(told: Sequence[Part], folder: Path, open_part: Callable[[str], Source], uri: str) -> Mixed:
    """Open parts, written as a file of ``folder`` writes them, each by ``open_part``.

    Ids stay those of the parts; if some come in two of them, all begin with the number of their part. No command is
    run (``pipe:``): the file may be somebody else's. Raises :class:`DataError` for a part that comes twice, cannot be
    opened, or is a mix itself, and for parts of which some lack pictures or captions.
    """
    names = [part.data for part in told]
    if not names:
        raise DataError(f"{uri}: a mix needs parts, such as photos=3 icons=1")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{uri}: {name} is named twice; name it once, with the sum of the weights")
    parts = [_open(name, folder, open_part, f"{uri}: part {place}") for place, name in enumerate(names, 1)]
    _refuse_twice(parts, names, uri)
    sides = [gives(part) for part in parts]
    for source, side in zip(parts, sides, strict=True):
        if side != sides[0]:
            raise DataError(
                f"{uri}: {parts[0].uri} gives {_SIDES[sides[0]]}, {source.uri} {_SIDES[side]}. A mix is of one kind: "
                "leave captions aside with ?caption=none, or train on the others as unpaired data."
            )
    return Mixed(uri, parts, tuple(part.weight for part in told), _prefixes(parts))


def _refuse_twice(parts: Sequence[Source], names: Sequence[str], uri: str) -> None:
    """Raise :class:`DataError` for the same data under two names, such as ``photos`` and ``./photos``."""
    first: dict[str, str] = {}
    for part, name in zip(parts, names, strict=True):
        known = first.setdefault(part.fingerprint, name)
        if known != name:
            raise DataError(
                f"{uri}: {name} has the same ids, captions and sizes of pictures as {known}; name it once, with the "
                "sum of the weights"
            )


def read_mix(path: Path) -> list[Part]:
    """Read the entries of a mix; raises :class:`DataError` for anything else."""
    try:
        told = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise DataError(unreadable_yaml(path, error)) from error
    entries = told.get("mix") if isinstance(told, dict) and set(told) == {"mix"} else None
    if not isinstance(entries, list) or not entries:
        found = f"the keys {', '.join(map(str, told))}" if isinstance(told, dict) else type(told).__name__
        raise DataError(f"{path}: found {found}, expected one key 'mix' with a list of {{data: ..., weight: ...}}")
    return [_part(entry, f"{path}: part {number}") for number, entry in enumerate(entries, 1)]


def in_folder(uri: str, folder: Path) -> str:
    """What a URI written in a file of ``folder`` means where the program runs: relative paths start at the folder."""
    start = "" if folder == Path() else str(folder)
    return _moved(uri, start, lambda path: os.path.join(start, path))  # noqa: PTH118  paths with stars and braces


def seen_from(uri: str, folder: Path) -> str:
    """The other way round: how a file of ``folder`` writes a URI that is relative to where the program runs."""
    return _moved(uri, "", lambda path: os.path.relpath(path, folder).replace(os.sep, "/"))


def check_weight(value: Any, where: str) -> float:
    """Return a weight; raises :class:`DataError` unless it is a finite number above 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise DataError(f"{where}: the weight is {value!r}, expected a number above 0")
    return float(value)


def _part(entry: Any, where: str) -> Part:
    if not isinstance(entry, dict) or set(entry) != {"data", "weight"} or not isinstance(entry["data"], str):
        raise DataError(f"{where}: found {str(entry)[:80]}, expected {{data: URI, weight: 3}}")
    return Part(entry["data"], check_weight(entry["weight"], where))


def _open(data: str, folder: Path, open_part: Callable[[str], Source], where: str) -> Source:
    try:
        with no_commands():
            source = open_part(in_folder(data, folder))
    except DataError as error:
        raise DataError(f"{where} ({data}): {error}") from error
    if isinstance(source, Mixed):
        raise DataError(f"{where} ({data}): it is a mix itself; name its parts here, with weights of their own")
    return source


def _prefixes(parts: Sequence[Source]) -> tuple[str, ...]:
    """What ids begin with: nothing where all differ, else the number of the part."""
    ids = ((id_at(part, index) for index in range(len(part))) for part in parts)
    keys = np.concatenate(
        [np.fromiter(map(key64, own), np.int64, len(part)) for own, part in zip(ids, parts, strict=True)]
    )
    if len(np.unique(keys)) == len(keys):
        return ("",) * len(parts)
    return tuple(f"{number}/" for number in range(1, len(parts) + 1))


def _moved(uri: str, folder: str, move: Callable[[str], str]) -> str:
    """Change every relative path of a URI: those between two colons, and the folder of an annotation file."""
    there = (Path(folder) / uri).exists()
    head, mark, query = (uri, "", "") if there or "?" not in uri else uri.rpartition("?")
    pieces = head.split("::")
    if all(_is_made(piece, folder) for piece in pieces):
        return uri
    moved = "::".join(_each(pieces, folder, move))
    return moved + mark + _IMAGES.sub(lambda found: found[1] + _quoted(found[2], move), query)


def _each(pieces: Iterable[str], folder: str, move: Callable[[str], str]) -> Iterator[str]:
    for piece in pieces:
        yield piece if _is_made(piece, folder) or _is_absolute(piece) else move(piece)


def _is_made(piece: str, folder: str) -> bool:
    """Whether a piece begins like ``scenes:`` and is no file of that name."""
    return bool(_SCHEME.match(piece)) and not (Path(folder) / piece).exists()


def _is_absolute(path: str) -> bool:
    return os.path.isabs(os.path.expanduser(path))  # noqa: PTH117,PTH111  paths with stars and braces


def _quoted(images: str, move: Callable[[str], str]) -> str:
    path = unquote_plus(images)
    return images if _is_absolute(path) else quote(move(path), safe="/")
