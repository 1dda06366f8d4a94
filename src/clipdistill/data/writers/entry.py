"""What every writer is given: one sample with its picture's bytes, and what is known of all of them beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from clipdistill.data.samples import Sample
from clipdistill.data.sources.tables import OWN_ID


@dataclass(frozen=True)
class Survey:
    """What all samples of a source have in common.

    ``ids_fit`` says that the format's own names can be the ids; else samples are numbered, and the ids written beside.
    ``pictures`` are had by all samples or by none. ``views`` are the text views that any sample has; ``labels`` and
    ``groups`` say whether any has one.
    """

    ids_fit: bool
    pictures: bool
    views: frozenset[str]
    labels: bool
    groups: bool


@dataclass(frozen=True)
class Entry:
    """A sample to write, number ``number``; ``ending`` is that of its picture's format, as ``jpg``.

    ``size`` is width and height as the file says, None where it cannot be told. A sample of words has no ``data``.
    """

    number: int
    sample: Sample
    data: bytes | None
    ending: str
    size: tuple[int, int] | None


class Writer(Protocol):
    """Takes samples one by one; nothing is whole before it is closed."""

    def add(self, entry: Entry) -> None: ...

    def close(self) -> None: ...


def key(number: int, per_file: int = 10_000) -> str:
    """How img2dataset calls sample ``number``: five digits of the shard, then its number in there."""
    shard, place = divmod(number, per_file)
    return f"{shard:05d}{place:0{len(str(per_file - 1))}d}"


def facts(sample: Sample, survey: Survey, captions: str) -> dict[str, Any]:
    """What is told of a sample as a row: the columns that any sample needs, captions under the name ``captions``."""
    row: dict[str, Any] = {}
    if not survey.ids_fit:
        row[OWN_ID] = sample.id
    if "" in survey.views:
        row[captions] = sample.texts.get("", [])
    if "syn" in survey.views:
        row["syn_text"] = sample.texts.get("syn", [])
    if survey.labels:
        row["label"] = sample.label or None
    if survey.groups:
        row["group"] = sample.group or None
    return row
