"""Webdataset shards as img2dataset lays them out: ``00000.tar`` with ``00000.parquet`` and ``00000_stats.json``."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import time
from pathlib import Path
from typing import Any

from clipdistill.data.writers.entry import Entry, Survey, facts, key
from clipdistill.errors import need

_KEY = re.compile(r"(?!__[^/]*__(?:$|/))[^./]+(?:/[^./]+)*")
_MARK = "\ufeff"
_SIZES = ("width", "height", "original_width", "original_height")


def fits(name: str) -> bool:
    """Whether an id can be a key: a path without dots, since a key ends at the first one."""
    return _KEY.fullmatch(name) is not None and name.isprintable()


class ShardsWriter:
    """Tars of ``per_file`` samples each.

    ``KEY.txt`` and the JSON tell the captions as img2dataset does; where lines cannot hold them as they are (a caption
    of several lines among others, white space at its ends) the JSON has them as a list. A label that is a number is
    in ``KEY.cls`` too, where webdataset looks for it.
    """

    def __init__(self, folder: Path, survey: Survey, per_file: int) -> None:
        self._folder, self._survey, self._per_file = folder, survey, per_file
        self._parquet: Any = need("pyarrow.parquet", "train")
        self._arrow: Any = need("pyarrow", "train")
        self._tar: tarfile.TarFile | None = None
        self._rows: list[dict[str, Any]] = []
        self._shard, self._began = 0, 0.0

    def add(self, entry: Entry) -> None:
        if self._tar is None:
            self._shard, self._began = entry.number // self._per_file, time.time()
            self._tar = tarfile.open(self._folder / f"{self._shard:05d}.tar", "w")  # noqa: SIM115  closed below
        name = entry.sample.id if self._survey.ids_fit else key(entry.number, self._per_file)
        for ending, data in self._members(name, entry):
            info = tarfile.TarInfo(f"{name}.{ending}")
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        if (entry.number + 1) % self._per_file == 0:
            self._finish()

    def close(self) -> None:
        if self._tar is not None:
            self._finish()

    def _members(self, name: str, entry: Entry) -> list[tuple[str, bytes]]:
        """The files of one sample by ending; notes what the sidecar says of it."""
        told = {"key": name, "status": "success", "error_message": None, **_measures(entry)}
        told |= facts(entry.sample, self._survey, "caption")
        captions, synthetic = told.get("caption"), told.pop("syn_text", None)
        members = [] if entry.data is None else [(entry.ending, entry.data)]
        self._rows.append(told | ({"caption": "\n".join(captions)} if captions is not None else {}))
        if captions:
            text = "\n".join(captions)
            # A byte order mark at the beginning would be taken for the file's own.
            members.append(("txt", (_MARK * text.startswith(_MARK) + text).encode()))
            if captions == [text.strip()] and text:
                told["caption"] = text
        members.append(("json", _json(told)))
        if synthetic:
            members.append(("syn.json", _json({"syn_text": synthetic})))
        if re.fullmatch("0|[1-9][0-9]*", told.get("label") or ""):
            members.append(("cls", told["label"].encode()))
        return members

    def _finish(self) -> None:
        """Close the shard, and write what stands beside it."""
        assert self._tar is not None
        self._tar.close()
        integer, string = self._arrow.int32(), self._arrow.string()
        schema = self._arrow.schema([(name, integer if name in _SIZES else string) for name in self._rows[0]])
        table = self._arrow.Table.from_pylist(self._rows, schema=schema)
        self._parquet.write_table(table, self._folder / f"{self._shard:05d}.parquet")
        text = json.dumps(_stats(len(self._rows), self._began), indent=4)
        (self._folder / f"{self._shard:05d}_stats.json").write_text(text, encoding="utf-8")
        self._tar, self._rows = None, []


def _measures(entry: Entry) -> dict[str, Any]:
    """What img2dataset says of a picture."""
    if entry.data is None:
        return {}
    width, height = entry.size or (None, None)
    sizes = dict(zip(_SIZES, (width, height, width, height), strict=True))
    return {**sizes, "sha256": hashlib.sha256(entry.data).hexdigest()}


def _stats(count: int, began: float) -> dict[str, Any]:
    now = time.time()
    return {
        "count": count,
        "successes": count,
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "duration": now - began,
        "start_time": began,
        "end_time": now,
        "status_dict": {"success": count},
    }


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=4).encode()
