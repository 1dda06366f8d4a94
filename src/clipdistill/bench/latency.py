"""One picture and one caption through each engine of a CPU: torch as it is, compiled, onnxruntime, and its int8.

Weights are drawn at random: latency and size are what they are, quality is not measured. Each case is a process of its
own, which times a picture and captions in turn.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdistill.bench import towers
from clipdistill.bench.process import ask
from clipdistill.bench.result import Result, columns
from clipdistill.errors import TrainingError
from clipdistill.progress import progress

MODULE = "clipdistill.bench.latency_case"
#: The yardstick first.
ENGINES = ("eager", "compile", "onnx", "int8")
#: What is measured where nobody names towers; ALL stands for every one.
DEFAULT, ALL = ("vit-tiny-16", "tinyclip-8m-16", "vit-base-32"), "all"


@dataclass(frozen=True)
class Scope:
    """Which ``towers`` are timed, in which ``engines``, with how many ``threads``; a case has ``limit`` seconds."""

    towers: Sequence[str] = DEFAULT
    engines: Sequence[str] = ENGINES
    threads: Sequence[int] = (1, 2)
    limit: float = 300.0


def choose(names: Sequence[str]) -> Scope:
    """Return the scope of these towers, of the usual ones if none is named; raises :class:`ConfigError`."""
    chosen = list(towers.SPECS) if ALL in names else list(dict.fromkeys(names)) or list(DEFAULT)
    towers.check_names(chosen)
    return Scope(towers=chosen)


def run(scope: Scope | None = None) -> Result:
    """Measure every case; what fails or takes too long is told, and has no ratio."""
    scope = scope or Scope()
    cases = list[dict[str, Any]]()
    with (
        tempfile.TemporaryDirectory(prefix="clipdistill-bench-") as name,
        progress(
            "bench latency", len(scope.towers) * (1 + len(scope.engines) * len(scope.threads)), "cases"
        ) as advance,
    ):
        done = 0
        for tower in scope.towers:
            folder = Path(name) / tower
            folder.mkdir()
            advance(done, f"{tower} graphs")
            written = _ask({"tower": tower}, tower=tower, folder=str(folder), within=scope.limit)
            done += 1
            for threads in scope.threads:
                for engine in scope.engines:
                    advance(done, f"{tower} {engine}, {threads} threads")
                    cases.append(_case(tower, folder, engine, threads, written, scope.limit))
                    done += 1
            advance(done, tower)
            shutil.rmtree(folder)  # graphs of large towers are gigabytes
    return _result(cases)


def _case(tower: str, folder: Path, engine: str, threads: int, written: dict[str, Any], limit: float) -> dict[str, Any]:
    case = {"tower": tower, "engine": engine, "threads": threads}
    if engine in ("onnx", "int8") and written["left_out"]:
        return {**case, "times": {}, "left_out": f"no graph: {written['left_out']}"}
    found = _ask(case, tower=tower, folder=str(folder), engine=engine, threads=threads, within=limit)
    key = {"onnx": "bytes", "int8": "int8_bytes"}.get(engine)
    sizes = {side: about[key] for side, about in written["times"].items()} if key else {}
    return {**found, "bytes": sizes}


def _ask(case: dict[str, Any], within: float, **asked: Any) -> dict[str, Any]:
    """Ask a process; ``times`` is its answer, or ``left_out`` says why there is none."""
    try:
        return {**case, "times": ask(MODULE, within=within, **asked), "left_out": ""}
    except subprocess.TimeoutExpired:
        return {**case, "times": {}, "left_out": f"did not finish in {within:g} s"}
    except TrainingError as error:  # a library that is not there, a tower that cannot be compiled
        return {**case, "times": {}, "left_out": str(error).strip().splitlines()[-1]}


def _result(cases: Sequence[dict[str, Any]]) -> Result:
    ratios = _ratios(cases)
    heads = ["ms, one at a time", "threads", "p50", "p99", "times as fast as eager", "MB"]
    lines = [line for case in cases for line in _lines(case, ratios)]
    told = [f"{_name(case)}, {case['threads']} threads: {case['left_out']}" for case in cases if case["left_out"]]
    return Result(ratios, {"cases": list(cases)}, "\n".join([columns([heads, *lines]), *told]))


def _ratios(cases: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How many times faster than torch as it is each other engine is, by the medians."""
    eager = {(case["tower"], case["threads"]): case["times"] for case in cases if case["engine"] == "eager"}
    found = dict[str, float]()
    for case in cases:
        base = eager.get((case["tower"], case["threads"]), {})
        for what, times in case["times"].items():
            if case["engine"] != "eager" and what in base:
                found[_ratio_name(case, what)] = base[what]["p50"] / times["p50"]
    return found


def _ratio_name(case: dict[str, Any], what: str) -> str:
    return f"{case['tower']}_{what}_{case['engine']}_{case['threads']}_threads"


def _lines(case: dict[str, Any], ratios: dict[str, float]) -> list[list[str]]:
    lines = []
    for what, times in case["times"].items():
        ratio = ratios.get(_ratio_name(case, what))
        size = case["bytes"].get(what.partition("_")[0])
        figures = [f"{times['p50']:.2f}", f"{times['p99']:.2f}", f"{ratio:.2f}" if ratio else "-"]
        lines.append([f"{_name(case)} {what}", str(case["threads"]), *figures, f"{size / 1e6:.1f}" if size else "-"])
    return lines


def _name(case: dict[str, Any]) -> str:
    return f"{case['tower']} {case['engine']}"
