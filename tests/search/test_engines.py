"""Two engines behind the same calls."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipdistill.errors import ConfigError, SearchError
from clipdistill.search.engines import open_graph
from clipdistill.search.runtime import Runtime

CAPTIONS = ["x", "a red circle", "两只狗在海滩上", "Two dogs! " * 40, ""]


def with_openvino(record: Mapping[str, Any], precision: str = "float32") -> dict[str, Any]:
    """The record of a folder whose towers ship for OpenVINO, with onnxruntime's beside."""
    section = dict(record["runtime"])
    for side in ("image", "text"):
        plain = {"engine": "onnxruntime", "precision": "float32", "file": section[side]["file"]}
        section[side] = {**section[side], "engine": "openvino", "precision": precision, "others": [plain]}
    return {**record, "runtime": section}


@pytest.fixture
def record(exported: tuple[Path, Any]) -> dict[str, Any]:
    return Runtime.open(exported[0]).record  # type: ignore[return-value]


def test_openvino_gives_the_rows_of_onnxruntime(exported: tuple[Path, Any], record: Any, picture: Any) -> None:
    one, other = Runtime(exported[0], with_openvino(record), threads=1), Runtime.open(exported[0], threads=1)
    assert one.graph_of("image")["engine"] == "openvino"
    for number in (3, 1):
        drawn = [picture(seed) for seed in range(number)]
        assert np.abs(one.images(drawn) - other.images(drawn)).max() < 1e-4
        assert np.abs(one.texts(CAPTIONS[:number]) - other.texts(CAPTIONS[:number])).max() < 1e-4
    assert np.abs(one.texts(CAPTIONS) - other.texts(CAPTIONS)).max() < 1e-4


def test_an_engine_that_is_asked_for_is_taken_where_it_is_held(exported: tuple[Path, Any], record: Any) -> None:
    runtime = Runtime(exported[0], with_openvino(record), engine="onnxruntime")
    assert runtime.graph_of("text")["engine"] == "onnxruntime"
    assert runtime.texts(["x"]).shape == (1, runtime.width)
    with pytest.raises(SearchError, match="has no text graph for the engine 'openvino', only for onnxruntime"):
        Runtime.open(exported[0], engine="openvino").texts(["x"])


def test_a_missing_engine_names_both_ways_out(
    exported: tuple[Path, Any], record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    runtime = Runtime(exported[0], with_openvino(record))
    with pytest.raises(ConfigError, match=r"clipdistill\[openvino\].*engine='onnxruntime'"):
        runtime.texts(["x"])


def test_bfloat16_is_asked_of_openvino(exported: tuple[Path, Any], record: Any) -> None:
    import openvino

    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor does not compute in bfloat16")
    rows = Runtime(exported[0], with_openvino(record, "bfloat16")).texts(CAPTIONS)
    exact = Runtime(exported[0], with_openvino(record)).texts(CAPTIONS)
    assert 1e-4 < np.abs(rows - exact).max() < 0.1


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_graph_serves_several_threads(engine: str, exported: tuple[Path, Any], record: Any) -> None:
    runtime = Runtime.open(exported[0])
    graph = open_graph(exported[0] / record["runtime"]["text"]["file"], engine, threads=1)
    inputs = [runtime.reader([f"{'very ' * number}red circle"]) for number in range(6)]
    alone = [graph(one) for one in inputs]
    first = alone[0].copy()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(graph, inputs * 4))
    assert all(np.abs(rows - alone[place % 6]).max() < 1e-5 for place, rows in enumerate(together))
    assert np.array_equal(first, alone[0])  # a result stays what it was when the next one comes


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_that_cannot_be_loaded_is_named(engine: str, exported: tuple[Path, Any], tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"none\.onnx cannot be loaded"):
        open_graph(tmp_path / "none.onnx", engine)
    damaged = tmp_path / "half.onnx"
    shutil.copy(exported[0] / "onnx" / "text_model.onnx", damaged)
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(SearchError, match=r"half\.onnx cannot be loaded"):
        open_graph(damaged, engine)


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"engine 'openvin', which is unknown here\. Did you mean 'openvino'"):
        open_graph(tmp_path / "x.onnx", "openvin")
