"""What is in an index against what its source lists: the difference is embedded, retold or removed.

Whatever was written before a stop is found there by the next run, which goes on from it. Shapes: ``N`` pictures, ``D``
full width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipdistill.data.samples import Sample, Source, key64
from clipdistill.errors import InterruptedRunError, SearchError
from clipdistill.progress import console, progress
from clipdistill.search.embedding import Look, Task, look_all
from clipdistill.search.manifest import Manifest
from clipdistill.search.origin import caption_of, location_of, tags_of
from clipdistill.search.rescoring import cut
from clipdistill.search.table import Table, schema

#: What is made durable together: so many pictures, or what came in so many seconds. A kill costs no more.
ROWS_AT_ONCE, SECONDS = 4096, 10.0
#: Unreadable pictures that are named.
_NAMED = 20


@dataclass
class Changes:
    """How many pictures were added, embedded anew, only described anew, removed or kept, and could not be read."""

    added: int = 0
    changed: int = 0
    retold: int = 0
    removed: int = 0
    kept: int = 0
    unreadable: int = 0
    #: Of those kept, what is listed and cannot be read now: it is found as it was.
    stale: int = 0

    def __str__(self) -> str:
        stale = f" ({self.stale:,} of which cannot be read now)" if self.stale else ""
        left_out = f", {self.unreadable:,} left out, which cannot be read" if self.unreadable else ""
        return (
            f"{self.added:,} added, {self.changed:,} changed, {self.retold:,} described anew, {self.removed:,} "
            f"removed, {self.kept:,} kept{stale}{left_out}"
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.retold or self.removed)


@dataclass(frozen=True)
class Fact:
    """What is written of a picture: its content hash, and a hash of its description."""

    hash: str
    told: int


@dataclass
class Buffer:
    """What is to be written next."""

    table: Table
    manifest: Manifest
    root: Path
    looks: list[Look] = field(default_factory=list)
    retold: list[Sample] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def flush(self, due: bool = True) -> None:
        """Write it, if it is ``due``; it is durable then."""
        if not due and len(self.looks) < ROWS_AT_ONCE and time.monotonic() - self.since < SECONDS:
            return
        if self.looks:
            self.table.write(_rows(self.looks, self.manifest, self.root))
        if self.retold:
            self.table.write(_retold(self.retold, self.table, self.manifest, self.root))
        self.looks, self.retold, self.since = [], [], time.monotonic()


def bring_up_to_date(
    table: Table, manifest: Manifest, source: Source, root: Path, model: Path, workers: int, allow_deletes: bool = True
) -> Changes:
    """Write to ``table`` what makes it hold the pictures that ``source`` lists, and nothing else.

    A picture that is listed and cannot be read is named; if it was there before, it stays. Raises
    :class:`SearchError` where most pictures would go and ``allow_deletes`` does not say that they may;
    :class:`InterruptedRunError` on Ctrl-C, when all that was done is written.
    """
    facts = dict(_facts(table))
    if facts:
        _refuse_emptying({source[place].id for place in range(len(source))}, facts, source, allow_deletes)
    changes, listed, buffer = Changes(), set[str](), Buffer(table, manifest, root)
    tasks = _tasks(source, facts, listed)
    try:
        with progress(f"indexing {source.uri}", len(source), "pictures") as advance:
            done = 0
            for looks in look_all(tasks, model, workers):
                for look in looks:
                    _sort(look, facts, buffer, changes)
                buffer.flush(due=False)
                done += len(looks)
                advance(done, f"{changes.unreadable} cannot be read" if changes.unreadable else "")
        buffer.flush()
    except BaseException as error:
        with suppress(SearchError):
            buffer.flush()
        if isinstance(error, KeyboardInterrupt):
            told = f"{changes.added + changes.changed:,} pictures were embedded in this run, and are written"
            raise InterruptedRunError(f"stopped: {told}. Run the same command again to go on.") from None
        raise
    gone = sorted(facts.keys() - listed)
    table.delete(gone)
    changes.removed = len(gone)
    return changes


def default_workers(pictures: int) -> int:
    """Processes that are worth starting: none for few pictures, else one for each core."""
    import os

    if pictures <= 256:
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(source: Source, facts: dict[str, Fact], listed: set[str]) -> Iterator[Task]:
    for place in range(len(source)):
        sample = source[place]
        listed.add(sample.id)
        fact = facts.get(sample.id)
        yield Task(sample, fact.hash if fact else None)


def _facts(table: Table) -> Iterator[tuple[str, Fact]]:
    for batch in table.scan(["id", "hash", "location", "caption", "tags"], written=True):
        for row in batch.to_pylist():
            told = key64(row["location"], row["caption"], *(row["tags"] or ()))
            yield row["id"], Fact(row["hash"], told)


def _refuse_emptying(listed: set[str], facts: dict[str, Fact], source: Source, allowed: bool) -> None:
    gone = len(facts.keys() - listed)
    if gone * 2 > len(facts) and not allowed:
        raise SearchError(
            f"{source.uri} lists {len(listed):,} pictures, and {gone:,} of the {len(facts):,} in the index are not "
            "among them. Is a disk missing? Nothing was changed. If they are really gone, say so: --allow-deletes."
        )


def _sort(look: Look, facts: dict[str, Fact], buffer: Buffer, changes: Changes) -> None:
    """Decide what a look means."""
    sample, fact = look.sample, facts.get(look.sample.id)
    reason = look.reason or _no_name(sample.id)
    if reason:
        changes.kept += fact is not None
        changes.stale += fact is not None
        changes.unreadable += fact is None
        if changes.unreadable + changes.stale <= _NAMED:
            console.print(f"{'kept as it was' if fact else 'left out'} {sample.id!r}: {reason}", markup=False)
    elif look.row is not None:
        buffer.looks.append(look)
        changes.changed += fact is not None
        changes.added += fact is None
    elif fact and fact.told != key64(location_of(sample.image, buffer.root), caption_of(sample), *tags_of(sample)):
        buffer.retold.append(sample)
        changes.retold += 1
    else:
        changes.kept += 1


def _no_name(name: str) -> str | None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is no text in UTF-8; rename it"
    return None


def _rows(looks: list[Look], manifest: Manifest, root: Path) -> pa.Table:
    rows = np.stack([look.row for look in looks if look.row is not None])
    columns = {
        "id": [look.sample.id for look in looks],
        "vector": vectors(cut(rows, manifest.width)),
        "hash": [look.hash for look in looks],
        **_described([look.sample for look in looks], root),
        "width": [look.size[0] for look in looks],
        "height": [look.size[1] for look in looks],
        "thumbnail": [look.thumbnail for look in looks],
    }
    if manifest.full:
        columns["full"] = vectors(rows)
    names = schema(manifest.width, manifest.full)
    return pa.table({name: columns[name] for name in names.names}, schema=names)


def _described(samples: list[Sample], root: Path) -> dict[str, list[object]]:
    return {
        "location": [location_of(sample.image, root) for sample in samples],
        "caption": [caption_of(sample) for sample in samples],
        "tags": [tags_of(sample) for sample in samples],
    }


def _retold(samples: list[Sample], table: Table, manifest: Manifest, root: Path) -> pa.Table:
    """The rows of samples as they are written, but with the descriptions of now."""
    names = schema(manifest.width, manifest.full)
    rows = table.rows([sample.id for sample in samples], names.names, written=True).select(names.names)
    known = {sample.id: sample for sample in samples}
    described = _described([known[name] for name in rows["id"].to_pylist()], root)
    for name, values in described.items():
        place = names.get_field_index(name)
        rows = rows.set_column(place, names.field(place), pa.array(values, names.field(place).type))
    return rows


def vectors(rows: np.ndarray) -> pa.FixedSizeListArray:
    """Rows ``[N, D]`` as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows, np.float32).ravel()), rows.shape[1])
