"""A layout that was written against the model it was made from, before it is published.

Shapes: ``B`` rows, ``D`` joint width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipdistill.errors import ModelError
from clipdistill.export.parity import BATCHES, Parity, model_images, model_texts
from clipdistill.models.encoder import DualEncoder
from clipdistill.search.cleaning import CLEANINGS
from clipdistill.search.golden import LEAST_COSINE


def _as_they_are(captions: Sequence[str]) -> list[str]:
    return list(captions)


@dataclass(frozen=True)
class Rows:
    """What a layout's own library, or its graphs, make of pictures and of captions: ``float32 [B, D]``.

    ``captions`` makes of any captions those on which library and model can agree: a library that cleans captions in
    a way of its own is compared on clean ones.
    """

    images: Callable[[Sequence[Image.Image]], NDArray[np.float32]]
    texts: Callable[[Sequence[str]], NDArray[np.float32]]
    captions: Callable[[Sequence[str]], list[str]] = _as_they_are


def unmended(captions: Sequence[str]) -> list[str]:
    """Leave out captions that open_clip mends before its tokenizer, and whoever knows nothing of that does not."""
    return [caption for caption in captions if CLEANINGS["whitespace"](caption) == caption]


@torch.no_grad()
def unit(rows: Any) -> NDArray[np.float32]:
    """Give rows of torch or numpy unit length: ``[B, D] -> float32 [B, D]``."""
    tensor: Tensor = torch.as_tensor(rows).to(torch.float32)
    out: NDArray[np.float32] = F.normalize(tensor, dim=1).numpy()
    return out


def model_rows(encoder: DualEncoder) -> Rows:
    """Return what a model gives that our own classes opened."""
    return Rows(
        images=lambda pictures: model_images(encoder, pictures), texts=lambda captions: model_texts(encoder, captions)
    )


def check_rows(
    encoder: DualEncoder, rows: Rows, pictures: Sequence[Image.Image], captions: Sequence[str], layout: str
) -> Parity:
    """Compare a layout with its model on pictures and captions, alone and in batches of every size.

    Returns the worst cosines; raises :class:`ModelError` with the worst case where one is below
    :data:`LEAST_COSINE`.
    """
    found = Parity()
    if "I" in encoder.sides:
        cosines = _cosines(lambda batch: model_images(encoder, batch), rows.images, pictures)
        found.image = _worst(encoder, layout, cosines, [f"picture {place}" for place in range(len(pictures))])
    if "T" in encoder.sides:
        read = rows.captions(captions)
        cosines = _cosines(lambda batch: model_texts(encoder, batch), rows.texts, read)
        found.text = _worst(encoder, layout, cosines, [f"caption {caption[:60]!r}" for caption in read])
    return found


def _cosines(
    model: Callable[[Any], NDArray[np.float32]], written: Callable[[Any], NDArray[np.float32]], given: Sequence[Any]
) -> NDArray[np.float32]:
    """Return the least cosine of each picture or caption over batches of every size of :data:`BATCHES`: ``[N]``."""
    least = np.full(len(given), np.inf, np.float32)
    for size in BATCHES:
        for start in range(0, len(given), size):
            batch = list(given[start : start + size])
            cosines = (model(batch) * written(batch)).sum(axis=1)
            least[start : start + size] = np.minimum(least[start : start + size], cosines)  # nan stays nan
    return least


def _worst(encoder: DualEncoder, layout: str, cosines: NDArray[np.float32], names: Sequence[str]) -> float:
    place = int(np.argmin(cosines))  # what is not a number comes first
    if not cosines[place] >= LEAST_COSINE:
        raise ModelError(
            f"{encoder.uri}: the layout {layout} does not give the rows of the model: {names[place]} has cosine "
            f"{float(cosines[place]):.6f} with the model's row, expected {LEAST_COSINE} or more. Nothing was written."
        )
    return float(cosines[place])
