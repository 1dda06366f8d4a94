"""Pictures of any kind, and their files."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Draws a picture of any size and mode."""

    def make(seed: int = 0, size: tuple[int, int] = (61, 47), mode: str = "RGB") -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
        return Image.fromarray(noise, mode="RGBA").convert(mode) if mode != "RGBA" else Image.fromarray(noise)

    return make


@pytest.fixture
def png() -> Callable[[Image.Image], bytes]:
    """Writes a picture to the bytes of a file."""

    def make(image: Image.Image, form: str = "PNG", **more: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, format=form, **more)
        return stream.getvalue()

    return make
