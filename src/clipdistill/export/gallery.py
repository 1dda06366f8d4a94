"""What candidates are judged on: pictures and captions as the graphs read them, and which belong together.

Shapes: ``N`` pictures, ``M`` captions, ``D`` joint width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdistill.data.images import decode
from clipdistill.data.samples import Sample, Source
from clipdistill.data.sources import pairs
from clipdistill.errors import DataError
from clipdistill.evaluation.agreement import top_k_overlap
from clipdistill.evaluation.retrieval import text_image
from clipdistill.search.engines import Graph
from clipdistill.search.pixels import read_pixels
from clipdistill.search.runtime import BATCH, Runtime

Rows = NDArray[np.float32]
Inputs = Mapping[str, NDArray[Any]]
Judged = Literal["recall", "neighbours"]

#: Of the user's pictures so many, evenly spread; drawn ones where nothing is named.
PICTURES, SCENES = 1000, "scenes:test?n=500&lang=both"
#: Of the captions of a picture so many: one in each language of drawn scenes.
_CAPTIONS = 2
#: With fewer queries than these that find their own first, both ways, recall is chance and cannot fall.
_FOUND = 10
#: Fewer rows have no neighbours to keep or to lose.
_LEAST = 3
_METRICS = ("text_to_image_R@1", "text_to_image_R@10", "image_to_text_R@1", "image_to_text_R@10")
#: A search as people write them, whose length latency is measured at.
QUERY = "two dogs on a beach"


@dataclass(frozen=True)
class Batches:
    """Inputs of a graph in batches, each a file on disk, and which rows ``[N]`` each of them gives."""

    files: list[Path]
    places: list[NDArray[np.intp]]

    def __len__(self) -> int:
        return sum(len(places) for places in self.places)

    def embed(self, graph: Graph) -> Rows:
        """Run everything through a graph: ``float32 [N, D]``."""
        parts = [graph(_read(file)) for file in self.files]
        rows = np.empty((len(self), parts[0].shape[1]), np.float32)
        for places, part in zip(self.places, parts, strict=True):
            rows[places] = part
        return rows


@dataclass(frozen=True)
class Gallery:
    """Pictures and captions of one model. ``owner [M]`` is each caption's picture; empty where they are not pairs."""

    uri: str
    batches: dict[str, Batches]
    captions: list[str]
    owner: list[int]
    groups: list[str | None]
    skipped: int = 0
    alone: dict[str, Inputs] = field(default_factory=dict)

    @property
    def pairs(self) -> int:
        """Pictures with captions: a recall from pictures moves by 100 points over so many."""
        return len(set(self.owner))


def open_gallery(data: str | None, runtime: Runtime, folder: Path) -> Gallery:
    """Read up to :data:`PICTURES` samples of ``data``, or drawn ones, as the graphs of ``runtime`` read them.

    Pictures that cannot be read are left out. Captions are drawn ones where the data has none. Raises
    :class:`DataError` for data with too little of what the model reads.
    """
    source = pairs(data or SCENES)
    pictures, samples, skipped = _Pictures(runtime, folder), list[Sample](), 0
    for sample in _spread(source):
        if "I" in runtime.sides:
            if sample.image is None:
                continue
            try:
                pictures.add(decode(sample.image))
            except DataError:
                skipped += 1
                continue
        samples.append(sample)
    batches = {"image": pictures.finish()} if "I" in runtime.sides else {}
    captions, owner = _captions(samples)
    if "T" in runtime.sides:
        captions = captions or _captions(list(_spread(pairs(SCENES))))[0]
        batches["text"] = _write_texts(captions, runtime, folder)
    owner = owner if runtime.sides == "IT" else []
    for side, found in batches.items():
        if len(found) < _LEAST:
            what = {"image": "pictures", "text": "captions"}[side]
            raise DataError(
                f"{source.uri} has {len(found)} {what} that can be read; precisions are compared on {_LEAST} or more. "
                "Name other --data, or ship float32 with --precision float32."
            )
    alone = {side: _alone(runtime, side, found) for side, found in batches.items()}
    return Gallery(source.uri, batches, captions, owner, [one.group for one in samples], skipped, alone)


