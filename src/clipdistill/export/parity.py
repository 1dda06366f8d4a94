"""A graph against the model it was made from, before anything of it is published.

Shapes: ``B`` rows, ``D`` joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from clipdistill.errors import ModelError
from clipdistill.models.encoder import DualEncoder
from clipdistill.search.golden import LEAST_COSINE
from clipdistill.search.runtime import Runtime

#: Batches of one, of a few, of an odd number, and as large as the runtime makes them.
BATCHES = (1, 2, 7, 32)


@dataclass
class Parity:
    """The least cosine between a row of the model and the same row of the graph, by side.

    ``tokens`` are the lengths of the shortest and the longest caption that were compared.
    """

    image: float | None = None
    text: float | None = None
    tokens: tuple[int, int] | None = None


@torch.no_grad()
def model_images(encoder: DualEncoder, pictures: Sequence[Image.Image]) -> NDArray[np.float32]:
    """Embed RGB pictures with the model itself: ``float32 [B, D]``, rows of unit length."""
    assert encoder.transform is not None
    prepared = [encoder.transform(picture) for picture in pictures]
    pixels = {name: torch.from_numpy(np.stack([one[name] for one in prepared])) for name in prepared[0]}
    rows: NDArray[np.float32] = F.normalize(encoder.images(pixels), dim=1).numpy()
    return rows


@torch.no_grad()
def model_texts(encoder: DualEncoder, captions: Sequence[str]) -> NDArray[np.float32]:
    """Embed captions with the model itself: ``float32 [B, D]``, rows of unit length."""
    rows: NDArray[np.float32] = F.normalize(encoder.texts(encoder.tokenize(captions)), dim=1).numpy()
    return rows


def check(encoder: DualEncoder, runtime: Runtime, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Parity:
    """Compare both in batches of every size of :data:`BATCHES`: once on pictures, on all captions, short to long.

    Returns the worst cosines; raises :class:`ModelError` with the worst case where one is below
    :data:`LEAST_COSINE`.
    """
    found = Parity()
    if "I" in encoder.sides:
        batches = [list(pictures[:size]) for size in BATCHES]
        found.image = _worst(model_images, runtime.images, encoder, batches, "picture")
    if "T" in encoder.sides:
        lengths = runtime.reader.lengths(captions)
        ordered = [captions[place] for place in np.argsort(lengths, kind="stable")]
        found.tokens = (min(lengths), max(lengths))
        found.text = _worst(model_texts, runtime.texts, encoder, list(_slices(ordered)), "caption")
    return found


def _slices(captions: Sequence[str]) -> Iterator[list[str]]:
    """Cut captions into batches of every size, of like length; last of all, the shortest beside the longest."""
    for size in BATCHES:
        yield from (list(captions[start : start + size]) for start in range(0, len(captions), size))
    yield [captions[0], captions[-1]]


def _worst(
    model: Callable[..., NDArray[np.float32]],
    graph: Callable[..., NDArray[np.float32]],
    encoder: DualEncoder,
    batches: Sequence[list[Any]],
    what: str,
) -> float:
    """Return the least cosine over all batches; raises :class:`ModelError` for one that is too small."""
    worst, where = 1.0, ""
    for batch in batches:
        cosines = (model(encoder, batch) * graph(batch)).sum(axis=1)
        place = int(np.argmin(cosines))  # what is not a number comes first
        if not cosines[place] >= worst:
            worst, shown = float(cosines[place]), f" {batch[place][:60]!r}" if what == "caption" else ""
            where = f"{what} {place}{shown} in a batch of {len(batch)}"
    if not worst >= LEAST_COSINE:
        raise ModelError(
            f"{encoder.uri}: the graph does not give the rows of the model: {where} has cosine {worst:.6f} with the "
            f"model's row, expected {LEAST_COSINE} or more. Nothing was written."
        )
    return worst
