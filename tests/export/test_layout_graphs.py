"""Folders of other programs that hold graphs: immich's, opened as immich does, and transformers.js', opened in Node."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from clipdistill.export.examining import examine
from clipdistill.export.layout_javascript import write_joint
from clipdistill.export.layouts import export_layout
from clipdistill.export.parity import model_images, model_texts
from clipdistill.models.loading import load
from export.layout_models import left_in, make_square
from transformers_js import NODE, installed

SMALL = "scenes:test?n=3"
DOCS = Path(__file__).parents[2] / "docs"
#: What TensorRT 10's table of operators of ONNX (docs/operators.md of onnx-tensorrt) lists as supported, of those that
#: torch writes.
_SUPPORTED = """
Abs Add And ArgMax AveragePool Cast Clip Concat Conv CumSum Div Equal Expand Gather GatherElements GatherND Gelu Gemm
Greater GreaterOrEqual HardSigmoid HardSwish LayerNormalization Less LessOrEqual MatMul Max MaxPool Mod Mul Not Pad
Range Reciprocal ReduceL2 ReduceMean ReduceSum Relu Reshape Shape Sigmoid Slice Softmax Split Squeeze Sub Tanh Tile
Transpose Unsqueeze Where
"""
TENSORRT = set(_SUPPORTED.split())


def drawn(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(6).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def operators(folder: Path) -> set[str]:
    return {node.op_type for path in folder.rglob("*.onnx") for node in onnx.load(path).graph.node}


def check_operators(folder: Path) -> None:
    """Of the operators in a folder's graphs, docs/export.md lists all, and TensorRT takes all that it lists."""
    _, _, behind = (DOCS / "export.md").read_text(encoding="utf-8").partition("own set alone")
    listed = set(re.findall(r"`([A-Z]\w+)`", behind.partition("\n## ")[0]))
    assert operators(folder) <= listed <= TENSORRT


def immich_pixels(folder: Path, picture: Image.Image) -> NDArray[np.float32]:
    """Prepare a picture by immich's own steps: the shorter side to the size, a square from the middle; or a squash."""
    about = json.loads((folder / "visual" / "preprocess_cfg.json").read_text())
    size = about["size"][0]
    resample = {one.name.lower(): one for one in Image.Resampling}[about["interpolation"]]
    if about["resize_mode"] == "squash":
        picture = picture.resize((size, size), resample)
    else:
        width, height = picture.size
        wide = (size, int(height / width * size)) if width < height else (int(width / height * size), size)
        picture = picture.resize(wide, resample)
        left, upper = int(wide[0] / 2 - size / 2), int(wide[1] / 2 - size / 2)
        picture = picture.crop((left, upper, left + size, upper + size))
    mean, std = (np.array(about[key], np.float32) for key in ("mean", "std"))
    pixels = (np.asarray(picture, np.float32) / 255 - mean) / std
    return pixels.transpose(2, 0, 1)[None]


def immich_tokens(folder: Path, caption: str) -> NDArray[np.int32]:
    """Tokenise a caption by immich's own steps: white space tidied, cut and padded to the context's length."""
    length = json.loads((folder / "config.json").read_text())["text_cfg"]["context_length"]
    pad = json.loads((folder / "textual" / "tokenizer_config.json").read_text())["pad_token"]
    tokenizer = Tokenizer.from_file(str(folder / "textual" / "tokenizer.json"))
    tokenizer.enable_padding(length=length, pad_token=pad, pad_id=tokenizer.token_to_id(pad))
    tokenizer.enable_truncation(max_length=length)
    return np.array([tokenizer.encode(" ".join(caption.split())).ids], np.int32)


