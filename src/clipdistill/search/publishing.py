"""Showing what was written, all at once: the manifest is the last thing to change, and readers go by nothing else."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from clipdistill.errors import SearchError
from clipdistill.progress import console
from clipdistill.search.index import Index
from clipdistill.search.manifest import PENDING, Effort, Manifest, Retired
from clipdistill.search.runtime import Runtime
from clipdistill.search.table import Published, Table
from clipdistill.search.tables import open_table
from clipdistill.search.tuning import GOAL, questions, tune

#: Readers may go on so long with what was published before.
SECONDS_KEPT = 3600.0


def publish(
    table: Table,
    made: Published,
    manifest: Manifest,
    folder: Path,
    runtime: Runtime | None,
    before: Manifest | None = None,
) -> Manifest:
    """Tune the search of what ``table`` has ``made`` by its own publishing, and let readers see it.

    ``before`` is what was published until now, if anything was. Without a ``runtime`` (where the model is not at hand)
    the effort stays as it was tuned last. Whoever calls holds the lock. Returns the manifest that was written.
    """
    fresh = replace(manifest, snapshot=made.snapshot, version=before.version + 1 if before else 1, packages=_packages())
    reader = open_table(fresh, folder)
    fresh = replace(fresh, count=reader.count(), retired=_retired(before, time.time()))
    if not made.graph and not fresh.full:
        fresh = replace(fresh, effort=Effort())
    elif runtime:
        fresh = replace(fresh, effort=tune(reader, fresh, questions(reader, fresh, runtime), made.graph))
    reader.close()
    fresh.write(folder)
    _forget(table, fresh, folder)
    console.print(_told(fresh, folder), markup=False)
    return fresh


def finish(manifest: Manifest, folder: Path, runtime: Runtime) -> Index:
    """Learn what scores mean in a new index, and forget that it was ever being made."""
    from clipdistill.search.corpus_calibration import calibrate_index

    index = Index.open(folder)
    replace(manifest, calibration=calibrate_index(index, runtime)).write(folder)
    (folder / PENDING).unlink(missing_ok=True)
    index.close()
    return Index.open(folder)


def begun_table(folder: Path) -> str | None:
    """The table that an index's next rows are being written to, if it is being made, or made anew."""
    with suppress(SearchError):
        return Manifest.read(folder, PENDING).table
    return None


def _retired(before: Manifest | None, now: float) -> tuple[Retired, ...]:
    """What was published before, as far as somebody may still read it."""
    if before is None:
        return ()
    kept = [one for one in before.retired if now - one.since < SECONDS_KEPT]
    return (*kept, Retired(before.table, before.snapshot, now))


def _forget(table: Table, manifest: Manifest, folder: Path) -> None:
    begun = begun_table(folder)
    beside = [Retired(begun, 0, 0.0)] if begun not in (None, manifest.table) else []
    table.forget([*manifest.retired, *beside])


def _told(manifest: Manifest, folder: Path) -> str:
    effort = manifest.effort
    how = "every row is compared" if effort.kind == "exact" else f"HNSW, ef={effort.ef}, refine={effort.refine}"
    if manifest.full:
        how += f", by {manifest.width} of {manifest.full} dimensions, {effort.rescore} x k rescored by all"
    line = f"{folder}: {manifest.count:,} pictures, version {manifest.version}; {how}"
    if effort.kind == "exact" and not manifest.full:
        return line
    line += f"; recall@10 {effort.recall:.4f} against an exact search, asked by {effort.asked}"
    return line if effort.recall >= GOAL else f"{line} (the goal of {GOAL} was not reached)"


def _packages() -> dict[str, str]:
    found = {}
    for name in ("clipdistill", "lancedb", "pymilvus", "onnxruntime"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
