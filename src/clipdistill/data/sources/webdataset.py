"""Webdataset shards: samples by position out of tar files, which are never unpacked.

::

    00000.tar   000000000.jpg  000000000.txt  000000000.json   one sample: the name up to its first dot is the key
                000000001.jpg  ...
    00000.tar.index.json                                       where each member begins, written when first opened

This is what img2dataset writes and webdataset, open_clip and CLIP_benchmark read.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path, PurePath
from typing import Any

from clipdistill.data.remote import Remote, warn_if_small
from clipdistill.data.samples import Sample, TarMember
from clipdistill.data.sources.shard_index import IMAGES, Shard, index_shards
from clipdistill.data.sources.tables import NONE, OWN_ID, Columns, unknown_column
from clipdistill.errors import DataError


@dataclass
class Shards:
    """The samples of some shards, in the order of the shards and of the keys in them.

    ``prefixes`` begin the ids: one per shard. ``views`` are the text views that the shards have. Captions stay in the
    files until they are asked for.
    """

    uri: str
    shards: Sequence[Shard]
    columns: Columns
    prefixes: Sequence[str]
    views: frozenset[str]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(shard.keys) for shard in self.shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.uri} has {len(self)} samples, asked for position {index}")
        number = bisect_right(self._ends, index)
        shard = self.shards[number]
        row = index - self._ends[number] + len(shard.keys)
        told = shard.texts(row)
        where = f"{shard.path}: {shard.keys[row]}"
        facts = _facts(told)
        image = None if self.columns.image == NONE else _picture(shard, row)
        label = _one(facts, self.columns.label, "label", told.get("cls"))
        group = _one(facts, self.columns.group, "group", None)
        name = self.prefixes[number] + str(facts.get(OWN_ID) or shard.keys[row])
        return Sample(name, image, self._texts(told, facts, where), label, group)

    def id_of(self, index: int) -> str:
        """The id of a sample, in most shards without reading it."""
        number = bisect_right(self._ends, index)
        shard = self.shards[number]
        if OWN_ID in shard.fields:
            return self[index].id
        return self.prefixes[number] + shard.keys[index - self._ends[number] + len(shard.keys)]

    def _texts(self, told: Mapping[str, Any], facts: Mapping[str, Any], where: str) -> dict[str, list[str]]:
        columns = self.columns
        found = {}
        if "" in self.views:
            chosen = columns.caption
            found[""] = _listed(facts, chosen, where) if chosen else _captions(told.get("txt"), facts, where)
        if "syn" in self.views and (made := _listed(facts, columns.synthetic or "syn_text", where)):
            found["syn"] = made
        return found

    @property
    def blocks(self) -> list[int] | None:
        """How many samples lie in each shard, if shards have to be fetched for their pictures; else None."""
        far = self.columns.image != NONE and any(isinstance(shard.path, Remote) for shard in self.shards)
        return [len(shard.keys) for shard in self.shards] if far else None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of keys, member sizes, the contents of texts, and the columns chosen: 32 hexadecimal digits."""
        record = [list(astuple(self.columns)), list(self.prefixes), [shard.digest for shard in self.shards]]
        return hashlib.blake2b(json.dumps(record).encode(), digest_size=16).hexdigest()


def open_shards(paths: Sequence[Path | Remote], columns: Columns, uri: str) -> Shards:
    """Open shards as one source; each is read through once, and indexed, when it is first opened.

    Captions are those of ``.txt``, one per line, else ``caption`` of ``.json``; synthetic ones ``syn_text`` of
    ``.syn.json`` or ``.json``; labels those of ``.cls``, else ``label`` of ``.json``. ``columns`` chooses other keys
    of the JSON. An id is the sample's key, after the shard's name where keys come again in another shard.
    Raises :class:`DataError` for a damaged or compressed tar, naming file and offset, and for keys nobody has.
    """
    twice = [path for path, count in Counter(map(_identity, paths)).items() if count > 1]
    if twice:
        raise DataError(f"{uri}: {twice[0]} is named twice")
    shards = index_shards(paths)
    if not any(shard.keys for shard in shards):
        raise DataError(f"{uri}: there are no samples in it")
    _check_columns(shards, columns, uri)
    views = _views(shards, columns)
    _check_sides(shards, columns, views, uri)
    source = Shards(uri, shards, columns, _prefixes(shards), views)
    if source.blocks:
        warn_if_small([shard.path for shard in shards if isinstance(shard.path, Remote)])
    return source


def _identity(path: Path | Remote) -> str:
    return str(path) if isinstance(path, Remote) else os.path.realpath(path)