@pytest.mark.parametrize("kind", ["clip", "chinese_clip"])
def test_immich_reads_its_folders(kind: str, make_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = make_square(make_model) if kind == "clip" else make_model(kind)
    out = tmp_path / "out"
    parity = export_layout(model, out, "immich", SMALL)
    assert min(parity.image or 0, parity.text or 0) >= 0.99999
    assert {"textual/model.onnx", "visual/model.onnx", "visual/preprocess_cfg.json", "config.json"} <= left_in(out)
    encoder = load(str(model))
    textual, visual = (onnxruntime.InferenceSession(str(out / side / "model.onnx")) for side in ("textual", "visual"))
    for caption in ("a Red  circle", "两只狗在海滩上", "two dogs run along the beach " * 9, ""):
        row = textual.run(None, {"text": immich_tokens(out, caption)})[0][0]
        assert float(row @ model_texts(encoder, [caption])[0]) >= 0.99999
    for size in ((40, 60), (61, 33), (32, 32)):
        row = visual.run(None, {"image": immich_pixels(out, drawn(size))})[0][0]
        assert float(row @ model_images(encoder, [drawn(size)])[0]) >= 0.99999
    assert (textual.get_inputs()[0].type, visual.get_inputs()[0].type) == ("tensor(int32)", "tensor(float)")
    assert json.loads((out / "config.json").read_text())["embed_dim"] == encoder.width
    check_operators(out)
    assert examine(out) == []


@pytest.fixture(scope="module")
def node() -> str:
    """The program node, with transformers.js installed beside the test."""
    installed()
    return str(shutil.which("node"))


def test_transformers_js_embeds_and_classifies(node: str, make_model: Callable[[str], Path], tmp_path: Path) -> None:
    model, out = make_square(make_model), tmp_path / "models" / "small"
    export_layout(model, out, "transformers.js", SMALL)
    encoder, picture, captions = load(str(model)), drawn((32, 32)), ["A Red circle, here!", "两只狗 dogs"]
    (tmp_path / "pixels.json").write_text(json.dumps(np.asarray(picture).tolist()))
    words = [node, str(NODE / "rows.mjs"), f"{out.parent}/", out.name, str(tmp_path / "pixels.json"), *captions]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ids"] == encoder.tokenize(captions)["input_ids"].flatten().tolist()
    texts, images = model_texts(encoder, captions), model_images(encoder, [picture])
    assert np.abs(np.array(found["texts"]) - texts).max() < 1e-4
    assert np.abs(np.array(found["images"]) - images).max() < 1e-4
    scores = torch.from_numpy(encoder.scale * images @ texts.T)[0].softmax(dim=0).tolist()
    assert [found["scores"][caption] for caption in captions] == pytest.approx(scores, abs=1e-3)
    check_operators(out)


def test_transformers_js_finds_large_weights_in_the_graphs(
    make_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    export_layout(make_square(make_model), tmp_path / "out", "transformers.js", SMALL)
    names = {"model.onnx", "text_model.onnx", "vision_model.onnx"}
    assert left_in(tmp_path / "out" / "onnx") == names
    for name in names:
        onnxruntime.InferenceSession((tmp_path / "out" / "onnx" / name).read_bytes())


def _linear(folder: Path, side: str, given: str, weights: NDArray[np.float32]) -> None:
    """Write a graph of one product, ``[batch, 3] -> [batch, 2]``, as if it were a tower."""
    names = {"image": "vision", "text": "text"}
    helper: Any = onnx.helper
    ends = [
        helper.make_tensor_value_info(name, 1, ["batch", size]) for name, size in ((given, 3), (f"{side}_embeds", 2))
    ]
    steps = [helper.make_node("MatMul", [given, "w"], [f"{side}_embeds"])]
    graph = helper.make_graph(steps, side, ends[:1], ends[1:], [onnx.numpy_helper.from_array(weights, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, folder / "onnx" / f"{names[side]}_model.onnx")


@pytest.fixture
def towers(tmp_path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    (tmp_path / "onnx").mkdir()
    weights = np.random.default_rng(7).standard_normal((2, 3, 2)).astype(np.float32)
    _linear(tmp_path, "image", "pixel_values", weights[0])
    _linear(tmp_path, "text", "input_ids", weights[1])
    return weights[0], weights[1]


@pytest.mark.parametrize("bias", [None, -2.5])
def test_both_towers_in_one_graph_give_logits(bias: float | None, towers: Any, tmp_path: Path) -> None:
    write_joint(tmp_path, 3.0, bias)
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    drawn = np.random.default_rng(8).standard_normal((9, 3)).astype(np.float32)
    pictures, captions = drawn[:5], drawn[5:]
    names = ["logits_per_image", "logits_per_text", "image_embeds", "text_embeds"]
    found = session.run(names, {"pixel_values": pictures, "input_ids": captions})
    images, texts = pictures @ towers[0], captions @ towers[1]
    logits = 3.0 * images @ texts.T + (bias or 0.0)
    for ours, wanted in zip(found, (logits, logits.T, images, texts), strict=True):
        assert np.allclose(ours, wanted, atol=1e-5)
