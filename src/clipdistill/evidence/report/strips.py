"""Picture strips: the same queries under each model, ten results each, hits marked."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clipdistill.data.images import decode
from clipdistill.data.samples import Sample
from clipdistill.errors import DataError
from clipdistill.evidence.report.searches import Answer, Search, choose

if TYPE_CHECKING:
    from clipdistill.evaluation.evaluate import Evaluation

_QUERIES = 6
_SIDE = 96
_QUALITY = 78
#: Strips of one direction on a page: with many models there are fewer queries, so that the file stays small.
_STRIPS = 30


@dataclass(frozen=True)
class Tile:
    """A picture on the page: its CSS class, what it shows, and whether it answers the query."""

    css: str
    title: str
    hit: bool = False


@dataclass(frozen=True)
class Strip:
    """What one model finds: ten tiles, best first, and a word on how it did."""

    model: int
    tiles: list[Tile]
    note: str


@dataclass(frozen=True)
class Query:
    """A question, a picture or a caption, and each model's answer to it."""

    strips: list[Strip]
    picture: Tile | None = None
    caption: str = ""


@dataclass
class Album:
    """Thumbnails of a page: every distinct picture once, as a CSS class with a JPEG data URI behind it."""

    classes: dict[str, str] = field(default_factory=dict)
    _seen: dict[int, str] = field(default_factory=dict)

    def tile(self, sample: Sample, hit: bool = False) -> Tile:
        """Return a sample's tile; a picture that cannot be read any more is an empty one."""
        if id(sample) not in self._seen:
            self._seen[id(sample)] = self._add(sample)
        title = next((text for text in (*sample.captions, sample.label) if text), sample.id)
        return Tile(self._seen[id(sample)], title, hit)

    def _add(self, sample: Sample) -> str:
        try:
            image = decode(sample.picture, want=(_SIDE, _SIDE))
        except DataError:
            return ""
        image.thumbnail((_SIDE, _SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_QUALITY, optimize=True)
        uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
        return self.classes.setdefault(uri, f"p{len(self.classes)}")


def strips(
    evaluations: Sequence[Evaluation], found: Sequence[Mapping[str, Search]], way: str, album: Album
) -> list[Query]:
    """Return up to six queries of one direction, "image_to_image" or "text_to_image", answered by every model.

    ``found`` holds each evaluation's searches. Models that were evaluated on other data than the first are left out.
    """
    task = "image_retrieval" if way == "image_to_image" else "retrieval"
    models = [number for number, searches in enumerate(found) if way in searches]
    if not models:
        return []
    gallery = evaluations[models[0]].galleries[task]
    samples = gallery.samples
    models = [number for number in models if _same(evaluations[number].galleries[task].samples, samples)]
    asked = gallery.questions[0] if way == "text_to_image" else []
    queries = []
    for query in choose([found[number][way] for number in models], max(1, min(_QUERIES, _STRIPS // len(models)))):
        answers = [
            Strip(number, _tiles(answer, samples, album), _note(answer))
            for number in models
            for answer in [found[number][way].answer(query)]
        ]
        if way == "image_to_image":
            queries.append(Query(answers, picture=_asked(samples[query], album)))
        else:
            queries.append(Query(answers, caption=asked[query]))
    return queries


def _asked(sample: Sample, album: Album) -> Tile:
    """Return the tile of a query; its name is its label where that is what its matches share."""
    tile = album.tile(sample)
    return tile if sample.group is not None or sample.label is None else Tile(tile.css, sample.label)


def _tiles(answer: Answer, samples: Sequence[Sample], album: Album) -> list[Tile]:
    return [album.tile(samples[row], hit) for row, hit in zip(answer.top, answer.hits, strict=True)]


def _note(answer: Answer) -> str:
    hits = sum(answer.hits)
    if answer.matches == 1:
        return f"rank {answer.first:,}"
    return f"{hits} of {min(answer.matches, len(answer.hits))}" if hits else f"first at rank {answer.first:,}"


def _same(one: Sequence[Sample], other: Sequence[Sample]) -> bool:
    """Whether two galleries are the same pictures with the same captions, so that places in them mean the same."""
    return one is other or [(s.id, s.captions) for s in one] == [(s.id, s.captions) for s in other]
