"""What is wrong with an index: its rows against its manifest, its pictures and its model."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from clipdistill.errors import ClipdistillError
from clipdistill.search.embedding import Task, look_at
from clipdistill.search.index import Index
from clipdistill.search.origin import open_source
from clipdistill.search.rescoring import matrix
from clipdistill.search.runtime import BATCH, Runtime
from clipdistill.search.sync import own_model
from clipdistill.search.tuning import questions, recall_of, truth_of

#: So many pictures are embedded again, and so many thumbnails decoded.
SAMPLE = BATCH
#: The cosine of a picture's row with a fresh one; machines differ in their last digits, quantised graphs in more.
LEAST_COSINE = 0.999
#: How far the length of a row may be from 1, and recall from what was measured before.
_LENGTH, _RECALL = 1e-3, 0.01
_NAMED = 5


def check(index: Index) -> list[str]:
    """Examine an index; returns a line for each thing that is wrong.

    Rows are counted and measured, ids compared, some thumbnails decoded. Where the model is at hand, recall is measured
    again, and where the source is, some pictures are embedded again.
    """
    findings = [*_counted(index), *_columns(index), *_thumbnails(index)]
    try:
        runtime = own_model(index.manifest, index.folder)
    except ClipdistillError as error:
        return [*findings, f"the model cannot be opened: {error}"]
    return [*findings, *_recall(index, runtime), *_again(index, runtime)]


def _counted(index: Index) -> Iterator[str]:
    found = index.table.count()
    if found != index.manifest.count:
        yield f"the table holds {found:,} rows, and the manifest says {index.manifest.count:,}"


def _columns(index: Index) -> Iterator[str]:
    """Lengths of rows, and ids that are there twice."""
    manifest = index.manifest
    names = ["vector", "full"] if manifest.full else ["vector"]
    seen: set[str] = set()
    twice, crooked = [], []
    for batch in index.table.scan(["id", *names]):
        ids = batch["id"].to_pylist()
        twice += [name for name in ids if name in seen]
        seen.update(ids)
        for column in names:
            lengths = np.linalg.norm(matrix(batch[column]), axis=1)
            crooked += [ids[place] for place in np.flatnonzero(~(np.abs(lengths - 1) < _LENGTH))]
    for what, found in (("are there more than once", twice), ("have a row that is not of unit length", crooked)):
        if found:
            yield f"{len(found)} ids {what}: {_listing(found)}"
    if len(seen) + len(twice) != manifest.count:
        yield f"{len(seen) + len(twice):,} rows can be read, and the manifest says {manifest.count:,}"


def _thumbnails(index: Index) -> Iterator[str]:
    rows = index.rows(_some(index), ["thumbnail"])
    for name, data in zip(rows["id"].to_pylist(), rows["thumbnail"].to_pylist(), strict=True):
        if not data:  # an imported row, whose picture was not at hand
            continue
        try:
            Image.open(io.BytesIO(data)).load()
        except Exception as error:  # Pillow's readers raise anything on damaged files
            yield f"the thumbnail of {name!r} cannot be decoded: {error}"


def _recall(index: Index, runtime: Runtime) -> Iterator[str]:
    manifest = index.manifest
    effort = manifest.effort
    if not index.count or (effort.kind == "exact" and not manifest.full):
        return
    ask = questions(index.table, manifest, runtime)
    recall = recall_of(index.table, manifest, ask.rows, truth_of(index.table, manifest, ask.rows), effort)
    if recall < effort.recall - _RECALL:
        yield (
            f"recall@10 is {recall:.4f}, and was {effort.recall:.4f} when the index was published; tune it again with: "
            f"clipdistill index sync {index.folder}"
        )


def _again(index: Index, runtime: Runtime) -> Iterator[str]:
    """Embed some pictures again, where they are."""
    if index.manifest.source is None:
        return
    try:
        source = open_source(index.manifest.source, index.folder)
    except (ClipdistillError, OSError) as error:
        yield f"the source cannot be opened: {error}"
        return
    places = np.random.default_rng(0).choice(len(source), min(len(source), SAMPLE), replace=False)
    looks = {look.sample.id: look for look in look_at(runtime, [Task(source[int(place)]) for place in sorted(places)])}
    known, kept = index.rows(list(looks), ["hash"]), index.vectors(list(looks))
    for name, digest in zip(known["id"].to_pylist(), known["hash"].to_pylist(), strict=True):
        row = looks[name].row
        if row is None or (digest and digest != looks[name].hash):
            continue  # unreadable now, or another picture: that is for sync
        if (cosine := float(kept[name] @ row)) < LEAST_COSINE:
            yield f"the row of {name!r} has a cosine of {cosine:.4f} with one embedded now, expected {LEAST_COSINE}"


def _some(index: Index) -> list[str]:
    ids = [name for batch in index.table.scan(["id"]) for name in batch["id"].to_pylist()]
    places = np.random.default_rng(0).choice(len(ids), min(len(ids), SAMPLE), replace=False)
    return [ids[place] for place in places]


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(repr(name) for name in names[:_NAMED]) + more
