"""The gate: every candidate of every tower is measured on this machine, and the fastest that loses little ships.

Shapes: ``N`` rows, ``D`` joint width.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from clipdistill.errors import ClipdistillError, ModelError
from clipdistill.export.gallery import Gallery, Inputs, Judged, Rows, judged_by, quality
from clipdistill.export.quantise import CANDIDATES, FLOAT32, Candidate, make
from clipdistill.progress import progress
from clipdistill.search.engines import ONNXRUNTIME, OPENVINO, Graph, open_graph, parts

#: Turns of each of two graphs, and the runs of a turn that are counted, after seconds of runs that are not.
_TURNS, _RUNS, _SETTLING = 12, 3, 0.01
#: A difference of rounding is no loss.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Timing:
    """Milliseconds for one input, the median, and of float32 measured in turn with it.

    ``noise``: the medians differ by chance by as much, 1.57 interquartile ranges of the turns' differences over the
    root of their number (McGill, Tukey, Larsen 1978: 95% for a median).
    """

    ms: float
    float32_ms: float
    noise: float = 0.0

    @property
    def share(self) -> float:
        """Of float32's time; what is compared, as load changes both alike."""
        return self.ms / self.float32_ms

    @property
    def faster(self) -> bool:
        return self.float32_ms - self.ms > self.noise


#: Of a candidate and of float32, for one input.
Timer = Callable[[Graph, Graph, Inputs], Timing]


@dataclass
class Measured:
    """One candidate of one tower; ``reason`` says why there is nothing else to say of it."""

    name: str
    engine: str
    precision: str
    file: Path | None = None
    bytes: int = 0
    timing: Timing | None = None
    cosine: float = 0.0
    quality: dict[str, float] = field(default_factory=dict)
    loss: float = 0.0
    reason: str = ""
    rows: Rows | None = None


#: One candidate of each tower, by side.
Pair = Mapping[str, Measured]


@dataclass
class Gate:
    """What was measured of each tower, on what, and what follows: ``chosen`` ships, ``kept`` is by engine."""

    towers: dict[str, list[Measured]]
    judged: Judged
    uri: str
    sizes: dict[str, int]
    pairs: int
    skipped: int
    allowed: float
    chosen: dict[str, Measured] = field(default_factory=dict)
    kept: dict[str, dict[str, Measured]] = field(default_factory=dict)
    loss: float = 0.0


def run_gate(
    files: Mapping[str, Path],
    probes: Mapping[str, Sequence[Inputs]],
    gallery: Gallery,
    allowed: float,
    only: Candidate | None = None,
    candidates: Sequence[Candidate] = CANDIDATES,
    timer: Timer | None = None,
) -> Gate:
    """Measure candidates of the float32 graphs ``files`` by side, and choose.

    ``allowed`` points may be lost. ``only`` takes one candidate, whatever it loses, and measures that one alone beside
    float32. Raises :class:`ModelError` where that one cannot be had.
    """
    wanted = [one for one in candidates if only is None or one == only or one.name == FLOAT32]
    towers: dict[str, list[Measured]] = {}
    exact: dict[str, Rows] = {}
    with progress("candidates", len(files) * len(wanted), "candidates") as advance:
        for number, (side, one) in enumerate(product(files, wanted)):
            advance(number, f"{side} {one.name}")
            found = _measure(one, files[side], side, probes[side], gallery, timer or time_in_turn)
            towers.setdefault(side, []).append(found)
            if one.name == FLOAT32 and found.rows is not None:
                exact[side] = found.rows
        advance(len(files) * len(wanted), "")
    sizes = {side: len(rows) for side, rows in exact.items()}
    judged = judged_by(gallery, exact)
    gate = Gate(towers, judged, gallery.uri, sizes, gallery.pairs, gallery.skipped, allowed)
    _judge(gate, gallery, exact)
    _decide(gate, gallery, exact, only)
    return gate


def _measure(
    one: Candidate, source: Path, side: str, probes: Sequence[Inputs], gallery: Gallery, timer: Timer
) -> Measured:
    """Make, load, embed and time a candidate; one that cannot be is told of, float32 excepted, which must be."""
    found = Measured(one.name, one.engine, one.precision)
    try:
        found.file = make(one, source, probes)
        graph = open_graph(found.file, one.engine, one.precision)
        found.rows = gallery.batches[side].embed(graph)
        found.bytes = file_bytes(found.file)
        found.timing = timer(graph, open_graph(source, ONNXRUNTIME), gallery.alone[side])
    except ClipdistillError as error:
        found.reason, found.rows = str(error), None
    except Exception as error:  # what an engine raises while it runs a graph that it loaded
        found.reason, found.rows = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", None
    if found.reason and one.name == FLOAT32:
        raise ModelError(f"the float32 {side} graph cannot be measured: {found.reason}")
    return found


def file_bytes(path: Path) -> int:
    """Bytes of a graph with its weights, wherever they are."""
    return sum(part.stat().st_size for part in parts(path))


