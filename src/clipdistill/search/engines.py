"""What runs a graph on a CPU: onnxruntime, or OpenVINO.

Shapes: ``B`` rows, ``D`` joint width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import ConfigError, SearchError, did_you_mean, need

#: Inputs of a graph, by name, to rows ``float32 [B, D]``. It may be called from several threads at once.
Graph = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]
ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
#: The precision in which OpenVINO computes what a file leaves open; anything else is float32.
BFLOAT16 = "bfloat16"


def parts(path: Path) -> set[Path]:
    """The files that a graph is: its own, and its weights where they are beside it, in OpenVINO's .bin or a .data.

    torch writes weights of more than 1.5 GB as NAME.onnx.data, for a protobuf holds two; the .onnx names that file, so
    neither may be renamed.
    """
    beside = (path.with_suffix(".bin"), path.with_name(f"{path.name}.data"))
    return {path, *(part for part in beside if part.is_file())}


def open_graph(path: Path, engine: str, precision: str = "float32", threads: int | None = None) -> Graph:
    """Load a graph: an .onnx file, or for ``openvino`` an .xml, with what is beside it (:func:`parts`).

    ``threads`` of the CPU, as many as the engine thinks best by default. Raises :class:`SearchError` for a file that
    is missing or damaged and for an unknown engine, :class:`ConfigError` for an engine that is not installed.
    """
    if engine not in _ENGINES:
        raise SearchError(
            f"{path} is for the engine '{engine}', which is unknown here.{did_you_mean(engine, _ENGINES)}"
        )
    return _ENGINES[engine](path, precision, threads)


def _onnxruntime(path: Path, precision: str, threads: int | None) -> Graph:
    """The file says everything about its precision."""
    import onnxruntime as library  # slow to import, and OpenVINO may be all that is asked for

    options = library.SessionOptions()
    options.log_severity_level = 3  # errors alone: the others are about its own rewriting of graphs
    # Its threads would go on turning for a while after each query, at the cost of everything else that a search does.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has a class for each of its states
        raise _unloadable(path, error) from error

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = session.run(None, dict(inputs))[0]
        return rows

    return run


def _openvino(path: Path, precision: str, threads: int | None) -> Graph:
    """A request of its own for every thread: one request computes one batch at a time."""
    library = _need_openvino()
    hints: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == BFLOAT16 else "f32",
    }
    if threads is not None:
        hints["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = library.Core().compile_model(str(path), "CPU", hints)
    except Exception as error:  # RuntimeError, or what its reader of the file raises
        raise _unloadable(path, error) from error
    own = threading.local()

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        return np.array(own.request.infer(dict(inputs))[0], np.float32)  # its own memory is written to again

    return run


def _need_openvino() -> Any:
    try:
        return need(OPENVINO, "openvino")
    except ConfigError as error:
        raise ConfigError(
            f"{error}. Or open the folder with Runtime.open(folder, engine='onnxruntime'), which takes its best "
            "graph for that engine, if it holds one."
        ) from error


def _unloadable(path: Path, error: Exception) -> SearchError:
    reason = " ".join(str(error).split())[:600]
    return SearchError(f"{path} cannot be loaded: {reason}. Export the model again.")


_ENGINES: dict[str, Callable[[Path, str, int | None], Graph]] = {ONNXRUNTIME: _onnxruntime, OPENVINO: _openvino}
