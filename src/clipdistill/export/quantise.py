"""Candidates for what a tower ships as: its float32 graph in other precisions and for other engines.

Each is made from the float32 ONNX graph alone, and lies beside it. ``probes`` are inputs of the graph, a picture
or a caption each: what is calibrated on, and what sensitivity is measured on.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import ConfigError, ModelError, need
from clipdistill.search.engines import BFLOAT16, ONNXRUNTIME, OPENVINO, open_graph

Inputs = Mapping[str, NDArray[Any]]
#: From the float32 file, the file to write and probes to the file that holds the candidate.
Make = Callable[[Path, Path, Sequence[Inputs]], Path]
FLOAT32 = "float32"
#: What dynamic int8 is for: products with weights, and tables of embeddings. Convolutions stay as they are.
_OPERATORS = ["MatMul", "Gather"]
#: Sensitivity is measured by blocks, no more than so many (of a tower of twelve layers about one a layer), on so many
#: probes.
_BLOCKS, _SENSED = 12, 8


@dataclass(frozen=True)
class Candidate:
    """One way to ship a tower: a precision, the engine that runs it, and how its file is made."""

    precision: str
    make: Make
    engine: str = ONNXRUNTIME
    packages: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its precision, for OpenVINO with that name before it."""
        return self.precision if self.engine == ONNXRUNTIME else f"{self.engine}-{self.precision}"


