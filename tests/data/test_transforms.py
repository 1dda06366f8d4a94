"""Our transform against the processors of transformers, to the bit, on pictures of every kind."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from clipdistill.data.images import decode
from clipdistill.data.views import Transform

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


def pixels(width: int, height: int, channels: int = 3) -> np.ndarray:
    """A smooth picture with noise: filters and rounding both matter."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + c) + c) * np.cos(y / (7 - c)) for c in range(channels)]
    noise = np.random.default_rng(width * height).normal(0, 12, (height, width, channels))
    return np.clip(128 + 100 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(width: int, height: int) -> Image.Image:
    return Image.fromarray(pixels(width, height))


def exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(rgb(90, 61), "JPEG", exif=exif)


def palette_with_transparency() -> bytes:
    image = rgb(70, 50).quantize(32)
    return saved(image, "PNG", transparency=bytes(range(0, 256, 8)))


PICTURES: dict[str, Callable[[], bytes]] = {
    "rgb jpeg": lambda: saved(rgb(123, 77), "JPEG"),
    "rgb upright": lambda: saved(rgb(61, 200), "PNG"),
    "rgba": lambda: saved(Image.fromarray(pixels(80, 64, 4)), "PNG"),
    "rgb with a transparent colour": lambda: saved(rgb(40, 33), "PNG", transparency=(128, 128, 128)),
    "palette": lambda: saved(rgb(70, 50).quantize(32), "PNG"),
    "palette with transparency": palette_with_transparency,
    "gif": lambda: saved(rgb(70, 50).quantize(32), "GIF", transparency=3),
    "grey": lambda: saved(rgb(50, 64).convert("L"), "PNG"),
    "grey jpeg": lambda: saved(rgb(50, 64).convert("L"), "JPEG"),
    "grey with alpha": lambda: saved(rgb(50, 64).convert("LA"), "PNG"),
    "one bit": lambda: saved(rgb(64, 50).convert("1"), "PNG"),
    "16 bit": lambda: saved(Image.fromarray(pixels(40, 30)[..., 0].astype(np.uint16) * 3), "PNG"),
    "cmyk jpeg": lambda: saved(rgb(64, 48).convert("CMYK"), "JPEG"),
    "exif rotated": exif_rotated,
    "webp": lambda: saved(rgb(64, 48), "WEBP"),
    "tiff": lambda: saved(rgb(64, 48), "TIFF"),
    "one pixel wide": lambda: saved(rgb(1, 40), "PNG"),
    "one pixel": lambda: saved(rgb(1, 1), "PNG"),
    "already the right size": lambda: saved(rgb(32, 32), "PNG"),
}


def edge_and_crop(edge: int, height: int, width: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": edge}, "crop_size": {"height": height, "width": width}}


PROCESSORS: dict[str, tuple[Any, Transform]] = {
    "CLIP": (
        CLIPImageProcessorPil(**edge_and_crop(32, 32, 32)),
        Transform(32, (32, 32), mean=CLIP_MEAN, std=CLIP_STD),
    ),
    "CLIP, odd crop": (
        CLIPImageProcessorPil(**edge_and_crop(37, 32, 30)),
        Transform(37, (32, 30), mean=CLIP_MEAN, std=CLIP_STD),
    ),
    "CLIP, crop larger than the picture": (
        CLIPImageProcessorPil(**edge_and_crop(30, 45, 38)),
        Transform(30, (45, 38), mean=CLIP_MEAN, std=CLIP_STD),
    ),
    "CLIP, nothing but a crop": (
        CLIPImageProcessorPil(do_resize=False, do_normalize=False, crop_size={"height": 40, "width": 41}),
        Transform(None, (40, 41)),
    ),
    "CLIP, not rescaled": (
        CLIPImageProcessorPil(do_rescale=False, **edge_and_crop(32, 32, 32)),
        Transform(32, (32, 32), rescale=None, mean=CLIP_MEAN, std=CLIP_STD),
    ),
    "ChineseCLIP": (
        ChineseCLIPImageProcessorPil(size={"height": 32, "width": 36}, do_center_crop=False),
        Transform((32, 36), mean=CLIP_MEAN, std=CLIP_STD),
    ),
    "SigLIP": (
        SiglipImageProcessorPil(size={"height": 48, "width": 48}, rescale_factor=1 / 127.5),
        Transform((48, 48), rescale=1 / 127.5, mean=HALF, std=HALF),
    ),
    "ViT": (
        ViTImageProcessorPil(size={"height": 32, "width": 32}, do_convert_rgb=True),
        Transform((32, 32), resample=2, mean=HALF, std=HALF),
    ),
    "SigLIP 2": (
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=30, do_convert_rgb=True),
        Transform(None, resample=2, mean=HALF, std=HALF, patch_size=8, max_num_patches=30),
    ),
}


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("picture", PICTURES)
def test_the_transform_equals_transformers_to_the_bit(processor: str, picture: str) -> None:
    data = PICTURES[picture]()
    theirs, ours = PROCESSORS[processor]
    expected = theirs(ImageOps.exif_transpose(Image.open(io.BytesIO(data))), return_tensors="np")
    given = ours(decode(data))
    assert sorted(given) == sorted(expected)
    for name, value in given.items():
        assert value.dtype == expected[name].dtype
        assert np.array_equal(value, expected[name][0]), name


def test_default_sizes_of_the_real_models_agree() -> None:
    image = rgb(317, 251)
    for theirs, ours in [
        (CLIPImageProcessorPil(), Transform(224, (224, 224), mean=CLIP_MEAN, std=CLIP_STD)),
        (ChineseCLIPImageProcessorPil(), Transform(224, (224, 224), mean=CLIP_MEAN, std=CLIP_STD)),
        (SiglipImageProcessorPil(), Transform((224, 224), mean=HALF, std=HALF)),
        (
            Siglip2ImageProcessorPil(),
            Transform(None, resample=2, mean=HALF, std=HALF, patch_size=16, max_num_patches=256),
        ),
    ]:
        expected = theirs(image, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(ours(image)["pixel_values"], expected)


@pytest.mark.parametrize("size", [(1, 900), (900, 1)])
def test_an_extreme_shape_gives_the_same_without_the_large_picture(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = Transform(32, (32, 32), mean=CLIP_MEAN, std=CLIP_STD)
    image = rgb(*size)
    expected = transform(image)["pixel_values"]
    monkeypatch.setattr("clipdistill.data.views.MAX_RESIZED_PIXELS", 1000)
    assert np.abs(transform(image)["pixel_values"] - expected).max() < 0.05  # three of 255 grey levels


def test_a_picture_of_one_by_five_thousand_pixels_makes_no_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *arguments: Any, **named: Any) -> Image.Image:
        made.append(size)
        return resize(image, size, *arguments, **named)

    monkeypatch.setattr(Image.Image, "resize", watched)
    values = Transform(224, (224, 224), mean=HALF, std=HALF)(rgb(1, 5000))["pixel_values"]
    assert values.shape == (3, 224, 224)
    assert made == [(224, 224)]
