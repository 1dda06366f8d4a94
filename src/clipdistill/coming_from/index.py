"""An index of pictures that were embedded before: by ``clipdistill embed``, by clip-retrieval, or by anything else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from clipdistill.coming_from.index_filling import Filling
from clipdistill.coming_from.index_rows import Embedded, open_rows
from clipdistill.data.remote import no_commands
from clipdistill.data.samples import Source
from clipdistill.errors import DataError, SearchError
from clipdistill.progress import console
from clipdistill.search import manifest as papers
from clipdistill.search.build import checked_width, model_of
from clipdistill.search.index import Index
from clipdistill.search.locking import LOCK, writing
from clipdistill.search.manifest import MANIFEST, PENDING, Manifest, place
from clipdistill.search.origin import pictures_of
from clipdistill.search.publishing import finish, publish
from clipdistill.search.runtime import Runtime
from clipdistill.search.tables import refuse_taken, write_table


def import_index(
    source: str | Path,
    model: str | Path,
    out: str | Path,
    engine: str | None = None,
    width: int | None = None,
    data: str | None = None,
    id_column: str | None = None,
    unchecked: bool = False,
) -> Index:
    """Make an index of rows that ``model``, an exported folder, or what it was exported from, gave before.

    ``source`` is a store, a clip-retrieval folder, or an array with its table. ``data`` are the pictures that were
    embedded, by default those that a store names: from there come ids, captions, tags and thumbnails, and a later
    sync. Without, pictures are looked for where the files say. That the rows are the model's is shown by its
    fingerprint, if that was written down, else by embedding some pictures again; ``unchecked`` takes it on trust.

    Raises :class:`StoreError` for files that are not understood, :class:`SearchError` for rows that are not the
    model's, and where ``out`` is an index already. A stopped import is run again, from its beginning.
    """
    runtime, folder = Runtime.open(model), Path(out)
    embedded = open_rows(Path(source), id_column)
    pictures = _pictures(embedded, data)
    root = Path.cwd()
    origin = papers.Source(pictures.uri, place(root, folder)) if pictures else None
    width = checked_width(width, runtime)
    manifest = Manifest(model_of(runtime, folder), origin, width, engine=engine, unchecked=unchecked)
    trusted = unchecked or embedded.fingerprint == runtime.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        _refuse_others(folder, manifest)
        if not (folder / PENDING).exists():
            refuse_taken(manifest, folder)
        manifest.write(folder, PENDING)
        table = write_table(manifest, folder)
        filling = Filling(embedded, runtime, table, manifest, pictures, root, trusted)
        filling.run()
        _tell(folder, filling)
        made = publish(table, table.publish(), manifest, folder, runtime)
        table.close()
        return finish(made, folder, runtime)


def _pictures(embedded: Embedded, data: str | None) -> Source | None:
    """Open the data that were embedded; those that only a store names may have gone."""
    if data is not None:
        return pictures_of(data)
    if embedded.data:
        with suppress(DataError, SearchError), no_commands():
            return pictures_of(embedded.data)
        console.print(
            f"the pictures that were embedded, {embedded.data}, cannot be opened: the index has no captions and no "
            "thumbnails. If they are somewhere else, say where with --data",
            markup=False,
        )
    return None


def _refuse_others(folder: Path, wanted: Manifest) -> None:
    names = {path.name for path in folder.iterdir()} - {LOCK}
    if MANIFEST in names:
        raise SearchError(f"{folder} is an index already. Name another folder with --out, or delete that one.")
    if names and (PENDING not in names or Manifest.read(folder, PENDING) != wanted):
        raise SearchError(f"{folder} holds something else: {min(names)}. Name another folder with --out.")


def _tell(folder: Path, filling: Filling) -> None:
    for what, count in filling.left_out.items():
        if count:
            console.print(f"{folder}: left out: {count:,} {what}", markup=False)
    if filling.manifest.unchecked:
        console.print(f"{folder}: nothing was checked; that the rows are this model's is your word", markup=False)