def make(candidate: Candidate, source: Path, probes: Sequence[Inputs]) -> Path:
    """Make a candidate of the float32 graph ``source`` (``onnx/NAME.onnx``), and return its file.

    Raises :class:`ConfigError` where a package is missing, :class:`ModelError` for whatever else prevents it.
    """
    if any(find_spec(package) is None for package in candidate.packages):
        raise ConfigError(f"not installed: pip install 'clipdistill[{candidate.packages[-1]}]'")
    folder, suffix = ("onnx", ".onnx") if candidate.engine == ONNXRUNTIME else (OPENVINO, ".xml")
    target = source.parents[1] / folder / f"{source.stem}_{candidate.precision}{suffix}"
    target.parent.mkdir(exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what these libraries are made of
            return candidate.make(source, target, probes)
    except ModelError:
        raise
    except Exception as error:  # every library raises what it likes for a graph that it cannot do
        raise ModelError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


def _as_it_is(source: Path, target: Path, probes: Sequence[Inputs]) -> Path:
    return source


def _float16(source: Path, target: Path, probes: Sequence[Inputs]) -> Path:
    """Weights and products in float16; inputs and outputs stay float32."""
    onnx = need("onnx", "export")
    halving = need("onnxruntime.transformers.float16", "export")
    onnx.save(halving.convert_float_to_float16(onnx.load(str(source)), keep_io_types=True), str(target))
    return target


def _int8(source: Path, target: Path, probes: Sequence[Inputs]) -> Path:
    """One scale for every matrix, activations scaled as they come."""
    _quantise_dynamic(_prepared(source), target, per_channel=False)
    return target


def _int8_channel(source: Path, target: Path, probes: Sequence[Inputs]) -> Path:
    """One scale for every column of a matrix."""
    _quantise_dynamic(_prepared(source), target, per_channel=True)
    return target


def _int8_mixed(source: Path, target: Path, probes: Sequence[Inputs]) -> Path:
    """int8 by channel but for the most sensitive blocks: the fewest that make half of the error by themselves.

    A block is a run of consecutive nodes that int8 would replace. Its error is how far rows move where it alone is
    in int8. Raises :class:`ModelError` for a graph with no more than one block.
    """
    names = _nodes(_prepared(source))
    blocks = [list(block) for block in np.array_split(names, min(_BLOCKS, len(names))) if len(block)]
    if len(blocks) < 2:
        raise ModelError(f"the graph has {len(names)} nodes that int8 replaces; there is nothing to mix")
    few = probes[:: max(1, len(probes) // _SENSED)][:_SENSED]
    kept = most_sensitive(sensitivities(source, blocks, few))
    _quantise_dynamic(_prepared(source), target, True, leave=[name for block in kept for name in blocks[block]])
    return target


def sensitivities(source: Path, blocks: Sequence[Sequence[str]], probes: Sequence[Inputs]) -> list[float]:
    """Return for each block of nodes the mean squared distance that rows move where it alone is in int8."""
    exact = _rows(source, probes)
    found = []
    for block in blocks:
        with TemporaryDirectory(dir=source.parent) as folder:
            alone = Path(folder) / "alone.onnx"
            _quantise_dynamic(_prepared(source), alone, per_channel=True, only=block)
            found.append(float(((_rows(alone, probes) - exact) ** 2).sum(axis=1).mean()))
    return found


def most_sensitive(errors: Sequence[float]) -> list[int]:
    """Return the places of the fewest errors that make half of their sum, and never all of them."""
    order = sorted(range(len(errors)), key=lambda place: -errors[place])
    shares = np.cumsum([errors[place] for place in order])
    enough = int(np.argmax(shares >= shares[-1] / 2)) + 1
    return sorted(order[: min(enough, len(errors) - 1)])


def _rows(path: Path, probes: Sequence[Inputs]) -> NDArray[np.float32]:
    graph = open_graph(path, ONNXRUNTIME)
    return np.concatenate([graph(inputs) for inputs in probes])


def _prepared(source: Path) -> Any:
    """Load a graph for onnxruntime's quantiser: products written as such, nothing noted about shapes.

    Some of the shapes that torch's exporter notes contradict what the quantiser itself infers.
    """
    quantiser = need("onnxruntime.quantization.onnx_model", "export")
    model = quantiser.ONNXModel(need("onnx", "export").load(str(source)))
    del model.model.graph.value_info[:]
    model.replace_gemm_with_matmul()
    need("onnxruntime.quantization.quant_utils", "export").add_pre_process_metadata(model.model)
    return model.model


def _nodes(model: Any) -> list[str]:
    """The nodes that dynamic int8 replaces, in the order in which they compute."""
    weights = {weight.name for weight in model.graph.initializer}
    place = {"MatMul": 1, "Gather": 0}
    floats = {weight.name for weight in model.graph.initializer if weight.data_type == 1}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in _OPERATORS and node.input[place[node.op_type]] in weights & floats
    ]


def _quantise_dynamic(
    model: Any, target: Path, per_channel: bool, only: Sequence[str] = (), leave: Sequence[str] = ()
) -> None:
    quantization = need("onnxruntime.quantization", "export")
    quantization.quantize_dynamic(
        model,
        str(target),
        op_types_to_quantize=_OPERATORS,
        per_channel=per_channel,
        nodes_to_quantize=list(only),
        nodes_to_exclude=list(leave),
    )


def _bfloat16(source: Path, target: Path, probes: Sequence[Inputs]) -> Path:
    """The float32 file, of which OpenVINO computes products in bfloat16, where the processor can."""
    able = need("openvino", "openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in able:
        raise ModelError("this processor does not compute in bfloat16")
    return source


def _nncf(source: Path, target: Path, probes: Sequence[Inputs]) -> Path:
    """int8 for weights and activations, whose ranges NNCF finds on the probes and evens out beforehand."""
    openvino = need("openvino", "openvino")
    with _quiet_nncf() as nncf:
        model = nncf.quantize(
            openvino.Core().read_model(str(source)),
            nncf.Dataset([dict(inputs) for inputs in probes]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(probes),
        )
    openvino.save_model(model, str(target), compress_to_fp16=False)
    return target


@contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """Import NNCF so that it reports to nobody, and let it draw no bars."""
    os.environ.setdefault("NNCF_CI", "1")  # read when it is imported: else it sends its use to its makers
    with contextlib.redirect_stdout(io.StringIO()):
        nncf = need("nncf", "nncf")
        nncf.set_log_level(50)
        yield nncf


CANDIDATES: tuple[Candidate, ...] = (
    Candidate(FLOAT32, _as_it_is),
    Candidate("float16", _float16),
    Candidate("int8", _int8),
    Candidate("int8-channel", _int8_channel),
    Candidate("int8-mixed", _int8_mixed),
    Candidate(FLOAT32, _as_it_is, OPENVINO, ("openvino",)),
    Candidate(BFLOAT16, _bfloat16, OPENVINO, ("openvino",)),
    Candidate("int8", _nncf, OPENVINO, ("openvino", "nncf")),
)
