"""An index of made-up rows: what ``bench search`` asks a process of its own for.

``python -m clipdistill.bench.search_tables '{"folder": ..., "width": ..., "rows": ..., "captions": ...}'``
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipdistill.bench.clock import percentiles
from clipdistill.bench.search_mixture import Mixture
from clipdistill.progress import progress
from clipdistill.search.contents import vectors
from clipdistill.search.index import Index
from clipdistill.search.manifest import Manifest, Model
from clipdistill.search.runtime import Runtime
from clipdistill.search.table import Table, schema
from clipdistill.search.tables import open_table, write_table
from clipdistill.search.tuning import Questions, recall_of, truth_of, tune

#: Rows written together, and queries that tune and judge a search: not the same ones.
BLOCK, QUERIES = 16_384, 200
_ASKED = "rows of made-up texts"


def build(folder: str, width: int, rows: int, captions: str) -> dict[str, Any]:
    """Write, tune and judge an index of ``rows`` rows, and time its search alone, by rows of queries.

    Returns ``build_s``, ``recall@10``, ``search_p50_ms``, ``search_p99_ms``, ``search``, ``ef`` and ``disk_mb``.
    """
    began, place, mixture = time.perf_counter(), Path(folder), Mixture(width)
    place.mkdir(parents=True)
    manifest = Manifest(Model(".", "none yet", width, "IT"), None, width)
    table = write_table(manifest, place)
    _fill(table, mixture, rows, json.loads(Path(captions).read_text()))
    made = table.publish()
    manifest = replace(manifest, snapshot=made.snapshot, version=1, count=rows, unchecked=True)
    reader = open_table(manifest, place)
    effort = tune(reader, manifest, Questions(mixture.texts(QUERIES, seed=5), _ASKED), made.graph)
    manifest = replace(manifest, effort=effort)
    manifest.write(place)
    table.forget([])  # what was written before it was compacted
    table.close()
    spent = time.perf_counter() - began
    reader.close()
    disk = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return {"build_s": spent, "disk_mb": disk / 1e6, "search": effort.kind, "ef": effort.ef, **_judge(place, mixture)}


def give(folder: Path, model: Path) -> None:
    """Say that an index's rows are a model's, whose rows are as wide."""
    runtime = Runtime.open(model)
    about = Model(str(model), runtime.fingerprint, runtime.width, runtime.sides)
    replace(Manifest.read(folder), model=about).write(folder)


def _fill(table: Table, mixture: Mixture, rows: int, captions: Sequence[str]) -> None:
    with progress("writing rows", rows, "rows") as advance:
        for start in range(0, rows, BLOCK):
            table.write(_block(mixture, start, min(BLOCK, rows - start), captions))
            advance(min(start + BLOCK, rows), "")


def _block(mixture: Mixture, start: int, count: int, captions: Sequence[str]) -> pa.Table:
    found, tags = mixture.pictures(start, count)
    names = [f"{place // 1000:05d}/{place:09d}.jpg" for place in range(start, start + count)]
    columns = {
        "id": names,
        "vector": vectors(found),
        "hash": names,
        "location": names,
        "caption": [captions[place % len(captions)] for place in range(start, start + count)],
        "tags": [[tag] for tag in tags],
        "width": [640] * count,
        "height": [480] * count,
        "thumbnail": [b""] * count,
    }
    return pa.table(columns, schema=schema(mixture.width))


def _judge(folder: Path, mixture: Mixture) -> dict[str, Any]:
    """Recall of queries that the search was not tuned on, and the time of each."""
    index, rows = Index.open(folder), mixture.texts(QUERIES)
    truth = truth_of(index.table, index.manifest, rows)
    recall, seconds = recall_of(index.table, index.manifest, rows, truth, index.manifest.effort), []
    for row in rows:
        start = time.perf_counter()
        index.search(row[None], 10)
        seconds.append(time.perf_counter() - start)
    index.close()
    taken = percentiles(seconds)
    return {"recall@10": recall, "search_p50_ms": taken["p50"], "search_p99_ms": taken["p99"]}


if __name__ == "__main__":
    print(json.dumps(build(**json.loads(sys.argv[1]))))
