"""A view is a draw, not a tensor: crop, flip and colour are numbers that each model applies its own way."""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdistill.errors import ModelError

#: A resized picture with more pixels is not made: only the part that the centre crop keeps is.
MAX_RESIZED_PIXELS = 16_000_000
_TRIES = 10
#: Fields of a transform that came later: left out of what is written where they change nothing, so that the
#: fingerprints of models and stores made before stay what they were.
_LATER = {"keep": None, "fill": 0, "halves": "floor"}


@dataclass(frozen=True)
class Augmentation:
    """How views are drawn.

    ``crop`` is the range of the box's area as a fraction of the picture, ``ratio`` that of its width over its
    height, ``flip`` the probability of a mirror image. ``colour`` c multiplies pixels in [0, 1] by
    ``1 + 0.15 c n`` and adds ``0.05 c n`` to each channel, n standard normal, before normalising and without
    clipping.
    """

    crop: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    colour: float = 0.0


@dataclass(frozen=True)
class View:
    """One draw: ``box`` is (x0, y0, x1, y1) as fractions of the picture's width and height."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False
    gain: float = 1.0
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)


def draw(seed: int, sample_id: str, view: int, augmentation: Augmentation, size: tuple[int, int]) -> View:
    """Draw view number ``view`` of a sample, whose picture is ``size`` (width, height) pixels.

    The same arguments give the same view in any order, process and machine.
    """
    numbers = _uniforms(seed, sample_id, view, "view")
    flip = next(numbers) < augmentation.flip
    gain, bias = _draw_colour(augmentation.colour, numbers)
    return View(_draw_box(augmentation, size, numbers), flip, gain, bias)


class Views(Protocol):
    """Which view of a sample an epoch shows."""

    def view(self, sample_id: str, epoch: int, size: tuple[int, int]) -> View | None:
        """The view of a picture of ``size`` (width, height) pixels; None is the whole picture."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Views drawn by :func:`draw`: a new one each epoch or, with ``count``, the same that many over and over."""

    augmentation: Augmentation
    seed: int = 0
    count: int | None = None

    def view(self, sample_id: str, epoch: int, size: tuple[int, int]) -> View:
        """Draw view number ``epoch``, modulo ``count`` if there is one."""
        number = epoch if self.count is None else epoch % self.count
        return draw(self.seed, sample_id, number, self.augmentation, size)


def pick(seed: int, sample_id: str, view: int, n: int) -> int:
    """Draw which of ``n`` captions goes with view number ``view`` of a sample."""
    return int(next(_uniforms(seed, sample_id, view, "caption")) * n)


def _uniforms(*key: object) -> Iterator[float]:
    """Yield numbers in [0, 1) from a counter-based generator: block i is the hash of the key and i."""
    head = "\x1f".join(map(str, key)).encode("utf-8", "surrogatepass")
    for block in itertools.count():
        digest = hashlib.blake2b(head + b"\x1f%d" % block).digest()
        for word in struct.unpack("<8Q", digest):
            yield (word >> 11) * 2.0**-53


def _normal(numbers: Iterator[float]) -> float:
    """Turn two uniform numbers into a standard normal one (Box and Muller, 1958)."""
    radius = math.sqrt(-2.0 * math.log(1.0 - next(numbers)))
    return radius * math.cos(2.0 * math.pi * next(numbers))


def _draw_colour(colour: float, numbers: Iterator[float]) -> tuple[float, tuple[float, float, float]]:
    if not colour:
        return 1.0, (0.0, 0.0, 0.0)
    gain, red, green, blue = (_normal(numbers) for _ in range(4))
    step = 0.05 * colour
    return 1.0 + 0.15 * colour * gain, (step * red, step * green, step * blue)


def _draw_box(
    augmentation: Augmentation, size: tuple[int, int], numbers: Iterator[float]
) -> tuple[float, float, float, float]:
    """Draw area and ratio until the box fits, as RandomResizedCrop does; after ten tries take the centre."""
    aspect = size[0] / size[1]
    (small, large), (narrow, wide) = augmentation.crop, augmentation.ratio
    for _ in range(_TRIES):
        area = small + (large - small) * next(numbers)
        ratio = narrow * (wide / narrow) ** next(numbers)
        width, height = math.sqrt(area * ratio / aspect), math.sqrt(area * aspect / ratio)
        if width <= 1.0 and height <= 1.0:
            x, y = (1.0 - width) * next(numbers), (1.0 - height) * next(numbers)
            return x, y, min(x + width, 1.0), min(y + height, 1.0)
    ratio = min(max(aspect, narrow), wide)
    width, height = min(ratio / aspect, 1.0), min(aspect / ratio, 1.0)
    x, y = (1.0 - width) / 2, (1.0 - height) / 2
    return x, y, x + width, y + height


