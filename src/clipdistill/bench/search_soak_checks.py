"""What is wrong with an answer: nothing, if it is what one published version says, the old one or the new one."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from clipdistill.bench.search_soak_gallery import Held, Ledger, Pool, Rows

#: Another batch rounds otherwise.
TOLERANCE = 1e-4
#: So far, on average, may the pixels of a thumbnail be from the picture's: it is a JPEG.
_PIXELS = 25.0
#: Growth from the second third of a server's life to the end, after which it is called a leak.
_SHARE, _MEGABYTES, _FILES = 0.05, 16.0, 8


@dataclass(frozen=True)
class Asked:
    """A request: its ``kind``, the rows it asks with ``[Q, D]`` (or none), and what else is in it."""

    kind: str
    path: str
    body: bytes | None = None
    rows: Rows | None = None
    word: str = ""
    id: str = ""
    k: int = 10


@dataclass(frozen=True)
class Answered:
    """A request with the answer that came, and when (``time.monotonic()``)."""

    asked: Asked
    status: int
    body: bytes
    sent: float
    received: float


def wrong(answered: Answered, ledger: Ledger, pool: Pool, lag: float) -> str:
    """Say what is wrong with an answer, ``""`` where nothing is."""
    asked, served = answered.asked, ledger.served(answered.sent, answered.received, lag)
    if answered.status == 429:
        return ""
    if answered.status != 200:
        gone = asked.id and any(asked.id not in ledger.versions[number].held.pictures for number in served)
        expected = {"like": 400, "thumbnail": 404}.get(asked.kind)
        return "" if gone and answered.status == expected else f"status {answered.status}: {answered.body[:200]!r}"
    if asked.kind == "embeddings":
        return _embeddings(asked, json.loads(answered.body))
    if asked.kind == "thumbnail":
        held = [ledger.versions[number].held for number in served]
        return _thumbnail(asked, answered.body, held, pool)
    answer = json.loads(answered.body)
    version = answer["version"]
    if version not in served:
        return f"it is of version {version}; then {', '.join(map(str, served)) or 'none'} could be"
    return _hits(asked, answer["hits"], ledger.versions[version].held, pool)


def _hits(asked: Asked, hits: Sequence[dict[str, Any]], held: Held, pool: Pool) -> str:
    """Compare hits with all rows of a version, by hand."""
    captions, rows = held.captions(pool), held.rows(pool)
    row = rows[list(captions).index(asked.id)] if asked.kind == "like" and asked.id in captions else asked.rows
    assert row is not None or asked.kind == "like"
    if row is None:
        return f"{asked.id} is not in its version"
    scores = dict(zip(captions, (rows @ row.ravel()).tolist(), strict=True))
    fit = {
        name: score
        for name, score in scores.items()
        if name != asked.id and asked.word.lower() in captions[name].lower()
    }
    best = sorted(fit.values(), reverse=True)[: asked.k]
    if len(hits) != len(best) or len({hit["id"] for hit in hits}) != len(best):
        return f"{len(hits)} hits instead of {len(best)}"
    if strange := [hit["id"] for hit in hits if hit["id"] not in fit]:
        return f"{strange[0]} is among the hits, and does not belong there in its version"
    for hit, score in zip(hits, best, strict=True):
        name = hit["id"]
        if abs(hit["score"] - fit[name]) > TOLERANCE or abs(hit["score"] - score) > TOLERANCE:
            return f"{name} has the score {hit['score']}; its own is {fit[name]}, and that of its place {score}"
        if hit["caption"] != captions[name]:
            return f"{name} has the caption of another version: {hit['caption']}"
    return ""


def _embeddings(asked: Asked, answer: dict[str, Any]) -> str:
    assert asked.rows is not None
    rows = np.array([one["embedding"] for one in answer["data"]], np.float32)
    if rows.shape != asked.rows.shape:
        return f"rows {list(rows.shape)} instead of {list(asked.rows.shape)}"
    far = float(np.abs(rows - asked.rows).max())
    return "" if far < TOLERANCE else f"rows are {far} from the model's own"


def _thumbnail(asked: Asked, body: bytes, held: Sequence[Held], pool: Pool) -> str:
    """It must show what one of the versions holds."""
    seen = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"), np.float32)
    shown = [pool.pixels[one.pictures[asked.id][0]] for one in held if asked.id in one.pictures]
    if any(seen.shape == pixels.shape and np.abs(seen - pixels).mean() < _PIXELS for pixels in shown):
        return ""
    return f"the thumbnail of {asked.id} is of no picture that it has been"


@dataclass(frozen=True)
class Sample:
    """What a server takes at one moment: seconds of its life, resident MB, and open files."""

    at: float
    megabytes: float
    files: int


def leaks(samples: Sequence[Sample]) -> list[str]:
    """What grows: the second third of a server's life, when it has warmed up, against the last sixth."""
    if len(samples) < 12:
        return []
    size = len(samples)
    before, after = samples[size // 3 : 2 * size // 3], samples[-(size // 6) :]
    told = []
    memory = [float(np.median([one.megabytes for one in part])) for part in (before, after)]
    if memory[1] > memory[0] * (1 + _SHARE) + _MEGABYTES:
        told.append(f"memory grew from {memory[0]:.0f} to {memory[1]:.0f} MB")
    files = [max(one.files for one in part) for part in (before, after)]
    if files[1] > files[0] + _FILES:
        told.append(f"open files grew from {files[0]} to {files[1]}")
    return told
