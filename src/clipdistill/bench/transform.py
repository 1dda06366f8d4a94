"""Claim: preparing a picture here is faster than through the Hugging Face image processor, with equal pixels."""

from __future__ import annotations

import io

from PIL import Image

from clipdistill.bench.pictures import jpeg
from clipdistill.bench.result import Result, of_verdicts
from clipdistill.bench.versus import versus
from clipdistill.data.images import decode
from clipdistill.data.views import View
from clipdistill.models.preprocessing import clip_processor, transform_of

_COUNT = 32


def run() -> Result:
    """Measure on JPEG files of 500 x 375 pixels, decoded to 224 x 224: whole pictures, and training views."""
    processor = clip_processor(224)
    transform = transform_of(processor, "bench")
    files = [jpeg(seed) for seed in range(_COUNT)]
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
    return of_verdicts(
        {
            "whole_pictures": versus(f"{_COUNT} whole pictures, equal pixels", ("ours", whole), other),
            "training_views": versus(f"{_COUNT} training views", ("ours", views), other),
        }
    )
