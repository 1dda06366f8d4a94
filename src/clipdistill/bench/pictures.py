"""Pictures to measure with, as files of a camera or the web are."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def jpeg(seed: int) -> bytes:
    """A JPEG of 500 x 375 pixels with structure at every scale, as photographs have."""
    generator = np.random.default_rng(seed)
    picture = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
