"""Claim: preparing a picture here is faster than through the Hugging Face image processor.

Whole pictures have equal pixels; views are decoded at the size they are needed at, which pays the more the larger the
picture is.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image

from clipdistill.bench.pictures import jpeg
from clipdistill.bench.result import Result, of_verdicts
from clipdistill.bench.versus import Verdict, versus
from clipdistill.data.images import decode
from clipdistill.data.views import View
from clipdistill.models.preprocessing import clip_processor, transform_of

#: Of a web shop's thumbnail, a web page, and a small camera: width and height, and how many of them are measured.
SIZES = {(500, 375): 32, (1024, 768): 16, (1600, 1200): 8}


def run() -> Result:
    """Measure on JPEG files of several sizes, decoded to 224 x 224: whole pictures, and training views."""
    verdicts: dict[str, Verdict] = {}
    for size, count in SIZES.items():
        whole, views = _measure(size, count)
        verdicts |= {f"whole_pictures_{size[0]}": whole, f"training_views_{size[0]}": views}
    return of_verdicts(verdicts)


def _measure(size: tuple[int, int], count: int) -> tuple[Verdict, Verdict]:
    processor = clip_processor(224)
    transform = transform_of(processor, "bench")
    files = [jpeg(seed, size) for seed in range(count)]
    view = View(box=(0.05, 0.05, 0.95, 0.95))

    def each(prepare: Callable[[bytes], object]) -> Callable[[], None]:
        def all_of_them() -> None:
            for file in files:
                prepare(file)

        return all_of_them

    theirs = each(lambda file: processor(Image.open(io.BytesIO(file)), return_tensors="np"))
    whole = each(lambda file: transform(decode(file)))
    views = each(lambda file: transform(decode(file, want=(448, 448)), view))
    other = ("Hugging Face processor", theirs)
    claim = f"{count} of {size[0]} x {size[1]}"
    return (
        versus(f"{claim}, whole, equal pixels", ("ours", whole), other),
        versus(f"{claim}, training views", ("ours", views), other),
    )
