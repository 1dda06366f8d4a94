"""Make an index of pictures: embedded once, by any number of processes, stopped and gone on with at any time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clipdistill.data.samples import Source
from clipdistill.data.sources.anchoring import anchored
from clipdistill.errors import SearchError
from clipdistill.progress import console
from clipdistill.search import manifest as papers
from clipdistill.search.contents import Changes, bring_up_to_date, default_workers
from clipdistill.search.index import Index
from clipdistill.search.locking import LOCK, writing
from clipdistill.search.manifest import MANIFEST, PENDING, Manifest, find, place
from clipdistill.search.origin import pictures_of
from clipdistill.search.publishing import finish, publish
from clipdistill.search.runtime import Runtime
from clipdistill.search.tables import refuse_taken, write_table


def build_index(
    source: str | Path,
    model: str | Path,
    out: str | Path,
    engine: str | None = None,
    width: int | None = None,
    workers: int | None = None,
) -> Index:
    """Embed the pictures of a data URI with an exported model into the index ``out``, or go on with that.

    ``width`` searches by the first so many dimensions and compares the best by all of them, for a model that was
    trained for that. ``engine`` is a Milvus collection (``milvus://host:19530/photos``) instead of LanceDB in the
    folder. ``workers`` processes embed; 0 does it in this one. Pictures that cannot be read are named and left out.

    Raises:
        SearchError: ``out`` holds something else or is being written to; the model reads no pictures.
        DataError: the data cannot be opened, or hold nothing that can be read.
        InterruptedRunError: Ctrl-C; the same call goes on.
    """
    folder = Path(out)
    runtime = open_image_model(model)
    pictures = pictures_of(str(source))
    wanted = _manifest(folder, str(source), runtime, engine, checked_width(width, runtime))
    if _begun(folder, wanted):
        console.print(f"{folder} is complete; bring it up to date with: clipdistill index sync {folder}", markup=False)
        return Index.open(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        _begun(folder, wanted)  # it was looked at without the lock
        if not (folder / PENDING).exists():
            refuse_taken(wanted, folder)
        wanted.write(folder, PENDING)
        return fill(wanted, folder, pictures, runtime, workers)


def fill(manifest: Manifest, folder: Path, source: Source, runtime: Runtime, workers: int | None) -> Index:
    """Embed everything into the table of a pending manifest, and publish it; whoever calls holds the lock.

    Raises :class:`SearchError` where no picture can be read; nothing is published then.
    """
    assert manifest.source is not None
    root = find(manifest.source.root, folder)
    before = Manifest.read(folder) if (folder / MANIFEST).exists() else None
    if before and before.table == manifest.table:  # a stop came between publishing it and finishing it
        manifest = replace(manifest, snapshot=before.snapshot)
    table = write_table(manifest, folder)
    many = default_workers(len(source)) if workers is None else workers
    changes = bring_up_to_date(table, manifest, source, root, runtime.folder, many)
    check_any(changes, source)
    fresh = publish(table, table.publish(), replace(manifest, unreadable=changes.unreadable), folder, runtime, before)
    table.close()
    return finish(fresh, folder, runtime)


def check_any(changes: Changes, source: Source) -> None:
    """Raise :class:`SearchError` where there is nothing to publish."""
    if not (changes.added or changes.changed or changes.retold or changes.kept):
        raise SearchError(
            f"none of the {len(source):,} pictures of {source.uri} can be read: there is nothing to index. "
            f"See what is wrong with: clipdistill data check {source.uri}"
        )


def open_image_model(model: str | Path) -> Runtime:
    """Open an exported model; raises :class:`SearchError` for one that reads no pictures."""
    runtime = Runtime.open(model)
    if "I" not in runtime.sides:
        raise SearchError(f"{model} is a model of captions alone: an index needs one that reads pictures.")
    return runtime


def checked_width(width: int | None, runtime: Runtime) -> int:
    """The width to search by; raises :class:`SearchError` for one that the model's rows do not have."""
    if width is not None and not 1 <= width <= runtime.width:
        raise SearchError(f"the width is {width}, and rows of {runtime.folder} have {runtime.width} dimensions.")
    return width or runtime.width


def model_of(runtime: Runtime, folder: Path) -> papers.Model:
    """What a manifest says of a model."""
    return papers.Model(place(runtime.folder, folder), runtime.fingerprint, runtime.width, runtime.sides)


def _manifest(folder: Path, source: str, runtime: Runtime, engine: str | None, width: int) -> Manifest:
    origin = papers.Source(source, place(Path.cwd(), folder))
    return Manifest(model_of(runtime, folder), origin, width, engine=engine)


def _begun(folder: Path, wanted: Manifest) -> bool:
    """Whether a folder holds this very index, complete; raises :class:`SearchError` for anything else in it."""
    if folder.exists() and not folder.is_dir():
        raise SearchError(f"{folder} is a file; an index is a folder. Name another.")
    names = [name for name in (MANIFEST, PENDING) if (folder / name).exists()]
    if not names:
        if folder.exists() and (there := sorted(path.name for path in folder.iterdir() if path.name != LOCK)):
            raise SearchError(f"{folder} is no index, and not empty: it holds {there[0]}. Name another folder.")
        return False
    for said, is_, asked in _settings(Manifest.read(folder, names[0]), wanted, folder):
        if is_ != asked:
            raise SearchError(
                f"{folder} was made with the {said} {is_}, and is asked for with {asked}. Name another folder, or, for "
                f"another model, run: clipdistill index rebuild {folder} --model {find(wanted.model.path, folder)}"
            )
    return names == [MANIFEST] or (len(names) == 2 and _tables(folder) == 2)


def _tables(folder: Path) -> int:
    """Two where an index is being made anew beside the one that is published."""
    return len({Manifest.read(folder, name).table for name in (MANIFEST, PENDING)})


def _settings(found: Manifest, wanted: Manifest, folder: Path) -> list[tuple[str, object, object]]:
    def data(manifest: Manifest) -> str:
        origin = manifest.source
        return anchored(origin.uri, find(origin.root, folder)) if origin else "no source"

    return [
        ("model", found.model.fingerprint, wanted.model.fingerprint),
        ("source", data(found), data(wanted)),
        ("width", found.width, wanted.width),
        ("engine", found.engine or "LanceDB", wanted.engine or "LanceDB"),
    ]
