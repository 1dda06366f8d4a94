"""What an index says of itself: ``index.json`` as a dataclass. It is written last, and names what readers see.

The fields are the keys of the JSON; docs/search-index.md describes them. Paths are relative to the folder of the index
where they lie beside it, so that folders can be moved together, and absolute where they do not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from clipdistill.errors import SearchError
from clipdistill.files import write_text

FORMAT, VERSION = "clipdistill index", 1
MANIFEST = "index.json"
#: The manifest of an index that is being made or made anew, until it is complete.
PENDING = "pending.json"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Model:
    """The exported model whose rows these are: ``path`` as :func:`place` writes it, ``width`` of its rows."""

    path: str
    fingerprint: str
    width: Annotated[int, Field(gt=0)]
    sides: str


@dataclass(frozen=True)
class Source:
    """Where the pictures came from: a data URI, whose paths count from ``root``; so do the locations of the rows."""

    uri: str
    root: str


@dataclass(frozen=True)
class Effort:
    """How hard a search looks, as it was tuned.

    ``kind`` is ``exact`` where every row is compared, or ``hnsw``: a graph with scalar quantisation, in which a search
    keeps ``ef`` candidates and compares the best ``refine`` times k by their full precision. Where rows are searched
    by their first dimensions, the best ``rescore`` times k are compared by all of them. ``recall`` is the share of the
    true ten nearest that a search finds, measured on so many ``queries``, which were ``asked`` as the words say.
    """

    kind: Literal["exact", "hnsw"] = "exact"
    ef: Annotated[int, Field(gt=0)] | None = None
    refine: Annotated[int, Field(gt=0)] | None = None
    rescore: Annotated[int, Field(gt=0)] | None = None
    recall: Finite = 1.0
    queries: Count = 0
    asked: str = ""


@dataclass(frozen=True)
class Retired:
    """A snapshot that readers may still hold, until some time after ``since`` (seconds since 1970)."""

    table: str
    snapshot: int
    since: Finite


@dataclass(frozen=True)
class Manifest:
    """Everything about an index but its rows.

    Rows are searched by their first ``width`` dimensions. ``version`` counts what was published; ``table`` and its
    ``snapshot``, in the engine's own numbers, are what readers see, ``count`` its rows. ``engine`` is None
    for LanceDB in the folder, else the URI of a Milvus collection. ``unreadable`` pictures of the source were left out.
    ``calibration`` maps ``text`` and ``image`` to what makes a probability of a cosine. ``unchecked`` rows were
    imported on somebody's word that they are the model's.
    """

    model: Model
    source: Source | None
    width: Annotated[int, Field(gt=0)]
    table: str = "pictures-1"
    version: Count = 0
    snapshot: Count = 0
    count: Count = 0
    engine: str | None = None
    effort: Effort = Effort()
    unreadable: Count = 0
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    unchecked: bool = False
    retired: tuple[Retired, ...] = ()
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def full(self) -> int | None:
        """The width of the rows that the best are rescored by; None where rows are searched by all they have."""
        return self.model.width if self.width < self.model.width else None

    def to_json(self) -> str:
        """Write it as JSON, with the name and version of the format first."""
        return json.dumps({"format": FORMAT, "version_of_format": VERSION, **asdict(self)}, indent=1) + "\n"

    def write(self, folder: Path, name: str = MANIFEST) -> None:
        """Write it into an index's folder, whole or not at all; whoever writes holds the lock of the folder."""
        write_text(folder / name, self.to_json())

    @classmethod
    def read(cls, folder: Path, name: str = MANIFEST) -> Manifest:
        """Read what :meth:`write` wrote; raises :class:`SearchError` that names the file and the key."""
        path = folder / name
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise _missing(folder) from None
        except (OSError, ValueError) as error:
            raise SearchError(
                f"{path} cannot be read ({error}): the index is damaged. Copy or make it again."
            ) from error
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise SearchError(f"{path} is not the manifest of an index: it does not say format '{FORMAT}'.")
        if values.get("version_of_format") != VERSION:
            raise SearchError(
                f"{path} is of version {values.get('version_of_format')!r}, and this program reads version {VERSION}. "
                "Update clipdistill, or make the index again."
            )
        try:
            return _adapter().validate_python(dict(values))
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(map(str, fault["loc"]))
            raise SearchError(f"{path}: key {key}: {fault['msg']}. The index is damaged; make it again.") from error


def place(path: Path, folder: Path) -> str:
    """Write down a path for an index's folder: relative to it if it lies beside it or below, else absolute."""
    path, beside = path.absolute(), folder.absolute().parent
    if path == beside or beside in path.parents:
        return Path(os.path.relpath(path, folder.absolute())).as_posix()
    return str(path)


def find(text: str, folder: Path) -> Path:
    """The path that :func:`place` wrote down, wherever the folders are now."""
    return Path(os.path.normpath(folder.absolute() / text))


def _missing(folder: Path) -> SearchError:
    if (folder / PENDING).exists():
        return SearchError(
            f"{folder} is not complete: its making was interrupted. Run the same clipdistill index again to go on."
        )
    return SearchError(
        f"{folder} is not an index: there is no {folder / MANIFEST}. "
        f"Make one with: clipdistill index PHOTOS --model MODEL --out {folder}"
    )


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
