"""Parquet as the Hugging Face hub stores pictures: a column ``image`` of ``{bytes, path}``, and lists of captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipdistill.data.sources.tables import OWN_ID
from clipdistill.data.writers.entry import Entry, Survey, facts, key
from clipdistill.errors import need

# Readers take in one group at a time, so a group is small: this many samples, or fewer of large pictures.
_GROUP_SAMPLES, _GROUP_BYTES = 100, 32 << 20
_WORD = {"dtype": "string", "_type": "Value"}


def fits(name: str) -> bool:
    """A row has no name: ids always stand in a column of their own."""
    return False


class ParquetWriter:
    """Files of ``per_file`` samples each (None: all in one), called as ``name`` says for their number."""

    def __init__(self, folder: Path, survey: Survey, per_file: int | None, name: Callable[[int], str]) -> None:
        self._folder, self._survey, self._per_file, self._name = folder, survey, per_file, name
        self._parquet: Any = need("pyarrow.parquet", "train")
        self._arrow: Any = need("pyarrow", "train")
        self._schema = _schema(self._arrow, survey)
        self._file: Any = None
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, entry: Entry) -> None:
        if self._file is None:
            path = self._folder / self._name(entry.number // (self._per_file or entry.number + 1))
            self._file = self._parquet.ParquetWriter(path, self._schema)
        row = facts(entry.sample, self._survey, "caption")
        if entry.data is not None:
            row["image"] = {"bytes": entry.data, "path": f"{key(entry.number)}.{entry.ending}"}
        self._rows.append(row)
        self._bytes += len(entry.data or b"")
        if len(self._rows) == _GROUP_SAMPLES or self._bytes >= _GROUP_BYTES:
            self._write()
        if self._per_file and (entry.number + 1) % self._per_file == 0:
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._write()
            self._file.close()
            self._file = None

    def _write(self) -> None:
        if self._rows:
            self._file.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._bytes = [], 0


def _schema(arrow: Any, survey: Survey) -> Any:
    """Types for Arrow, and in the metadata what the library datasets makes of them: pictures that it decodes."""
    word = arrow.string()
    kinds = {
        "image": (arrow.struct([("bytes", arrow.binary()), ("path", word)]), {"_type": "Image"}, survey.pictures),
        OWN_ID: (word, _WORD, True),
        "caption": (arrow.list_(word), [_WORD], "" in survey.views),
        "syn_text": (arrow.list_(word), [_WORD], "syn" in survey.views),
        "label": (word, _WORD, survey.labels),
        "group": (word, _WORD, survey.groups),
    }
    features = {name: feature for name, (_, feature, given) in kinds.items() if given}
    told = json.dumps({"info": {"features": features}})
    fields = [(name, kind) for name, (kind, _, given) in kinds.items() if given]
    return arrow.schema(fields, metadata={"huggingface": told})
