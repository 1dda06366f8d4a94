"""From a model's own image processor to our transform, proven equal on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessorPil

from clipdistill.data.views import Transform
from clipdistill.errors import ModelError
from clipdistill.models.own_code import refuse_code

_FILES = ("preprocessor_config.json", "processor_config.json")
#: From so many pixels on ConvNeXt's image processor crops nothing.
_SMALLEST_WHOLE = 384


def read_processor(folder: Path) -> Any:
    """Load a model folder's image processor, always with Pillow; raises :class:`ModelError` if it has none."""
    if not any((folder / name).is_file() for name in _FILES):
        raise ModelError(
            f"{folder} does not say how pictures are prepared; expected {_FILES[0]}. "
            "Copy it from the original model: a guess would ruin every embedding silently."
        )
    try:
        return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken JSON file raises classes of every kind
        refuse_code(error, folder)
        raise ModelError(f"the image processor in {folder} cannot be loaded: {error}") from error


def clip_processor(size: int, like: Transform | None = None) -> Any:
    """Return CLIP's image processor at ``size`` pixels, with the mean and deviation of ``like`` if it has them."""
    colours = {"image_mean": list(like.mean), "image_std": list(like.std)} if like and like.mean and like.std else {}
    crop = {"height": size, "width": size}
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=crop, **colours)


def transform_of(processor: Any, where: str) -> Transform:
    """Read our transform from an image processor and prove that both give the same numbers.

    ``where`` names the model in messages. Raises :class:`ModelError` for a processor that does something a
    :class:`Transform` does not describe.
    """
    if getattr(processor, "do_pad", None):
        raise ModelError(f"{where}: its image processor pads pictures (do_pad), which no known dual encoder needs.")
    try:
        transform = _read(processor)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error

    def theirs(picture: Image.Image) -> dict[str, NDArray[Any]]:
        return {key: rows[0] for key, rows in processor(images=picture, return_tensors="np").items()}

    prove(transform, theirs, type(processor).__name__, where)
    return transform


def prove(
    transform: Transform, theirs: Callable[[Image.Image], Mapping[str, NDArray[Any]]], name: str, where: str
) -> None:
    """Raise :class:`ModelError` unless a transform gives the numbers of another, called ``name`` in the message."""
    for picture in _pictures():
        _compare(transform(picture), theirs(picture), name, where)


def _read(processor: Any) -> Transform:
    normalise = processor.do_normalize
    return Transform(
        resize=_resize(processor),
        crop=_crop(processor),
        resample=int(processor.resample),
        rescale=float(processor.rescale_factor) if processor.do_rescale else None,
        mean=_channels(processor.image_mean) if normalise else None,
        std=_channels(processor.image_std) if normalise else None,
        patch_size=getattr(processor, "patch_size", None),
        max_num_patches=getattr(processor, "max_num_patches", None),
    )


def _resize(processor: Any) -> int | tuple[int, int] | None:
    size = processor.size
    if not processor.do_resize or size is None:
        return None
    given = set(dict(size))
    if given == {"shortest_edge"}:
        edge = int(size["shortest_edge"])
        share = getattr(processor, "crop_pct", None)
        if share is None:
            return edge
        # ConvNeXt and ResNet: small pictures are the centre of a larger one, others the whole one made square.
        return int(edge / share) if edge < _SMALLEST_WHOLE else (edge, edge)
    if given == {"height", "width"}:
        return _pair(size)
    raise ModelError(
        f"its image processor resizes by {', '.join(sorted(given))}; expected shortest_edge, or height and width"
    )


def _crop(processor: Any) -> tuple[int, int] | None:
    if processor.do_center_crop:
        return _pair(processor.crop_size)
    if getattr(processor, "crop_pct", None) and processor.do_resize:
        edge = int(processor.size["shortest_edge"])
        return (edge, edge) if edge < _SMALLEST_WHOLE else None
    return None


def _pair(size: Any) -> tuple[int, int]:
    return int(size["height"]), int(size["width"])


def _channels(values: Any) -> tuple[float, float, float]:
    red, green, blue = (values,) * 3 if isinstance(values, float | int) else values
    return float(red), float(green), float(blue)


def _pictures() -> list[Image.Image]:
    """Two small pictures of odd sizes, landscape and portrait, with every pixel value in them."""
    noise = np.random.default_rng(0)
    sizes = ((37, 53), (61, 29))
    return [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def _compare(ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]], name: str, where: str) -> None:
    for key, expected in theirs.items():
        got = ours.get(key)
        if got is None or got.shape != expected.shape:
            found = "nothing" if got is None else str(got.shape)
            raise ModelError(f"{where}: {name} gives {key} of shape {expected.shape}, our transform gives {found}.")
        difference = float(np.abs(got.astype(np.float64) - expected).max())
        if not difference <= 1e-6:
            raise ModelError(
                f"{where}: {name} prepares pictures in a way that our transform does not reproduce "
                f"({key} differs by {difference:.3g}); expected the steps resize, centre crop, rescale, normalise."
            )
