"""What is embedded to compare an export with its model: 32 pictures, and captions of every length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice

from PIL import Image

from clipdistill.data.images import decode
from clipdistill.data.samples import Sample, Source
from clipdistill.errors import DataError
from clipdistill.export.parity import BATCHES
from clipdistill.export.reading import PROBES

#: Where the caller names nothing.
SCENES = "scenes:test?n=32&lang=both"


@dataclass(frozen=True)
class Probes:
    """RGB pictures and captions; no pictures for a model of captions alone."""

    pictures: list[Image.Image]
    captions: list[str]


def take_probes(source: Source, sides: str) -> Probes:
    """Take pictures and captions: 32 of each, repeated where there are fewer; raises :class:`DataError` for none.

    Pictures that cannot be read are left out.
    """
    samples = [source[place] for place in range(min(len(source), max(BATCHES)))]
    pictures = list(_readable(samples))
    captions = list(dict.fromkeys([*PROBES, *(caption for sample in samples for caption in sample.captions)]))
    if "I" in sides and not pictures:
        raise DataError(f"{source.uri} has no pictures to compare the image graph on.")
    return Probes(_filled(pictures), captions[: max(len(PROBES), 2 * max(BATCHES))])


def _readable(samples: Sequence[Sample]) -> Iterator[Image.Image]:
    for sample in samples:
        if sample.image is not None:
            with suppress(DataError):
                yield decode(sample.image)


def _filled(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    return list(islice(cycle(pictures), max(BATCHES))) if pictures else []
