"""One pair of towers in one engine with so many threads: what ``bench latency`` asks a process of its own.

``python -m clipdistill.bench.latency_case '{"tower": ..., ...}'`` writes the graphs, or times one case.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from clipdistill.bench import towers
from clipdistill.bench.clock import in_turn
from clipdistill.errors import need
from clipdistill.export.graphs import Side, write_graph
from clipdistill.export.quantise import CANDIDATES
from clipdistill.export.quantise import make as make_candidate
from clipdistill.export.reading import write_tokenizer
from clipdistill.models.encoder import DualEncoder

#: A query has about so many tokens.
SHORT = 16

Inputs = Mapping[str, torch.Tensor]


def inputs(encoder: DualEncoder, rows: int = 1) -> dict[str, tuple[Side, Inputs]]:
    """What is timed, by name: a picture, a caption of full length and a short one."""
    found: dict[str, tuple[Side, Inputs]] = {"image": ("image", towers.picture(encoder, rows))}
    longest = towers.longest(encoder)
    for length in dict.fromkeys((longest, min(SHORT, longest))) if longest else ():
        found[f"text_{length}"] = ("text", towers.caption(encoder, length, rows))
    return found


def graph(folder: str, side: Side, engine: str = "onnx") -> Path:
    """The file of a tower's graph, in float32 or in int8."""
    return Path(folder) / "onnx" / (f"{side}.onnx" if engine == "onnx" else f"{side}_int8-channel.onnx")


def write(tower: str, folder: str) -> dict[str, Any]:
    """Write the graphs of both towers, and each in int8; return bytes of the files and parameters."""
    encoder, found = towers.make(tower), dict[str, Any]()
    names: tuple[str, ...] = ()
    fixed = False
    (Path(folder) / "onnx").mkdir()
    if "T" in encoder.sides:
        rules = write_tokenizer(encoder, Path(folder))
        names, fixed = tuple(rules.inputs), rules.fixed
    for side, given in dict(inputs(encoder, rows=2).values()).items():
        path = graph(folder, side)
        example = dict(given) if side == "image" else {name: given[name] for name in names}
        write_graph(encoder, side, example, path, own_length=side == "text" and not fixed)
        found[side] = {"bytes": path.stat().st_size, "int8_bytes": _to_int8(path).stat().st_size}
    return found


def _to_int8(path: Path) -> Path:
    """Weights of matrix products in int8, by channel; activations as they come (onnxruntime's dynamic kind)."""
    (candidate,) = (one for one in CANDIDATES if one.name == "int8-channel")
    return make_candidate(candidate, path, [])


def time_case(tower: str, folder: str, engine: str, threads: int) -> dict[str, Any]:
    """Time a picture and captions in turn: ``{input: {"p50", "p99", "rounds"}}`` in milliseconds."""
    torch.set_num_threads(threads)
    encoder = towers.make(tower)
    works = _in_torch(encoder, engine) if engine in ("eager", "compile") else _in_onnx(encoder, folder, engine, threads)
    with torch.inference_mode():
        return in_turn(works)


def _in_torch(encoder: DualEncoder, engine: str) -> dict[str, Callable[[], Any]]:
    calls: dict[Side, Callable[[Inputs], Any]] = {"image": encoder.images, "text": encoder.texts}
    if engine == "compile":
        calls = {side: torch.compile(call, dynamic=False) for side, call in calls.items()}
    return {name: _bound(calls[side], given) for name, (side, given) in inputs(encoder).items()}


def _bound(call: Callable[[Any], Any], given: Any) -> Callable[[], Any]:
    return lambda: call(given)


def _in_onnx(encoder: DualEncoder, folder: str, engine: str, threads: int) -> dict[str, Callable[[], Any]]:
    library: Any = need("onnxruntime", "export")
    options = library.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    works, sessions = dict[str, Callable[[], Any]](), dict[str, Any]()
    for name, (side, given) in inputs(encoder).items():
        if side not in sessions:
            path = str(graph(folder, side, engine))
            sessions[side] = library.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        asked = {wanted.name: given[wanted.name].numpy() for wanted in sessions[side].get_inputs()}
        works[name] = _bound(_run(sessions[side]), asked)
    return works


def _run(session: Any) -> Callable[[Any], Any]:
    return lambda given: session.run(None, given)


def main(**asked: Any) -> None:
    """Answer one question with one line of JSON."""
    print(json.dumps(time_case(**asked) if "engine" in asked else write(**asked)))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
