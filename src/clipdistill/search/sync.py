"""Bring an index up to date with its source, or make it anew with another model; searches go on meanwhile."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from clipdistill.errors import SearchError
from clipdistill.search.build import checked_width, fill, model_of, open_image_model
from clipdistill.search.contents import Changes, bring_up_to_date, default_workers
from clipdistill.search.index import Index
from clipdistill.search.locking import writing
from clipdistill.search.manifest import PENDING, Manifest, find
from clipdistill.search.origin import open_source
from clipdistill.search.publishing import begun_table, finish, publish
from clipdistill.search.runtime import Runtime
from clipdistill.search.tables import write_table

__all__ = ["Changes", "rebuild", "sync"]


def sync(index: Index, workers: int | None = None, allow_deletes: bool = False) -> Changes:
    """Add what the source has now, embed anew what changed, remove what is gone, and publish all of it at once.

    Pictures are known by their content: one whose bytes are the same is not embedded again, whatever else changed.
    :meth:`Index.current` gives the new version. A stop at any moment loses nothing; the same call goes on.

    Raises:
        SearchError: another process writes; the index was imported without a source; its model has changed or moved;
            more than half of the pictures would go, and ``allow_deletes`` is not given.
        DataError: the source cannot be opened, or lists nothing.
        InterruptedRunError: Ctrl-C.
    """
    folder = index.folder
    with writing(folder):
        before = replace(Manifest.read(folder), engine=index.manifest.engine)
        if before.source is None:
            raise SearchError(f"{folder} was imported, and knows no source of its pictures: there is nothing to read.")
        source, runtime = open_source(before.source, folder), own_model(before, folder)
        many = default_workers(len(source)) if workers is None else workers
        table = write_table(before, folder)
        root = find(before.source.root, folder)
        changes = bring_up_to_date(table, before, source, root, runtime.folder, many, allow_deletes)
        made = table.publish()
        if changes or made.snapshot != before.snapshot:  # an earlier run may have written, and then been stopped
            publish(table, made, replace(before, unreadable=changes.unreadable), folder, runtime, before)
        table.close()
        if begun_table(folder) == before.table:  # a stop came after it was published, and before it was finished
            finish(Manifest.read(folder), folder, runtime).close()
    return changes


def rebuild(index: Index, model: str | Path, width: int | None = None, workers: int | None = None) -> Index:
    """Embed all pictures with another model, beside what is searched, and go over to that when it is complete.

    A stop at any moment loses at most what was in work; the same call goes on. ``width`` as in
    :func:`~clipdistill.search.build.build_index`. Raises what :func:`sync` does.
    """
    folder, runtime = index.folder, open_image_model(model)
    with writing(folder):
        before = replace(Manifest.read(folder), engine=index.manifest.engine)
        if before.source is None:
            raise SearchError(f"{folder} was imported, and knows no source of its pictures. Import it anew instead.")
        source = open_source(before.source, folder)
        size, model_ = checked_width(width, runtime), model_of(runtime, folder)
        wanted = _pending(Manifest(model_, before.source, size, table=before.table, engine=before.engine), folder)
        wanted.write(folder, PENDING)
        return fill(wanted, folder, source, runtime, workers)


def own_model(manifest: Manifest, folder: Path) -> Runtime:
    """Open the model that an index was made with.

    Raises :class:`SearchError` where it is not there any more, and where another one is in its place.
    """
    path = find(manifest.model.path, folder)
    if not path.is_dir():
        raise SearchError(
            f"the model of {folder} is not at {path} any more. Put it back there, or embed everything with another: "
            f"clipdistill index rebuild {folder} --model MODEL"
        )
    runtime = open_image_model(path)
    if runtime.fingerprint != manifest.model.fingerprint:
        raise SearchError(
            f"{folder} was made with the model {manifest.model.fingerprint}, and {path} is {runtime.fingerprint} now: "
            "rows of the two cannot be compared. Put the model back, or embed everything with the new one: "
            f"clipdistill index rebuild {folder} --model {path}"
        )
    return runtime


def _pending(wanted: Manifest, folder: Path) -> Manifest:
    """What is to be made: where an earlier run began the very same, its table, else a new one."""
    last = wanted.table
    with suppress(SearchError):  # nothing was begun
        begun = Manifest.read(folder, PENDING)
        if (begun.model.fingerprint, begun.width) == (wanted.model.fingerprint, wanted.width):
            return replace(wanted, table=begun.table)
        last = max(last, begun.table, key=_number)
    return replace(wanted, table=f"pictures-{_number(last) + 1}")


def _number(table: str) -> int:
    return int(table.rpartition("-")[2])
