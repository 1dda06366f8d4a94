"""Towers of a few matrices, written as ONNX files by hand: an export through torch takes seconds."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH, HIDDEN, JOINT = 16, 32, 12


def matrices(layers: int, seed: int) -> list[NDArray[np.float32]]:
    """Random matrices [WIDTH, HIDDEN], [HIDDEN, HIDDEN]..., [HIDDEN, JOINT]."""
    noise = np.random.default_rng(seed)
    widths = [WIDTH, *[HIDDEN] * layers, JOINT]
    return [noise.standard_normal(pair).astype(np.float32) / 3 for pair in pairwise(widths)]


def write_tower(path: Path, weights: list[NDArray[np.float32]], offset: float = 0.0) -> Path:
    """A tower ``x float32 [batch, WIDTH] -> rows [batch, JOINT]`` of unit length: products with Relu between.

    ``offset`` is added to every row before its length is made one.
    """
    nodes: list[Any] = []
    given = "x"
    for place in range(len(weights)):
        nodes.append(helper.make_node("MatMul", [given, f"w{place}"], [f"h{place}"], name=f"product{place}"))
        given = f"h{place}"
        if place < len(weights) - 1:
            nodes.append(helper.make_node("Relu", [given], [f"r{place}"], name=f"relu{place}"))
            given = f"r{place}"
    nodes.append(helper.make_node("Add", [given, "offset"], ["moved"]))
    nodes.append(helper.make_node("ReduceL2", ["moved", "axes"], ["length"], keepdims=1))
    nodes.append(helper.make_node("Clip", ["length", "least"], ["safe"]))
    nodes.append(helper.make_node("Div", ["moved", "safe"], ["rows"]))
    constants = [numpy_helper.from_array(weight, f"w{place}") for place, weight in enumerate(weights)]
    constants.append(numpy_helper.from_array(np.full(JOINT, offset, np.float32), "offset"))
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    constants.append(numpy_helper.from_array(np.array(1e-12, np.float32), "least"))
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", JOINT])],
        constants,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def rows_of(weights: list[NDArray[np.float32]], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What such a tower gives, in numpy."""
    for weight in weights[:-1]:
        x = np.maximum(x @ weight, 0)
    x = x @ weights[-1]
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)
