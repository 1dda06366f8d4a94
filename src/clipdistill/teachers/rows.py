"""From pictures and captions to unit rows of one model: what is stored, and what a stored row is checked against.

Shapes: ``b`` pictures, ``V`` views of each, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from clipdistill.data.batches import twice
from clipdistill.data.images import decode, fetch, full_size
from clipdistill.data.samples import Picture, Sample, Source, name_of
from clipdistill.data.secrets import without_secrets
from clipdistill.data.views import Transform, Views
from clipdistill.errors import DataError, ModelError
from clipdistill.models.encoder import DualEncoder, Inputs


@dataclass(frozen=True)
class Looks:
    """Every view of some pictures: ``pixels [b * V, ...]``, row ``picture * V + view``.

    ``number`` is what they were asked for with, ``skipped`` names those that cannot be read, with the reason.
    """

    number: int
    ids: list[str]
    pixels: dict[str, Tensor]
    skipped: list[tuple[str, str]] = field(default_factory=list)


class Pictures(Dataset[Looks]):
    """The pictures of a source as one model sees them: decoded once, in ``count`` views (None: whole, once)."""

    def __init__(self, source: Source, transform: Transform, views: Views | None, count: int) -> None:
        self.source, self.transform, self.views, self.count = source, transform, views, count

    def __getitem__(self, item: tuple[int, Sequence[int]]) -> Looks:
        number, rows = item
        ids, looks, skipped = [], [], []
        for row in rows:
            try:
                sample = self.source[row]
                looks += self._looks(sample.id, fetch(sample.picture))
                ids.append(sample.id)
            except DataError as error:
                skipped.append((name_of(self.source, row), without_secrets(str(error))))  # stores may be published
        names = looks[0] if looks else ()
        pixels = {name: torch.from_numpy(np.stack([look[name] for look in looks])) for name in names}
        return Looks(number, ids, pixels, skipped)

    def _looks(self, name: str, picture: Picture) -> list[dict[str, NDArray[np.generic]]]:
        """Decode as :class:`clipdistill.data.batches.Batches` does, so that teacher and student see the same."""
        if self.views is None:
            return [self.transform(decode(picture))]
        image = decode(picture, twice([self.transform]))
        size = full_size(image)
        return [self.transform(image, self.views.view(name, view, size)) for view in range(self.count)]


def told(sample: Sample) -> list[str]:
    """All captions of a sample, of every text view."""
    return [caption for view in sorted(sample.texts) for caption in sample.captions_of(view)]


@torch.inference_mode()
def unit_rows(
    encoder: DualEncoder,
    tower: Callable[[Inputs], Tensor],
    inputs: Inputs,
    keys: Sequence[str],
    autocast: AbstractContextManager[None],
) -> NDArray[np.float32]:
    """Embed, and bring every row to unit length, ``[n, D]``; ``keys`` name the inputs, each as often as the others.

    Raises :class:`ModelError` for a row that has no direction: zero, or not finite.
    """
    device = next(encoder.module.parameters()).device
    with autocast:
        rows = tower({name: value.to(device) for name, value in inputs.items()}).float()
    lengths = rows.norm(dim=1, keepdim=True)
    if not bool((torch.isfinite(lengths) & (lengths > 0)).all()):
        bad = int((~(torch.isfinite(lengths) & (lengths > 0))).flatten().nonzero()[0])
        raise ModelError(
            f"{encoder.uri} gives a row that is zero or not finite for {keys[bad * len(keys) // len(rows)]!r}. "
            "Try the precision float32; else its weights are damaged."
        )
    return np.asarray((rows / lengths).cpu().numpy(), np.float32)
