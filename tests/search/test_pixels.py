"""Pictures for the runtime: the numbers of the model's own preprocessing, whatever a picture comes as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdistill.data import images
from clipdistill.data.views import Transform
from clipdistill.errors import DataError, SearchError
from clipdistill.models.loading import load
from clipdistill.search import pixels
from clipdistill.search.pixels import open_rgb, read_pixels
from models.conftest import MAKERS

SIZES = [(97, 64), (41, 83), (50, 50), (200, 33)]


@pytest.mark.parametrize("family", MAKERS)
def test_pixels_are_those_of_the_models_own_processor(
    family: str, tmp_path: Path, picture: Callable[..., Image.Image], png: Any
) -> None:
    torch.manual_seed(0)
    MAKERS[family](tmp_path)
    encoder: Any = load(str(tmp_path))
    drawn = [picture(seed, size) for seed, size in enumerate(SIZES)]
    ours = read_pixels(Transform.from_dict(encoder.transform.to_dict()), [png(one) for one in drawn])
    theirs = encoder.processor(images=drawn, return_tensors="np")
    assert set(ours) == set(theirs)
    for name, expected in theirs.items():
        assert np.array_equal(ours[name], expected), name
        ours_in_training = np.stack([encoder.transform(one)[name] for one in drawn])
        assert np.array_equal(ours[name], ours_in_training)
        assert ours[name].dtype == ours_in_training.dtype


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_an_open_picture_is_read_as_its_file_is(mode: str, tmp_path: Path, picture: Any, png: Any) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    image = Image.fromarray(np.arange(60 * 40, dtype=np.uint16).reshape(40, 60)) if mode == "I;16" else None
    data = png(image or picture(1, mode=mode), form)
    (tmp_path / "a").write_bytes(data)
    expected = np.asarray(images.decode(data))
    with Image.open(tmp_path / "a") as opened:
        assert np.array_equal(np.asarray(open_rgb(opened)), expected)
    for same in (data, tmp_path / "a", str(tmp_path / "a")):
        assert np.array_equal(np.asarray(open_rgb(same)), expected)


def test_an_open_picture_is_turned_by_its_exif_tag(tmp_path: Path, picture: Any, png: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(picture(2, (61, 47)), "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(data)
    with Image.open(tmp_path / "a.jpg") as opened:
        turned = open_rgb(opened)
    assert turned.size == (47, 61)
    assert np.array_equal(np.asarray(turned), np.asarray(images.decode(data)))


def test_the_transparent_entry_of_a_palette_is_white(picture: Any) -> None:
    palette = picture(3).convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert open_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


def test_large_pictures_are_refused_before_they_are_decoded(
    tmp_path: Path, picture: Any, png: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    monkeypatch.setattr(pixels, "MAX_PIXELS", 1000)
    data = png(picture(0, (61, 47)))
    with pytest.raises(DataError, match="the limit is"):
        open_rgb(data)
    (tmp_path / "a.png").write_bytes(data[:100])  # no pixel of it can be decoded
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(SearchError, match="the limit is"):
        open_rgb(opened)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png: there is no such file"):
        open_rgb(tmp_path / "none.png")
    with pytest.raises(DataError, match="not a picture"):
        open_rgb(b"words")
