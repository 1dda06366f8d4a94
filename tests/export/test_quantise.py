"""Every candidate as a file that its engine runs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from clipdistill.errors import ConfigError, ModelError
from clipdistill.export import quantise
from clipdistill.export.quantise import CANDIDATES, Candidate, make, most_sensitive, sensitivities
from clipdistill.search.engines import open_graph
from export.tower_files import WIDTH, matrices, rows_of, write_tower

X = np.random.default_rng(0).standard_normal((24, WIDTH)).astype(np.float32)
PROBES = [{"x": row[None]} for row in X]
WEIGHTS = matrices(2, seed=1)
BY_NAME = {one.name: one for one in CANDIDATES}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tower(tmp_path / "onnx" / "tower.onnx", WEIGHTS)


def computes_in_bfloat16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize("name", BY_NAME)
def test_a_candidate_is_near_and_takes_float32(name: str, source: Path) -> None:
    one = BY_NAME[name]
    if one.precision == "bfloat16" and not computes_in_bfloat16():
        with pytest.raises(ModelError, match="this processor does not compute in bfloat16"):
            make(one, source, PROBES)
        return
    path = make(one, source, PROBES)
    exact, rows = rows_of(WEIGHTS, X), open_graph(path, one.engine, one.precision, threads=1)({"x": X})
    assert rows.dtype == np.float32
    assert (rows * exact).sum(axis=1).min() > (0.9 if "int8" in name else 0.999)
    same = np.abs(rows - exact).max() < 1e-5
    assert same == one.precision.startswith("float32")  # the others are really in another precision
    assert path == source or path.name == f"tower_{one.precision}{path.suffix}"
    assert path != source or name in ("float32", "openvino-float32", "openvino-bfloat16")


def weights_in(path: Path, name: str) -> set[int]:
    return {weight.data_type for weight in onnx.load(path).graph.initializer if weight.name.startswith(name)}


def test_the_most_sensitive_block_stays_float32(tmp_path: Path) -> None:
    weights = matrices(3, seed=2)
    weights[0][:, 0] /= 1000
    weights[1][0] *= 1000  # a row so large that the scale of a column leaves nothing of the others
    source = write_tower(tmp_path / "onnx" / "tower.onnx", weights)
    blocks = [[f"product{place}"] for place in range(4)]
    errors = sensitivities(source, blocks, PROBES)
    exact = rows_of(weights, X)
    for block, error in zip(blocks, errors, strict=True):  # the same, by way of its own file
        alone = tmp_path / "alone.onnx"
        quantise._quantise_dynamic(quantise._prepared(source), alone, True, only=block)
        rows = np.concatenate([open_graph(alone, "onnxruntime")(probe) for probe in PROBES])
        assert error == pytest.approx(float(((rows - exact) ** 2).sum(axis=1).mean()), rel=1e-3, abs=1e-9)
    assert int(np.argmax(errors)) == 1
    mixed = make(BY_NAME["int8-mixed"], source, PROBES)
    int8 = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    kept = [place for place in range(4) if onnx.TensorProto.FLOAT in weights_in(mixed, f"w{place}") and
            not weights_in(mixed, f"w{place}_quantized")]  # fmt: skip
    assert kept == most_sensitive(errors)
    assert 1 in kept
    assert any(weights_in(mixed, f"w{place}_quantized") & int8 for place in range(4))
    lossy, better = (make(BY_NAME[name], source, PROBES) for name in ("int8-channel", "int8-mixed"))
    worst = [float(((open_graph(path, "onnxruntime")({"x": X}) - exact) ** 2).mean()) for path in (lossy, better)]
    assert worst[1] < worst[0] / 2


@pytest.mark.parametrize(
    ("errors", "kept"), [([1, 1, 1, 1], [0, 1]), ([0, 9, 1], [1]), ([3, 4, 3], [0, 1]), ([1, 0], [0]), ([0, 0], [0])]
)
def test_the_fewest_blocks_that_make_half_of_the_error(errors: list[float], kept: list[int]) -> None:
    assert most_sensitive(errors) == kept


def test_there_is_nothing_to_mix_in_one_product(tmp_path: Path) -> None:
    source = write_tower(tmp_path / "onnx" / "tower.onnx", matrices(0, seed=3))
    with pytest.raises(ModelError, match="has 1 nodes that int8 replaces"):
        make(BY_NAME["int8-mixed"], source, PROBES)


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_what_is_not_installed_says_how_to_install_it(
    package: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'clipdistill\[nncf\]'"):
        make(BY_NAME["openvino-int8"], source, PROBES)


def test_what_a_library_cannot_do_is_a_reason(source: Path) -> None:
    def broken(source: Path, target: Path, probes: object) -> Path:
        raise NotImplementedError("no such\n operator")

    with pytest.raises(ModelError, match="NotImplementedError: no such operator"):
        make(Candidate("broken", broken), source, PROBES)
