"""Pictures to measure with, as files of a camera or the web are."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def jpeg(seed: int, size: tuple[int, int] = (500, 375)) -> bytes:
    """A JPEG of so many pixels (width, height), with structure at a scale of some 30 of them."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (size[1] // 31, size[0] // 31, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
