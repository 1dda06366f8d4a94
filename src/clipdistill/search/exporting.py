"""An index as a folder that clip-retrieval reads, and so does anything with numpy and pandas.

::

    img_emb/img_emb_0.npy             [N, D] float16, row i belongs to row i of the table
    metadata/metadata_0.parquet       id, image_path, url, caption, tags, hash, width, height
    clipdistill.json                  which model the rows are of
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipdistill.errors import SearchError
from clipdistill.files import flush
from clipdistill.progress import progress
from clipdistill.search.index import Index
from clipdistill.search.manifest import find
from clipdistill.search.rescoring import matrix

#: Rows of a partition.
ROWS = 65_536
RECORD = "clipdistill.json"
TABLE = ("id", "image_path", "url", "caption", "tags", "hash", "width", "height")
_ON_THE_WEB = ("http://", "https://")


def export_index(index: Index | str | Path, out: str | Path) -> int:
    """Write the rows of an index in clip-retrieval's layout, whole or not at all; returns how many there are.

    Thumbnails stay behind. Paths are written in full. Raises :class:`SearchError` where ``out`` is not empty, and for
    an index without rows.
    """
    opened = index if isinstance(index, Index) else Index.open(index)
    folder = Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise SearchError(f"{folder} is there already. Name another folder.")
    if not opened.count:
        raise SearchError(f"{opened.folder} has no pictures: there is nothing to export.")
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    beside.mkdir(parents=True)
    try:
        rows = _write(opened, beside)
        if folder.is_dir():
            folder.rmdir()
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if opened is not index:
            opened.close()
    return rows


def _write(index: Index, folder: Path) -> int:
    """Write the partitions, named as clip-retrieval does: with so many digits that they sort; returns the rows."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir()
    digits = int(math.log10(math.ceil(index.count / ROWS))) + 1
    done = 0
    with progress(f"exporting {index.folder}", index.count, "rows") as advance:
        for number, part in enumerate(_partitions(index)):
            _write_part(index, folder, str(number).zfill(digits), part)
            done += part.num_rows
            advance(done, "")
    about = index.manifest.model
    record = {"model": str(index.model), "fingerprint": about.fingerprint, "width": about.width, "rows": done}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for inside in (folder / "img_emb", folder / "metadata"):
        flush(inside)
    return done


def _partitions(index: Index) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    column = "full" if index.manifest.full else "vector"
    for batch in index.table.scan(("id", column, "location", "caption", "tags", "hash", "width", "height")):
        held.append(batch)
        while sum(one.num_rows for one in held) >= ROWS:
            table = pa.Table.from_batches(held)
            yield table.slice(0, ROWS)
            held = table.slice(ROWS).to_batches()
    if rest := [one for one in held if one.num_rows]:
        yield pa.Table.from_batches(rest)


def _write_part(index: Index, folder: Path, number: str, part: pa.Table) -> None:
    import pyarrow.parquet as parquet

    rows = matrix(part["full" if index.manifest.full else "vector"]).astype(np.float16)
    np.save(folder / "img_emb" / f"img_emb_{number}.npy", rows)
    places = part["location"].to_pylist()
    urls = [place if place.startswith(_ON_THE_WEB) else "" for place in places]
    paths = ["" if url else _path(index, place) for url, place in zip(urls, places, strict=True)]
    table = part.append_column("image_path", pa.array(paths)).append_column("url", pa.array(urls)).select(TABLE)
    parquet.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")


def _path(index: Index, place: str) -> str:
    """Where a picture lies, in full: those who read this start from another folder."""
    source = index.manifest.source
    return str(find(source.root, index.folder) / place) if source and place else place
