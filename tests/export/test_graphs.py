"""Graphs of every kind of model against the model itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clipdistill.export.graphs import resize_positions
from clipdistill.export.onnx import export
from clipdistill.export.parity import model_images, model_texts
from clipdistill.models.loading import load
from clipdistill.search.golden import check_golden
from clipdistill.search.runtime import Runtime

CAPTIONS = ["a red circle", "x", "两只狗在海滩上", "two dogs run along the beach " * 9, ""]
PATCHES = {"pixel_values", "pixel_attention_mask", "spatial_shapes"}
BERT = {"input_ids", "attention_mask", "token_type_ids"}
#: Inputs of the image graph and of the text graph.
INPUTS = {
    "siglip2": (PATCHES, {"input_ids"}),
    "vision-text-dual-encoder": ({"pixel_values"}, BERT),
    "pictures": ({"pixel_values"}, set()),
    "captions": (set(), BERT),
}


def drawn() -> list[Image.Image]:
    noise = np.random.default_rng(3)
    sizes = [(40, 60), (61, 33), (20, 90), (48, 48), (33, 35)]
    return [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize("kind", INPUTS)
def test_a_graph_gives_the_rows_of_the_model(kind: str, make_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = make_model(kind)
    parity = export(model, tmp_path / "onnx", precision="float32").parity
    encoder, runtime = load(str(model)), Runtime.open(tmp_path / "onnx", threads=1)
    assert runtime.sides == encoder.sides
    for side, inputs in zip(("image", "text"), INPUTS[kind], strict=True):
        cosine = getattr(parity, side)
        assert (cosine is not None and 0.99999 <= cosine <= 1.00001) == bool(inputs)
        if inputs:
            name = {"image": "vision", "text": "text"}[side]
            check_graph(tmp_path / "onnx" / "onnx" / f"{name}_model.onnx", inputs, side, model)
    for number in (1, 2, 5):
        if "I" in encoder.sides:
            assert np.abs(runtime.images(drawn()[:number]) - model_images(encoder, drawn()[:number])).max() < 1e-5
        if "T" in encoder.sides:
            assert np.abs(runtime.texts(CAPTIONS[:number]) - model_texts(encoder, CAPTIONS[:number])).max() < 1e-5
    assert check_golden(tmp_path / "onnx") == []
    record = json.loads((tmp_path / "onnx" / "clipdistill.json").read_text())
    assert (record["width"], record["fingerprint"]) == (encoder.width, encoder.fingerprint)


def check_graph(path: Path, inputs: set[str], side: str, model: Path) -> None:
    graph = onnx.load(path).graph
    shapes: dict[str, list[Any]] = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert set(shapes) == {*inputs, f"{side}_embeds"}
    assert all(shape[0] == "batch" for shape in shapes.values())
    if "attention_mask" in inputs:
        assert shapes["input_ids"] == shapes["attention_mask"] == ["batch", "sequence"]
    elif side == "text":
        assert shapes["input_ids"] == ["batch", 64]
    weights = {initializer.name for initializer in graph.initializer}
    assert not any("text" in name for name in weights) or side == "text"  # nothing of the other tower
    code = path.read_bytes()
    assert str(model).encode() not in code
    assert b"graphs.py" not in code  # where a node comes from is nobody's business


@pytest.mark.parametrize("given", [(4, 4), (16, 16), (3, 5)])
def test_positions_are_resized_as_torch_does(given: tuple[int, int]) -> None:
    shapes = [(4, 4), (2, 8), (5, 3), (1, 16), (3, 3), (16, 16), (7, 2)]
    positions = torch.randn(*given, 6, generator=torch.Generator().manual_seed(0))
    found = resize_positions(positions, torch.tensor(shapes), 256)
    for rows, (height, width) in zip(found, shapes, strict=True):
        channels = positions.permute(2, 0, 1)[None]
        wanted = F.interpolate(channels, (height, width), mode="bilinear", align_corners=False, antialias=True)
        assert torch.allclose(rows[: height * width], wanted[0].flatten(1).T, atol=1e-5)
        assert torch.allclose(rows[height * width :], rows[:1], atol=1e-6)


@pytest.mark.parametrize("size", [(30, 1), (4, 1), (1, 1), (9, 4)])
def test_positions_are_resized_as_pillow_does(size: tuple[int, int]) -> None:
    positions = torch.randn(16, 16, 1, generator=torch.Generator().manual_seed(1))
    wanted = Image.fromarray(positions[..., 0].numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    found = resize_positions(positions, torch.tensor([size]), size[0] * size[1])
    assert np.allclose(found[0, :, 0].reshape(size).numpy(), np.asarray(wanted), atol=1e-5)