@dataclass(frozen=True)
class Transform:
    """What a model does to a picture, read from its image processor.

    ``resize`` is the length of the shortest edge, or exactly (height, width); with ``keep`` the picture keeps its
    shape, and just covers (``shortest``) or fits into (``longest``) that rectangle. ``crop`` (height, width) is
    taken from the centre, with pixels of value ``fill`` around a picture that is smaller; ``halves`` says where the
    centre is when a margin is odd: as transformers counts (``floor``), or as torchvision and open_clip do (``even``).
    ``resample`` is Pillow's number of the filter. Pixels are multiplied by ``rescale``, then ``mean`` is subtracted
    and the result divided by ``std``. With ``patch_size`` and ``max_num_patches`` (SigLIP 2 NaFlex) the picture keeps
    its shape and becomes patches.

    Without a view the result equals that of the transformers image processors (PIL backend), or of open_clip's
    transform, to the bit.
    """

    resize: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = None
    resample: int = Image.Resampling.BICUBIC.value
    rescale: float | None = 1 / 255
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    patch_size: int | None = None
    max_num_patches: int | None = None
    keep: Literal["shortest", "longest"] | None = None
    fill: int = 0
    halves: Literal["floor", "even"] = "floor"

    def __post_init__(self) -> None:
        if (self.patch_size is None) != (self.max_num_patches is None):
            raise ModelError("an image transform in patches needs both patch_size and max_num_patches")
        if (self.mean is None) != (self.std is None):
            raise ModelError("an image transform that normalises needs both mean and std")
        if self.patch_size is None and self.crop is None and not isinstance(self.resize, tuple):
            raise ModelError(
                f"an image transform with resize={self.resize} and no crop gives pictures of different "
                "sizes; expected resize=(height, width), or a crop"
            )
        if self.keep and not (isinstance(self.resize, tuple) and self.crop):
            raise ModelError(f"an image transform with keep={self.keep} needs resize=(height, width) and a crop")

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) of what the model sees; for patches the square with as many of them."""
        if self.patch_size and self.max_num_patches:
            side = math.isqrt(self.max_num_patches) * self.patch_size
            return side, side
        size = self.crop or self.resize
        assert isinstance(size, tuple)
        return size

    def __call__(self, image: Image.Image, view: View | None = None) -> dict[str, NDArray[Any]]:
        """Make a model's input from an RGB picture, or from one view of it.

        Returns ``{"pixel_values": float32 [3, h, w]}``; for patches ``pixel_values`` float32 ``[P, 3 p p]``,
        ``pixel_attention_mask`` int32 ``[P]`` and ``spatial_shapes`` int64 ``[2]`` (rows, columns).
        """
        pixels = self._look_up(self._whole(image)) if view is None else self._draw_on(image, view)
        if self.patch_size and self.max_num_patches:
            return _patches(pixels, self.patch_size, self.max_num_patches)
        return {"pixel_values": pixels}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {k: v for k, v in asdict(self).items() if k not in _LATER or v != _LATER[k]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Transform:
        """Read what :meth:`to_dict` gave."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    def _whole(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize and crop the whole picture: uint8 [h, w, 3]."""
        height, width = self._resized(image.size)
        if self.crop and self.patch_size is None:
            if height * width > MAX_RESIZED_PIXELS:
                return self._crop(self._resize_centre(image, (height, width), self.crop), self.crop)
            return self._crop(np.asarray(_resize(image, (height, width), self.resample)), self.crop)
        return np.asarray(_resize(image, (height, width), self.resample))

    def _part(self, image: Image.Image, view: View) -> NDArray[np.uint8]:
        """Resize a view's box straight to the size the model sees: uint8 [h, w, 3]."""
        width, height = image.size
        x0, y0, x1, y1 = view.box
        box = (x0 * width, y0 * height, x1 * width, y1 * height)
        h, w = self._target((max(round(box[2] - box[0]), 1), max(round(box[3] - box[1]), 1)))
        return np.asarray(image.resize((w, h), self.resample, box=box, reducing_gap=2.0))

    def _target(self, size: tuple[int, int]) -> tuple[int, int]:
        return self._resized(size) if self.patch_size else self.size

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) a picture of ``size`` (width, height) is resized to."""
        width, height = size
        if self.patch_size and self.max_num_patches:
            return _fit_patches(height, width, self.patch_size, self.max_num_patches)
        if isinstance(self.resize, tuple):
            return _keep_shape((height, width), self.resize, self.keep) if self.keep else self.resize
        if self.resize is None:
            return height, width
        if width <= height:
            return int(self.resize * height / width), self.resize
        return self.resize, int(self.resize * width / height)

    def _resize_centre(self, image: Image.Image, size: tuple[int, int], crop: tuple[int, int]) -> NDArray[np.uint8]:
        """Make only those pixels of the picture resized to ``size`` that its centre crop keeps."""
        (top, height), (left, width) = (
            (self._offsets(full, part)[0], min(full, part)) for full, part in zip(size, crop, strict=True)
        )
        x, y = image.width / size[1], image.height / size[0]
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        return np.asarray(image.resize((width, height), self.resample, box=box))

    def _crop(self, pixels: NDArray[np.uint8], crop: tuple[int, int]) -> NDArray[np.uint8]:
        """Cut the centre, with ``fill`` around what is too small."""
        (top, up), (left, before) = (self._offsets(n, part) for n, part in zip(pixels.shape, crop, strict=False))
        kept = pixels[top : top + crop[0], left : left + crop[1]]
        if kept.shape[:2] == crop:
            return kept
        out = np.full((*crop, 3), self.fill, np.uint8)
        out[up : up + kept.shape[0], before : before + kept.shape[1]] = kept
        return out

    def _offsets(self, length: int, part: int) -> tuple[int, int]:
        """Return how much to cut from the start, and how many pixels to put before it."""
        if part <= length:
            half = (length - part) / 2
            return int(half) if self.halves == "floor" else round(half), 0
        return 0, math.ceil((part - length) / 2) if self.halves == "floor" else (part - length) // 2

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        """What each of the 256 pixel values becomes, [3, 256]: scaled in float64, normalised in float32."""
        values = np.arange(256, dtype=np.float64) * (self.rescale or 1.0)
        table = np.tile(values.astype(np.float32), (3, 1))
        if self.mean is not None and self.std is not None:
            mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
            table = (table - mean[:, None]) / std[:, None]
        return table

    def _look_up(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        out = np.empty((3, *pixels.shape[:2]), np.float32)
        for channel in range(3):
            np.take(self._table[channel], pixels[..., channel], out=out[channel], mode="clip")
        return out

    @cached_property
    def _slope_and_offset(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Slope, offset and what one unit of colour bias adds, [3, 1, 1] each."""
        mean, std = np.array(self.mean or (0.0,) * 3), np.array(self.std or (1.0,) * 3)
        per_pixel = self.rescale or 1.0
        parts = (per_pixel / std, -mean / std, 255.0 * per_pixel / std)
        slope, offset, unit = (part.astype(np.float32).reshape(3, 1, 1) for part in parts)
        return slope, offset, unit

    def _draw_on(self, image: Image.Image, view: View) -> NDArray[np.float32]:
        """Crop, resize, flip, colour and normalise: float32 [3, h, w]."""
        pixels = self._part(image, view)
        slope, offset, unit = self._slope_and_offset
        if view.gain != 1.0 or any(view.bias):
            slope = slope * np.float32(view.gain)
            offset = offset + unit * np.array(view.bias, np.float32).reshape(3, 1, 1)
        if view.flip:
            pixels = pixels[:, ::-1]
        out = np.empty((3, *pixels.shape[:2]), np.float32)
        np.multiply(pixels.transpose(2, 0, 1), slope, out=out)
        out += offset
        return out


