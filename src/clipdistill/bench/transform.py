"""Claim: preparing a picture here is faster than through the Hugging Face image processor, with equal pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from clipdistill.bench.versus import Verdict, versus
from clipdistill.data.images import decode
from clipdistill.data.views import View
from clipdistill.models.preprocessing import clip_processor, transform_of

_COUNT = 32


def run() -> list[Verdict]:
    """Measure on JPEG files of 500 x 375 pixels, decoded to 224 x 224: whole pictures, and training views."""
    processor = clip_processor(224)
    transform = transform_of(processor, "bench")
    files = [_jpeg(seed) for seed in range(_COUNT)]
    view = View(box=(0.05, 0.05, 0.95, 0.95))

    def theirs() -> None:
        for file in files:
            processor(Image.open(io.BytesIO(file)), return_tensors="np")

    def whole() -> None:
        for file in files:
            transform(decode(file))

    def views() -> None:
        for file in files:
            transform(decode(file, want=(448, 448)), view)

    other = ("Hugging Face processor", theirs)
    return [
        versus(f"{_COUNT} whole pictures, equal pixels", ("ours", whole), other),
        versus(f"{_COUNT} training views", ("ours", views), other),
    ]


def _jpeg(seed: int) -> bytes:
    """A picture with structure at every scale, as photographs have."""
    generator = np.random.default_rng(seed)
    picture = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