def time_in_turn(one: Graph, other: Graph, inputs: Inputs, clock: Callable[[], float] = time.perf_counter) -> Timing:
    """Time two graphs in turn, so that whatever else the machine does hits both alike.

    The first runs of each turn are not counted: threads of the other graph may still be waiting for work.
    """
    turns: tuple[list[float], list[float]] = ([], [])
    for _ in range(_TURNS):
        for graph, times in zip((one, other), turns, strict=True):
            began = clock()
            graph(inputs)
            while clock() - began < _SETTLING:
                graph(inputs)
            runs = []
            for _ in range(_RUNS):
                began = clock()
                graph(inputs)
                runs.append(1000 * (clock() - began))
            times.append(float(np.median(runs)))
    mine, theirs = (np.array(times) for times in turns)
    low, high = np.percentile(theirs - mine, [25, 75])
    return Timing(float(np.median(mine)), float(np.median(theirs)), float(1.57 * (high - low) / np.sqrt(_TURNS)))


def centred_cosine(rows: Rows, exact: Rows) -> float:
    """Return the mean cosine ``[N, D]`` with float32's rows, the mean of which is taken from both.

    Of a tower whose rows lie in a narrow cone the plain cosine is near 1 even where all of them have become one row.
    """
    mean = exact.astype(np.float64).mean(axis=0)
    mine, theirs = rows - mean, exact - mean
    lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
    products = (mine * theirs).sum(axis=1)
    return float(np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 1e-12).mean())


def _judge(gate: Gate, gallery: Gallery, exact: Mapping[str, Rows]) -> None:
    """Find what each candidate loses with the other tower in float32: the worst drop of what is judged by."""
    for side, measured in gate.towers.items():
        for one in measured:
            if one.rows is not None:
                one.cosine = centred_cosine(one.rows, exact[side])
                one.quality, one.loss = _lost(gate, gallery, exact, {**exact, side: one.rows})


def _lost(
    gate: Gate, gallery: Gallery, exact: Mapping[str, Rows], rows: Mapping[str, Rows]
) -> tuple[dict[str, float], float]:
    """Return what is judged by, and the worst drop of it from float32's; all of it where rows are no directions."""
    before = quality(gallery, exact, exact, gate.judged)
    try:
        after = quality(gallery, rows, exact, gate.judged)
    except ClipdistillError:  # rows of zeros, or of what is not a number
        return {}, 100.0
    return after, max(before[metric] - after[metric] for metric in before)


def _decide(gate: Gate, gallery: Gallery, exact: Mapping[str, Rows], only: Candidate | None) -> None:
    """Choose what ships, and for each engine what is kept beside it: what that engine does best."""

    def joint(pair: Pair) -> float:
        return _lost(gate, gallery, exact, {side: one.rows for side, one in pair.items() if one.rows is not None})[1]

    if only is None:
        free = {side: passing(measured, gate.allowed) for side, measured in gate.towers.items()}
        gate.chosen = choose(free, joint, gate.allowed)
    else:
        gate.chosen = {side: _the_one(side, measured, only) for side, measured in gate.towers.items()}
    gate.loss = joint(gate.chosen)
    gate.kept = {side: {one.engine: one} for side, one in gate.chosen.items()}
    for engine in (ONNXRUNTIME, OPENVINO):
        options = {
            side: [gate.chosen[side]] if gate.chosen[side].engine == engine else passing(measured, gate.allowed, engine)
            for side, measured in gate.towers.items()
        }
        for side, one in choose(options, joint, gate.allowed).items():
            gate.kept[side][engine] = one


def _the_one(side: str, measured: Sequence[Measured], only: Candidate) -> Measured:
    found = next(one for one in measured if one.name == only.name)
    if found.reason:
        raise ModelError(f"{only.name} cannot be had of the {side} tower: {found.reason}")
    return found


def passing(measured: Sequence[Measured], allowed: float, engine: str | None = None) -> list[Measured]:
    """Return what may ship, the fastest first: float32, and what loses no more than allowed and is faster.

    Of ``openvino`` by name, also what is slower than float32 in onnxruntime.
    """
    able = [
        one
        for one in measured
        if one.timing is not None
        and engine in (None, one.engine)
        and one.loss <= allowed + _ROUNDING
        and (one.name == FLOAT32 or one.timing.faster or engine == OPENVINO)
    ]
    return sorted(able, key=_share)


def _share(one: Measured) -> float:
    assert one.timing is not None
    return 1.0 if one.name == FLOAT32 else one.timing.share


def choose(
    options: Mapping[str, Sequence[Measured]], joint: Callable[[Pair], float], allowed: float
) -> dict[str, Measured]:
    """Return the fastest pair of towers that together lose no more than allowed; nothing where none is such.

    What each of two towers loses may add up, so that pairs are tried by the time of both, a picture and a query.
    """

    def milliseconds(pair: Sequence[Measured]) -> float:
        return sum(one.timing.float32_ms * _share(one) for one in pair if one.timing is not None)

    for pair in sorted(product(*options.values()), key=milliseconds):
        chosen = dict(zip(options, pair, strict=True))
        if joint(chosen) <= allowed + _ROUNDING:
            return chosen
    return {}


def machine() -> dict[str, Any]:
    """Name the processor and how many cores a process may use; engines take the threads they think best of them."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": names[0] if names else platform.processor() or platform.machine(), "cores": cores}