def _resize(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), resample)


def _keep_shape(size: tuple[int, int], into: tuple[int, int], keep: str) -> tuple[int, int]:
    """Scale (height, width) to just cover, or just fit into, another, as open_clip rounds."""
    ratios = size[0] / into[0], size[1] / into[1]
    ratio = max(ratios) if keep == "longest" else min(ratios)
    return max(round(size[0] / ratio), 1), max(round(size[1] / ratio), 1)


@lru_cache(maxsize=65536)
def _fit_patches(height: int, width: int, patch: int, most: int, eps: float = 1e-5) -> tuple[int, int]:
    """Find the largest (height, width) in whole patches with a picture's shape and at most ``most`` patches.

    The same bisection as in SigLIP 2's image processor, so that sizes agree exactly.
    """

    def scaled(length: int, scale: float) -> int:
        return max(patch, math.ceil(length * scale / patch) * patch)

    low, high = eps / 10, 100.0
    while high - low >= eps:
        scale = (low + high) / 2
        if (scaled(height, scale) / patch) * (scaled(width, scale) / patch) <= most:
            low = scale
        else:
            high = scale
    return scaled(height, low), scaled(width, low)


def _patches(pixels: NDArray[np.float32], patch: int, most: int) -> dict[str, NDArray[Any]]:
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    grid = pixels.reshape(3, rows, patch, columns, patch).transpose(1, 3, 2, 4, 0)
    values = np.zeros((most, patch * patch * 3), np.float32)
    values[: rows * columns] = grid.reshape(rows * columns, -1)
    mask = np.zeros(most, np.int32)
    mask[: rows * columns] = 1
    return {
        "pixel_values": values,
        "pixel_attention_mask": mask,
        "spatial_shapes": np.array([rows, columns], np.int64),
    }
