"""Does a store hold what it says? Files against checksums, rows against their length, samples against the model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clipdistill.data.remote import no_commands
from clipdistill.data.samples import Sample, Source
from clipdistill.data.sources import pairs
from clipdistill.errors import ClipdistillError, StoreError
from clipdistill.files import checksum
from clipdistill.models.device import make_autocast
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.loading import load
from clipdistill.progress import progress
from clipdistill.teachers.manifest import Shard
from clipdistill.teachers.rows import Pictures, told, unit_rows
from clipdistill.teachers.shards import INDEX, build_index, files_of, mapped, read_keys
from clipdistill.teachers.store import EmbeddingStore

SAMPLES, LEAST_COSINE = 16, 0.999
#: A unit row in float16 is this close to unit length: 2^-11 relative error of each entry at most, rarely alike.
LENGTH_ERROR = 1e-3


@dataclass
class Report:
    """What is wrong, and what was looked at or could not be."""

    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"wrong: {finding}" for finding in self.findings] + self.notes
        return "\n".join([*lines, f"{len(self.findings)} findings" if self.findings else "nothing is wrong"])


def check_store(path: Path | str, model: str | None = None, data: str | None = None) -> Report:
    """Check a store's files, and recompute some rows with ``model`` from ``data`` (as a rule those of the manifest).

    Raises:
        StoreError: there is no finished store at ``path``.
        ClipdistillError: ``model`` or ``data`` is given and cannot be opened.
    """
    store, report = EmbeddingStore.open(path), Report()
    total = sum(len(side.shards) for side in store.manifest.sides.values())
    with progress(f"checking {path}", total, "shards") as advance:
        for number, (folder, shard) in enumerate(_shards(store), 1):
            report.findings += _check_shard(store, folder, shard)
            advance(number, "")
    rows = sum(side.rows for side in store.manifest.sides.values())
    report.notes.append(f"files: {total} shards, {rows} rows read")
    if not report.findings:
        for side in store.manifest.sides:
            report.findings += _check_index(store, side)
    if not report.findings:
        _recompute(store, model, data, report)
    return report


def _shards(store: EmbeddingStore) -> Iterator[tuple[str, Shard]]:
    for folder, side in store.manifest.sides.items():
        for shard in side.shards:
            yield folder, shard


def _check_shard(store: EmbeddingStore, folder: str, shard: Shard) -> list[str]:
    """Files as they were written, as many rows as keys, all of unit length."""
    found = []
    for path, expected in zip(files_of(store.path / folder / shard.file), _sums(shard), strict=True):
        if expected is not None and not path.is_file():
            found.append(f"{path} is missing")
        elif expected is not None and checksum(path) != expected:
            found.append(f"{path} is not what was written: its checksum differs from the manifest's")
    if found:
        return found
    path = store.path / folder / shard.file
    rows, keys = mapped(path), sum(1 for _ in read_keys(files_of(path)[1]))
    per_sample = max(store.manifest.views.count, 1) if folder == "image" else 1
    if rows.shape != (keys * per_sample, store.width) or (keys, len(rows)) != (shard.samples, shard.rows):
        expected_shape = [shard.samples * per_sample, store.width]
        return [f"{path} is {list(rows.shape)} with {keys} keys, expected {expected_shape} with {shard.samples}"]
    lengths = _lengths(rows)
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= LENGTH_ERROR))
    return (
        [f"{path}: {len(bad)} rows are not of length 1, first row {bad[0]}: {lengths[bad[0]]:.4f}"] if len(bad) else []
    )


def _sums(shard: Shard) -> tuple[str, str, str | None]:
    return shard.checksum, shard.keys, shard.views


def _lengths(rows: NDArray[np.generic], block: int = 4096) -> NDArray[np.float32]:
    parts = [np.linalg.norm(rows[at : at + block].astype(np.float32), axis=1) for at in range(0, len(rows), block)]
    return np.concatenate([np.empty(0, np.float32), *parts])


def _check_index(store: EmbeddingStore, folder: str) -> list[str]:
    """The index is what the keys give, in order; the shards add up."""
    side, path = store.manifest.sides[folder], store.path / folder / INDEX
    try:
        expected = build_index(store.path / folder, side)
        same = np.array_equal(mapped(path), expected)
    except StoreError as error:
        return [str(error)]
    found = [] if same else [f"{path} is not the index of the keys beside it"]
    sums = sum(shard.samples for shard in side.shards), sum(shard.rows for shard in side.shards)
    if sums != (side.samples, side.rows):
        found.append(f"the {folder} shards hold {sums} samples and rows, the manifest says {(side.samples, side.rows)}")
    return found


def _recompute(store: EmbeddingStore, model: str | None, data: str | None, report: Report) -> None:
    """Embed a few samples again and compare, where model and data can be had."""
    uri = model or store.manifest.model.uri
    if not uri:
        report.notes.append("rows were not recomputed: the store does not say which model gave them; name it (--model)")
        return
    try:
        encoder = load(uri)
        with nullcontext() if data else no_commands():
            source = pairs(data or store.manifest.source.uri)
    except ClipdistillError as error:
        if model or data:
            raise
        report.notes.append(f"rows were not recomputed, because model or data cannot be opened: {error}")
        return
    for name, now, then in (
        ("model", encoder, store.manifest.model.fingerprint),
        ("data", source, store.manifest.source.fingerprint),
    ):
        if then and now.fingerprint != then:
            report.findings.append(f"the {name} {now.uri} is not what was embedded: its fingerprint differs")
    autocast = make_autocast(torch.device("cpu"), store.manifest.precision or "float32")
    order = random.Random(0).sample(range(len(source)), min(len(source), 4 * SAMPLES))
    compared, worst = 0, 1.0
    for position in order:
        for key, cosine in _cosines(store, encoder, source, position, autocast):
            compared, worst = compared + 1, min(worst, cosine)
            if not cosine >= LEAST_COSINE:
                report.findings.append(f"the row of {key} is another: cosine {cosine:.4f} to what the model gives now")
        if compared >= SAMPLES * len(store.sides):
            break
    if compared:
        report.notes.append(f"recomputed {compared} rows: least cosine {worst:.6f}")
    elif store.manifest.views.known:
        told = f"no row could be compared: none of the samples tried of {source.uri} is in the store"
        (report.findings if model or data else report.notes).append(told)


def _cosines(
    store: EmbeddingStore, encoder: DualEncoder, source: Source, position: int, autocast: AbstractContextManager[None]
) -> Iterator[tuple[str, float]]:
    """Compare the stored picture, in one view, and one caption of a sample with what the model gives."""
    sample = source[position]
    plan = store.manifest.views
    if "I" in store.sides and plan.known and encoder.transform and store.find("I", [sample.id])[0] >= 0:
        looks = Pictures(source, encoder.transform, store.views, plan.count)[0, [position]]
        if looks.ids:
            rows = unit_rows(encoder, encoder.images, looks.pixels, looks.ids, autocast)
            view = position % len(rows)
            yield f"picture '{sample.id}', view {view}", _dot(rows[view], store.rows("I", [sample.id], view))
    if "T" in store.sides and "T" in encoder.sides and (found := _caption(store, sample)):
        key, caption = found
        rows = unit_rows(encoder, encoder.texts, encoder.tokenize([caption]), [caption], autocast)
        yield f"caption '{caption}'", _dot(rows[0], store.rows("T", [key]))


def _caption(store: EmbeddingStore, sample: Sample) -> tuple[str, str] | None:
    """A caption of a sample and the key of its row, if it is stored."""
    captions = told(sample)[:1]
    if not captions:
        return None
    key = captions[0] if store.manifest.sides["text"].by == "caption" else sample.id
    return (key, captions[0]) if store.find("T", [key])[0] >= 0 else None


def _dot(row: NDArray[np.float32], stored: NDArray[np.generic]) -> float:
    other = stored[0].astype(np.float32)
    return float(row @ other / max(float(np.linalg.norm(other)), 1e-9))
