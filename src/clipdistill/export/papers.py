"""What an exported folder says of itself: its licences, how good the graphs are, and what their scores mean.

Shapes: ``N`` pictures, ``M`` captions, ``D`` joint width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.images import decode
from clipdistill.data.samples import Sample
from clipdistill.data.sources import pairs
from clipdistill.errors import DataError, ModelError, SearchError
from clipdistill.evaluation.bootstrap import DRAWS, Interval, Statistic, alone, ratio
from clipdistill.evaluation.metrics import best_ranks
from clipdistill.evaluation.retrieval import KS, pictures_of_texts, texts_of_pictures
from clipdistill.models.bundle import RECORD, model_card
from clipdistill.models.hub import OPEN_CLIP, checkpoint_file, model_folder
from clipdistill.models.licences import as_card, chain, of_record, warnings
from clipdistill.progress import console, progress
from clipdistill.search.calibrate import calibrate
from clipdistill.search.runtime import BATCH, SECTION, Runtime

#: What the graphs are measured on, where the caller names nothing.
SCENES = "scenes:test?n=256&lang=both"
#: Of more pictures so many, spread evenly, are measured on; of more unmatched pairs so many are drawn.
MOST_PICTURES, MOST_PAIRS = 1_000, 200_000


@dataclass(frozen=True)
class _Pairs:
    """Rows of pictures ``[N, D]`` and captions ``[M, D]``, whose caption each is, and what answers it."""

    pictures: NDArray[np.float32]
    captions: NDArray[np.float32]
    owners: NDArray[np.intp]
    answers: list[NDArray[np.intp]]
    skipped: int


def own_record(student: str) -> dict[str, Any]:
    """Return what the record of the model says (teachers, recipe, data, metrics, licences), empty if there is none.

    Raises :class:`ModelError` for a damaged one.
    """
    if student.startswith(OPEN_CLIP[0]) or checkpoint_file(student) is not None:
        return {}
    path = model_folder(student, weights=False) / RECORD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{path} is damaged: {error}. It says what the model was made from: copy it again, or, where that is known "
            "otherwise, remove it."
        ) from error


def licences(record: Mapping[str, Any], student: str) -> dict[str, Any]:
    """Return what the record keeps of licences, and warn of those that restrict the model.

    A student brings its chain along; any other model is looked up.
    """
    links = of_record(record)
    if "licence_chain" not in record:
        links = chain([("exported from", student)])
    for line in warnings(links):
        console.print(line.replace("The student inherits", "The exported model inherits"), markup=False)
    found = as_card(links)
    return {**found, "licence": record.get("licence") or found["licence"]}


def measure(runtime: Runtime, data: str | None) -> dict[str, Any]:
    """Return ``measured`` and ``calibration`` of the record, on up to 1,000 pictures of ``data`` or on drawn ones.

    What cannot be had says why in ``left_out``: a model of one tower, data without captions, too few pairs, a model
    whose scores say nothing. Raises :class:`DataError` for data that cannot be read.
    """
    uri = data or SCENES
    if runtime.sides != "IT":
        return {"measured": None, "calibration": {"left_out": "it takes an image tower and a text tower"}}
    source = pairs(uri)
    found = _embed(runtime, [source[place] for place in _spread(len(source))])
    if not len(found.captions) or len(found.pictures) < 2:
        reason = f"{uri} has {len(found.captions)} captions and {len(found.pictures)} pictures"
        return {"measured": None, "calibration": {"left_out": reason}}
    about = {"data": uri, "fingerprint": source.fingerprint, "drawn": uri.startswith("scenes:")}
    measured = {
        **about,
        "pictures": len(found.pictures),
        "captions": len(found.captions),
        "skipped": found.skipped,
        "draws": DRAWS,
        "metrics": {name: asdict(interval) for name, interval in recalls(found).items()},
    }
    return {"measured": measured, "calibration": {**_calibration(found), **about}}


def card(record: Mapping[str, Any]) -> str:
    """Write the README.md of an exported folder from its record, metrics with their intervals."""
    measured = record[SECTION]["measured"]
    metrics = {
        name: f"{found['value']:.1f} [{found['low']:.1f}, {found['high']:.1f}]"
        for name, found in (measured["metrics"].items() if measured else ())
        if found["low"] is not None
    }
    columns = {f"these graphs, {measured['data']}": metrics} if measured else record.get("metrics")
    return model_card({**record, "library": "onnx", "metrics": columns})


def recalls(found: _Pairs) -> dict[str, Interval]:
    """Return R@1, R@5 and R@10 both ways with 95% intervals; what is drawn are pictures with all their captions."""
    size = len(found.pictures)
    texts_of = texts_of_pictures(found.answers, size)
    asking = np.array([place for place in range(size) if len(texts_of[place])], np.intp)
    ranks = {
        "text_to_image": (best_ranks((found.captions, found.pictures), found.answers), found.owners),
        "image_to_text": (best_ranks((found.pictures, found.captions), texts_of), asking),
    }
    statistics: dict[str, Statistic] = {}
    for way, (rank, owners) in ranks.items():
        asked = np.bincount(owners, minlength=size).astype(np.float64)
        for k in KS:
            statistics[f"{way}_R@{k}"] = ratio(np.bincount(owners, (rank <= k).astype(np.float64), size), asked)
    return alone(size, statistics)


def _calibration(found: _Pairs) -> dict[str, Any]:
    """The curve as plain numbers, or why there is none."""
    matched = np.zeros((len(found.captions), len(found.pictures)), bool)
    for place, answers in enumerate(found.answers):
        matched[place, answers] = True
    scores = (found.captions @ found.pictures.T).astype(np.float64)
    hits, others = np.flatnonzero(matched), np.flatnonzero(~matched)
    if len(others) > MOST_PAIRS:
        others = np.random.default_rng(0).choice(others, MOST_PAIRS, replace=False)
    queries = (hits // len(found.pictures), others // len(found.pictures))
    try:
        return calibrate(scores.flat[hits], scores.flat[others], queries).to_dict()
    except SearchError as error:
        return {"left_out": str(error)}


def _spread(size: int) -> list[int]:
    """Places spread evenly, all of them if they are few: the first samples of a folder may be of one kind."""
    return sorted({int(place) for place in np.linspace(0, size - 1, min(size, MOST_PICTURES))}) if size else []


def _embed(runtime: Runtime, samples: Sequence[Sample]) -> _Pairs:
    """Embed every picture that can be read, with its captions."""
    kept: list[Sample] = []
    contents: list[bytes] = []
    rows = [np.empty((0, runtime.width), np.float32)]
    with progress("measuring the graphs", len(samples), "pictures") as advance:
        for start in range(0, len(samples), BATCH):
            pictures = []
            for sample in samples[start : start + BATCH]:
                try:
                    picture = decode(sample.image) if sample.image is not None else None
                except DataError:
                    continue
                if picture is not None:
                    pictures.append(picture)
                    kept.append(sample)
                    contents.append(hashlib.blake2b(picture.tobytes(), digest_size=16).digest())
            rows.append(runtime.images(pictures))
            advance(min(start + BATCH, len(samples)), "")
    owned = [(place, caption) for place, sample in enumerate(kept) for caption in sample.captions]
    owners, captions = np.array([place for place, _ in owned], np.intp), [caption for _, caption in owned]
    same = [
        (content,) if sample.group is None else (content, ("group", sample.group))
        for content, sample in zip(contents, kept, strict=True)
    ]
    answers = pictures_of_texts(owners, same, captions)
    return _Pairs(np.concatenate(rows), runtime.texts(captions), owners, answers, len(samples) - len(kept))
