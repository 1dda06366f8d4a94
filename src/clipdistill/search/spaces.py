"""Which models may ask an index: its own, and students whose rows are of its model's space.

A student that was taught to give its teacher's own rows says so in its record: ``space`` holds the ``fingerprint`` of
that teacher, and the ``sides`` (``I``, ``T`` or both) that were held against its rows. The teacher then embeds the
gallery, once and at leisure, and the student the queries.
"""

from __future__ import annotations

from pathlib import Path

from clipdistill.errors import SearchError
from clipdistill.search.index import Index
from clipdistill.search.query import Query
from clipdistill.search.runtime import Runtime


def open_model(index: Index, model: str | Path | None, threads: int | None) -> Runtime:
    """Open the model that an index was made with, or ``model`` for its queries.

    Raises :class:`SearchError` for a model that is not where it was, is not what it was, or is of another space.
    """
    own = index.manifest.model
    if model is None and not index.model.is_dir():
        raise SearchError(
            f"the model of {index.folder} is not at {index.model} any more. Put it back there, or say where it is: "
            "--model FOLDER."
        )
    runtime = Runtime.open(index.model if model is None else model, threads)
    if runtime.fingerprint != own.fingerprint:
        _check_space(index, runtime)
    return runtime


def check_sides(index: Index, runtime: Runtime, query: Query) -> None:
    """Raise :class:`SearchError` for texts or pictures that a student never learnt to embed as its teacher does."""
    if runtime.fingerprint == index.manifest.model.fingerprint:
        return
    for side, noun, asked in (("T", "texts", query.texts), ("I", "pictures", query.images)):
        if asked and side not in runtime.record["space"]["sides"]:
            raise SearchError(
                f"{runtime.folder} did not learn its teacher's rows of {noun}, so its own cannot be compared with "
                f"those of {index.folder}. Search with the index's own model."
            )


def _check_space(index: Index, runtime: Runtime) -> None:
    own, space = index.manifest.model, runtime.record.get("space") or {}
    if space.get("fingerprint") != own.fingerprint:
        raise SearchError(
            f"{index.folder} was made with the model {own.fingerprint}, and {runtime.folder} is {runtime.fingerprint}: "
            "rows of different models cannot be compared. Search with the index's own model, or embed all pictures "
            f"anew: clipdistill index rebuild {index.folder} --model {runtime.folder}. Another model may ask only if "
            "it is a student that learnt its teacher's own rows, at the teacher's width (as by the recipe best), "
            "and that teacher made the index; then its record says so under 'space'."
        )
    if runtime.width != own.width:
        raise SearchError(
            f"{runtime.folder} gives rows of {runtime.width} numbers, {index.folder} holds rows of {own.width}. "
            "Search with the index's own model, or with a student of its width."
        )
