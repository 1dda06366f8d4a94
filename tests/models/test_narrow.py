"""A student cut to a narrower width is an ordinary model that gives the first channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from clipdistill.errors import ModelError
from clipdistill.models.loading import load
from clipdistill.models.narrow import narrow


@pytest.mark.parametrize("family", ["clip", "chinese_clip", "vision-text-dual-encoder"])
def test_the_first_channels_are_given_before_and_after_saving(
    family: str, tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    whole = load(str(model_folders[family]))
    part = narrow(whole, 5)
    assert (part.width, whole.width > 5) == (5, True)
    height, width = whole.transform.size  # type: ignore[union-attr]
    pixels = {"pixel_values": torch.rand(2, 3, height, width)}
    tokens = whole.tokenize(["a red circle", "two dogs"])
    part.save(tmp_path / "part")
    for encoder in (part, load(str(tmp_path / "part"))):
        with torch.no_grad():
            torch.testing.assert_close(encoder.images(pixels), whole.images(pixels)[:, :5])
            torch.testing.assert_close(encoder.texts(tokens), whole.texts(tokens)[:, :5])
    if family == "clip":
        assert CLIPModel.from_pretrained(tmp_path / "part").config.projection_dim == 5


def test_what_cannot_be_cut_says_why(model_folders: dict[str, Path]) -> None:
    whole = load(str(model_folders["clip"]))
    with pytest.raises(ModelError, match=f"is {whole.width} wide; it can be cut to less, found {whole.width}"):
        narrow(whole, whole.width)
    with pytest.raises(ModelError, match="do not end in projections"):
        narrow(load(str(model_folders["siglip"])), 4)
