"""One small CLIP, exported once, and the model it was made from."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdistill.export.onnx import export
from clipdistill.models.huggingface import load
from models.conftest import MAKERS, TOWER


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of an exported CLIP (read only), and the model in torch."""
    root = tmp_path_factory.mktemp("exported")
    torch.manual_seed(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TOWER, "num_hidden_layers", 1)  # half the time of an export
        MAKERS["clip"](root / "model")
    export(root / "model", root / "onnx", precision="float32")
    return root / "onnx", load(str(root / "model"))


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