def _fields(shards: Sequence[Shard]) -> set[str]:
    return {name for shard in shards for name in shard.fields}


def _check_columns(shards: Sequence[Shard], columns: Columns, uri: str) -> None:
    if columns.sep:
        raise DataError(f"{uri}: sep={columns.sep} is for .csv and .tsv files only")
    if columns.image not in (None, NONE):
        raise DataError(f"{uri}: pictures of shards are found by their extension; only image={NONE} can be chosen")
    known = _fields(shards)
    for role in ("caption", "synthetic", "label", "group"):
        name = getattr(columns, role)
        if name is not None and name not in known and (role, name) != ("caption", NONE):
            hint = unknown_column(name, known)
            raise DataError(f"{uri}: no JSON file in the shards has the key '{name}', chosen by {role}={name}.{hint}")


def _views(shards: Sequence[Shard], columns: Columns) -> frozenset[str]:
    """The text views that any sample has."""
    known = _fields(shards)
    told = any("txt" in shard.places for shard in shards) or "caption" in known
    real = columns.caption != NONE and (columns.caption is not None or told)
    made = columns.synthetic is not None or (columns.caption != NONE and "syn_text" in known)
    return frozenset({view for view, given in (("", real), ("syn", made)) if given})


def _check_sides(shards: Sequence[Shard], columns: Columns, views: frozenset[str], uri: str) -> None:
    """Refuse shards without pictures, unless the user left them aside."""
    found = ", ".join(sorted({ending for shard in shards for ending in (*shard.places, *shard.others)})) or "none"
    if columns.image == NONE and not views:
        raise DataError(f"{uri}: there are no captions. Found files ending in: {found}. Expected .txt or .json.")
    if columns.image != NONE and not any(ending in shard.places for shard in shards for ending in IMAGES):
        raise DataError(
            f"{uri}: there are no pictures. Found files ending in: {found}. Expected one of: {', '.join(IMAGES)}; what "
            f"counts begins at the first dot of the file's name. Captions alone are opened with ?image={NONE}"
        )


def _prefixes(shards: Sequence[Shard]) -> list[str]:
    """What ids begin with: nothing where all keys differ, else the name of the shard."""
    keys: set[str] = set()
    keys.update(*(shard.keys for shard in shards))
    if len(keys) == sum(len(shard.keys) for shard in shards):
        return [""] * len(shards)
    names: list[PurePath] = [_place(shard.path).with_suffix("") for shard in shards]
    if len(set(names)) < len(names):  # URLs that differ in their query
        names = [PurePath("/", str(shard.path)) for shard in shards]
    base = os.path.commonpath([name.parent for name in names])
    return [PurePath(os.path.relpath(name, base)).as_posix() + "/" for name in names]


def _place(path: Path | Remote) -> PurePath:
    return path.place if isinstance(path, Remote) else path.absolute()


def _picture(shard: Shard, row: int) -> TarMember | None:
    """The first picture of a sample in webdataset's order of endings."""
    for ending in IMAGES:
        place = shard.place(ending, row)
        if place is not None:
            return TarMember(shard.path, f"{shard.keys[row]}.{ending}", *place)
    return None


def _facts(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON files of a sample say; a file that holds something else than an object says nothing."""
    facts: dict[str, Any] = {}
    for value in (told.get("json"), told.get("syn.json")):
        if isinstance(value, dict):
            facts.update(value)
    return facts


def _captions(text: str | None, facts: Mapping[str, Any], where: str) -> list[str]:
    """One caption per line, as CLIP_benchmark reads them; JSON that repeats them tells where each begins and ends."""
    known = facts.get("caption")
    if text is None or (isinstance(known, list) and "\n".join(map(str, known)) == text):
        return _listed(facts, "caption", where)
    whole = isinstance(known, str) and known.strip() == text.strip()
    lines = [text] if whole else text.split("\n")
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _listed(facts: Mapping[str, Any], name: str, where: str) -> list[str]:
    value = facts.get(name)
    values = value if isinstance(value, list) else [] if value is None else [value]
    for caption in values:
        if not isinstance(caption, str):
            found = repr(caption)[:80]
            raise DataError(f"{where}: found {found} under '{name}', expected a caption or a list of captions")
    return list(dict.fromkeys(values))


def _one(facts: Mapping[str, Any], chosen: str | None, usual: str, text: str | None) -> str | None:
    """A label or group: of the key chosen, else of its own file, else of the usual key."""
    value = text.strip() if text is not None and chosen is None else facts.get(chosen or usual)
    return None if value is None or value == "" else str(value)
