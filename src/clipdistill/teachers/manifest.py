"""What a store says about itself: ``manifest.json`` as a dataclass, and the records of its shards.

The fields are the keys of the JSON; docs/formats.md describes them for readers of other languages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, StringConstraints, TypeAdapter, ValidationError

from clipdistill.data.views import Augmentation
from clipdistill.errors import StoreError
from clipdistill.models.licences import Link

FORMAT, VERSION = "clipdistill store", 1
MANIFEST = "manifest.json"
#: The folders of a store, by side.
FOLDERS = {"I": "image", "T": "text"}
#: What to call the rows of a side's folder, and their keys.
NOUNS = {"image": "ids", "text": "captions"}


def _as_name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a text")
    return value


#: Text that may hold half a character, as the bytes of a file name do that are no text; pydantic's own refuses them.
Name = Annotated[str, PlainValidator(_as_name)]
#: NaN is valid in JSON as Python reads it, and would only be met as a loss that is not finite.
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class Model:
    """The model that gave the rows: what the user called it, and the hash of its content."""

    uri: str
    fingerprint: str


@dataclass(frozen=True)
class Data:
    """The samples that were embedded."""

    uri: str
    fingerprint: str
    samples: int


@dataclass(frozen=True)
class ViewPlan:
    """Which views of each picture are stored.

    ``count`` 0 is the whole picture, once. Otherwise there are ``count`` rows for each: drawn from ``seed`` and
    ``augmentation``, or ``explicit``, written down beside the rows, or, with neither, views that nobody knows.
    """

    count: int = 0
    seed: int = 0
    augmentation: Augmentation | None = None
    explicit: bool = False

    @property
    def known(self) -> bool:
        """Whether a student can be shown what the teacher saw."""
        return not self.count or self.explicit or self.augmentation is not None


@dataclass(frozen=True)
class Shard:
    """One file of rows: ``checksum`` is its SHA-256, ``keys`` and ``views`` those of the keys and the explicit
    views beside it.
    """

    file: Annotated[str, StringConstraints(pattern=r"^\d+\.npy$")]  # in the side's folder, nowhere else
    samples: int
    rows: int
    checksum: str
    keys: str
    views: str | None = None


@dataclass(frozen=True)
class Side:
    """The rows of one side; ``by`` says what finds them: ``id`` or ``caption``."""

    samples: int = 0
    rows: int = 0
    shards: tuple[Shard, ...] = ()
    by: Literal["id", "caption"] = "id"


@dataclass(frozen=True)
class Manifest:
    """Everything about a store but its rows.

    ``scale`` and ``bias`` are the model's logit scale (a multiplier) and bias, ``transform`` what it does to a picture,
    ``precision`` what it computed in, ``licences`` its own and those of what it was made from. ``sides`` and
    ``skipped``, the number of pictures left out, are filled in by :func:`clipdistill.teachers.store.finish`; before,
    ``sides`` need only say what is not found by its usual key.
    """

    model: Model
    source: Data
    width: int
    scale: Finite
    bias: Finite | None = None
    dtype: Literal["float16", "float32"] = "float16"
    transform: dict[str, Any] | None = None
    views: ViewPlan = ViewPlan()
    precision: str | None = None
    sides: dict[str, Side] = field(default_factory=dict)
    skipped: int = 0
    packages: dict[str, str] = field(default_factory=dict)
    licences: tuple[Link, ...] = ()

    def to_json(self) -> str:
        """Write it as JSON, with the name and version of the format first."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        return text.encode("utf-8", "replace").decode()  # any reader takes it, whatever a path holds

    @classmethod
    def from_json(cls, text: str, path: Path = Path(MANIFEST)) -> Manifest:
        """Read what :meth:`to_json` wrote; raises :class:`StoreError` that names ``path`` and the key."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise StoreError(f"{path} is not JSON: {error}. The store is damaged; copy or make it again.") from error
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise StoreError(f"{path} is not the manifest of a store: it does not say format '{FORMAT}'.")
        if values.get("version") != VERSION:
            raise StoreError(
                f"{path} is of version {values.get('version')!r}, and this program reads version {VERSION}. "
                "Update clipdistill, or make the store again."
            )
        try:
            manifest = _adapter().validate_python(dict(values))
        except ValidationError as error:
            raise StoreError(f"{path}: {explain(error)}. The store is damaged; copy or make it again.") from error
        if unknown := manifest.sides.keys() - set(FOLDERS.values()):
            raise StoreError(f"{path}: key sides: expected image and text, found {', '.join(sorted(unknown))}.")
        return manifest

    @property
    def fingerprint(self) -> str:
        """A hash of all of it: it holds the checksums of the rows, so it changes when any row does."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Record:
    """What a finished shard says about itself, in a file of its own."""

    samples: int
    rows: int
    checksum: str
    keys: str
    views: str | None = None
    skipped: tuple[tuple[Name, Name], ...] = ()

    def to_json(self) -> str:
        """Write it as JSON, with escapes for what is no ASCII: the ids of what is skipped come back as they are."""
        return json.dumps(asdict(self)) + "\n"


def read_records(folder: Path, side: str) -> dict[int, Record]:
    """The records of the finished shards of a side (``image`` or ``text``), by number, in order.

    Raises :class:`StoreError` for one that cannot be read.
    """
    found = {}
    for path in (folder / side).glob("*.json"):
        if not path.stem.isdigit():
            continue
        try:
            found[int(path.stem)] = _record_adapter().validate_python(json.loads(path.read_bytes()))
        except ValueError as error:
            reason = explain(error) if isinstance(error, ValidationError) else f"not JSON ({error})"
            raise StoreError(f"{path}: {reason}. Delete it, and its shard is made again.") from error
    return dict(sorted(found.items()))


def explain(error: ValidationError) -> str:
    """Put pydantic's findings into one line: the keys, what was found, what was expected."""
    return "; ".join(
        f"key {'.'.join(map(str, item['loc'])) or '(whole file)'}: {item['msg']} (found {str(item['input'])[:60]})"
        for item in error.errors()
    )


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


@cache
def _record_adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Record)
