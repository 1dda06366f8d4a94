"""Pictures to what an image graph reads, with Pillow and numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clipdistill.data.images import MAX_PIXELS, decode
from clipdistill.data.views import Transform
from clipdistill.errors import SearchError

#: A file, the bytes of one, or a picture that is open already.
Picture = Image.Image | Path | str | bytes


def read_pixels(transform: Transform, pictures: Sequence[Picture]) -> dict[str, NDArray[Any]]:
    """Decode and prepare at least one picture, batched: ``{"pixel_values": float32 [B, 3, h, w]}``, or patches.

    Raises :class:`DataError` for what is not a picture, and for one with more pixels than are decoded.
    """
    prepared = [transform(open_rgb(picture)) for picture in pictures]
    return {name: np.stack([one[name] for one in prepared]) for name in prepared[0]}


def open_rgb(picture: Picture) -> Image.Image:
    """Return a picture as a viewer shows it, in RGB: turned by its EXIF tag, transparency over white."""
    if not isinstance(picture, Image.Image):
        return decode(picture if isinstance(picture, bytes) else Path(picture))
    if picture.width * picture.height > MAX_PIXELS:
        found = f"{picture.width * picture.height / 1e6:.1f} megapixels"
        raise SearchError(f"a picture has {found}, the limit is {MAX_PIXELS / 1e6:.0f}.")
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture if picture.mode == "RGB" else picture.convert("RGB")