def quality(gallery: Gallery, rows: Mapping[str, Rows], exact: Mapping[str, Rows], judged: Judged) -> dict[str, float]:
    """Return what is lost or kept by a pair of towers, in points of a hundred; float32's are ``exact``.

    ``recall``: R@1 and R@10 from captions to pictures and back, each caption asking over all pictures and each
    picture over all captions; a picture of the same group and an equal caption are right too. ``neighbours``: for each
    row, how many of its ten nearest other rows are among the ten nearest in float32, the mean over rows; of fewer
    than 21 rows it is half of the others. Equal captions count once.
    """
    if judged == "recall":
        found = text_image(rows["image"], rows["text"], gallery.owner, gallery.groups, gallery.captions)
        return {metric: found[metric] for metric in _METRICS}
    kept: dict[str, float] = {}
    for side, mine in rows.items():
        places = list({text: place for place, text in enumerate(gallery.captions)}.values()) if side == "text" else ...
        kept[f"{side}_neighbours"] = _neighbours(mine[places], exact[side][places])
    return kept


def judged_by(gallery: Gallery, exact: Mapping[str, Rows]) -> Judged:
    """Say what can be judged by: recall needs pairs, and a model that finds more of them than chance would."""
    if not gallery.owner:
        return "neighbours"
    found = text_image(exact["image"], exact["text"], gallery.owner, gallery.groups, gallery.captions)
    asked = {"text_to_image_R@1": len(gallery.owner), "image_to_text_R@1": len(set(gallery.owner))}
    first = min(found[metric] * number / 100 for metric, number in asked.items())
    return "recall" if first >= _FOUND - 0.5 else "neighbours"


def _neighbours(mine: Rows, exact: Rows) -> float:
    if len(mine) < _LEAST:
        return 100.0
    k = min(10, (len(mine) - 1) // 2)
    return top_k_overlap((mine, mine), (exact, exact), (k,), exclude=np.arange(len(mine)))[k]


def _spread(source: Source) -> Iterator[Sample]:
    """Samples from all of a source: the first ones of a folder may be of one kind."""
    size = min(len(source), PICTURES)
    yield from (source[place * len(source) // size] for place in range(size))


def _captions(samples: Sequence[Sample]) -> tuple[list[str], list[int]]:
    """Captions, and the place of the sample of each."""
    found = [(text, place) for place, one in enumerate(samples) for text in one.captions[:_CAPTIONS]]
    return [text for text, _ in found], [place for _, place in found]


class _Pictures:
    """Pictures on their way to files, a batch at a time: a thousand of them need not fit in memory."""

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        self._runtime, self._folder, self._waiting, self._count = runtime, folder, list[Image.Image](), 0
        self._found = Batches([], [])

    def add(self, picture: Image.Image) -> None:
        self._waiting.append(picture)
        if len(self._waiting) == BATCH:
            self._write()

    def finish(self) -> Batches:
        if self._waiting:
            self._write()
        return self._found

    def _write(self) -> None:
        inputs = read_pixels(self._runtime.transform, self._waiting)
        places = np.arange(self._count, self._count + len(self._waiting))
        self._found.files.append(_save(self._folder / f"image-{len(self._found.files)}.npz", inputs))
        self._found.places.append(places)
        self._count, self._waiting = self._count + len(places), []


def _write_texts(captions: Sequence[str], runtime: Runtime, folder: Path) -> Batches:
    """Captions of like length together, as the runtime does."""
    reader, found = runtime.reader, Batches([], [])
    order = np.argsort(reader.lengths(captions), kind="stable") if captions else np.empty(0, np.intp)
    for start in range(0, len(captions), BATCH):
        places = order[start : start + BATCH]
        inputs = reader([captions[place] for place in places])
        found.files.append(_save(folder / f"text-{len(found.files)}.npz", inputs))
        found.places.append(places)
    return found


def _alone(runtime: Runtime, side: str, batches: Batches) -> Inputs:
    """What latency is measured on: one picture, or one short query at its own length."""
    if side == "text":
        return runtime.reader([QUERY])
    return {name: array[:1] for name, array in _read(batches.files[0]).items()}


def _save(path: Path, inputs: Inputs) -> Path:
    np.savez(path, allow_pickle=False, **inputs)
    return path


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
