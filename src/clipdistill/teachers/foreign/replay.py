"""Which recorded augmentations of MobileCLIP's shards can be shown to a student again, and as what.

An entry of ``param_aug`` lists the parameters of each random operation, in the order they were applied::

    [[14, 347, 370, 427], [[0, 0.0], [6, 0.27]]]     RandomResizedCrop (top, left, height, width), RandAugment
    [[14, 347, 370, 427], true, null]                the same, a flip, and RandAugment left out by chance

A crop and a flip are a :class:`clipdistill.data.views.View`, and so is RandAugment where it did nothing (Identity).
Its other operations change colours and shapes in ways that a view does not, so they cannot be replayed.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdistill.errors import StoreError

#: RandAugment's operations, by the number that stands for them.
OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
TURNED = "pictures that their EXIF tag turns, which the crops do not know"
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """The size of a picture as its bytes have it; ``turned`` if a viewer shows it another way."""

    width: int
    height: int
    turned: bool = False


def picture_of(data: bytes, where: str) -> Picture:
    """Read a picture's header; raises StoreError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                turned = image.getexif().get(_ORIENTATION, 1) != 1
                return Picture(*image.size, turned)
    except Exception as error:  # Pillow's readers raise anything on damaged files
        raise StoreError(f"{where}: the picture cannot be read ({error}).") from error


def obstacle(entry: Any) -> str:
    """Why an augmentation cannot be replayed; empty if it can."""
    if not isinstance(entry, list):
        return f"unknown parameters {str(entry)[:60]}"
    crops = [values for values in entry if _is_crop(values)]
    for values in entry:
        if values is None or isinstance(values, bool) or _is_crop(values):
            continue
        if not _is_rand_augment(values):
            return f"an operation with the parameters {str(values)[:60]}"
        done = [OPERATIONS[number] for number, _ in values if number]
        if done:
            return f"RandAugment did {' and '.join(done)}"
    if len(crops) != 1 or not _is_crop(entry[0]):
        return f"{len(crops)} crops are recorded, expected one, first"
    return ""


def written_views(entries: list[Any], picture: Picture, where: str) -> NDArray[np.float64]:
    """Augmentations as explicit views, ``[V, 9]``: box as fractions (4), flip, gain, bias (3).

    Raises StoreError for a box that is not within the picture.
    """
    views = np.zeros((len(entries), 9))
    views[:, 5] = 1.0
    for row, entry in zip(views, entries, strict=True):
        top, left, height, width = entry[0]
        if min(top, left) < 0 or top + height > picture.height or left + width > picture.width:
            raise StoreError(
                f"{where}: the crop {entry[0]} (top, left, height, width) is not within the picture of "
                f"{picture.width} x {picture.height} pixels: they are of another picture, or of another size of it."
            )
        row[:4] = left / picture.width, top / picture.height, (left + width) / picture.width, 0
        row[3] = (top + height) / picture.height
        row[4] = sum(values is True for values in entry) % 2
    return views


def _is_crop(values: Any) -> bool:
    return isinstance(values, list) and len(values) == 4 and all(type(value) is int for value in values)


def _is_rand_augment(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int and 0 <= pair[0] < len(OPERATIONS)
        for pair in values
    )
