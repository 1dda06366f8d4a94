"""Claim: a store gives rows at random nearly as fast as numpy indexes a plain memory map of the same bytes.

What a store does besides costs the difference: it goes from file to file, and when written takes checksums. By id it
also hashes every id and looks it up, for which numpy has no counterpart: that is told beside it. Shapes: ``N`` rows,
``D`` width, ``B`` ids a call.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.bench.result import Result
from clipdistill.bench.versus import Verdict, versus
from clipdistill.teachers.embed import SHARD_BYTES
from clipdistill.teachers.manifest import Data, Manifest, Model
from clipdistill.teachers.store import EmbeddingStore, finish, write_shard

#: What reading by position, as numpy reads, is meant to reach.
AIM = 0.8
_OPENINGS = 20


def run(count: int = 1_000_000, width: int = 512, at_once: int = 1024, calls: int = 300) -> Result:
    """Write ``count`` rows in float16, open them, and read ``at_once`` of them at random, ``calls`` times.

    Both ways read the same rows from files of the same bytes, after every page was touched once.
    """
    with tempfile.TemporaryDirectory(prefix="clipdistill-bench-") as name:
        folder = Path(name)
        ids = [f"{number:09d}" for number in range(count)]
        written = _write(folder, ids, width)
        opened = _openings(folder / "store")
        store, plain = EmbeddingStore.open(folder / "store"), np.load(folder / "plain.npy", mmap_mode="r")
        _touch(store, plain)
        reads = _read(store, plain, ids, at_once, calls)
    return _result(written, opened, reads, at_once)


def _write(folder: Path, ids: list[str], width: int) -> dict[str, Any]:
    """Write a store and a plain array of the same rows, shard by shard in turn; seconds and rows."""
    size = max(1, min(len(ids), SHARD_BYTES // (2 * width)))
    plain = np.lib.format.open_memmap(folder / "plain.npy", "w+", np.float16, (len(ids), width))
    ours = theirs = 0.0
    for number, block in enumerate(_blocks(len(ids), width, size)):
        start = number * size
        began = time.perf_counter()
        write_shard(folder / "store", "image", number, ids[start : start + len(block)], block)
        between = time.perf_counter()
        plain[start : start + len(block)] = block
        plain.flush()
        ours, theirs = ours + between - began, theirs + time.perf_counter() - between
    began = time.perf_counter()
    source = Data("bench", "bench", len(ids))
    finish(folder / "store", Manifest(Model("bench", "bench"), source, width, scale=100.0))
    return {
        "rows": len(ids),
        "width": width,
        "seconds": ours,
        "numpy_seconds": theirs,
        "index_seconds": time.perf_counter() - began,
    }


def _blocks(count: int, width: int, size: int) -> Iterator[NDArray[np.float16]]:
    """Unit rows, ``[N, D]`` in blocks of ``size``: each block is the first one with its columns shifted."""
    rows = np.random.default_rng(0).standard_normal((size, width), np.float32)
    first = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    for number, start in enumerate(range(0, count, size)):
        yield np.roll(first[: count - start], number, axis=1)


def _openings(path: Path) -> float:
    """Seconds to open a store and get its first row: the median."""

    def once() -> float:
        began = time.perf_counter()
        store = EmbeddingStore.open(path)
        store.take("I", np.zeros(1, np.int64))
        return time.perf_counter() - began

    return median(once() for _ in range(_OPENINGS))


def _touch(store: EmbeddingStore, plain: NDArray[Any]) -> None:
    """Bring every page of both into memory."""
    for block in (*store.blocks("I"), plain):
        block[:, 0].sum(dtype=np.float64)


def _read(store: EmbeddingStore, plain: NDArray[Any], ids: list[str], at_once: int, calls: int) -> dict[str, Verdict]:
    """Read rows by id, and by position, against numpy, each the same rows as the other; ``[B]`` places a call."""
    draw = np.random.default_rng(1)
    places = [draw.integers(0, len(ids), at_once) for _ in range(calls + 1)]
    asked = [[ids[place] for place in chosen] for chosen in places]

    def against_numpy(how: str, ours: Callable[[], object]) -> Verdict:
        turns = iter(places)
        claim = f"{at_once:,} random rows of {len(ids):,} by {how}"
        return versus(claim, ("store", ours), ("numpy", lambda: plain[next(turns)]), pairs=calls)

    by_id, by_position = iter(asked), iter(places)
    return {
        "store_read": against_numpy("id", lambda: store.rows("I", next(by_id))),
        "store_take": against_numpy("position", lambda: store.take("I", next(by_position))),
    }


def _result(written: dict[str, Any], opened: float, reads: dict[str, Verdict], at_once: int) -> Result:
    rate, plain_rate = (written["rows"] / written[key] for key in ("seconds", "numpy_seconds"))
    read, take = reads["store_read"], reads["store_take"]
    ratios = {name: verdict.ratio for name, verdict in reads.items()} | {"store_write": rate / plain_rate}
    measured = {
        "write": {**written, "rows_per_second": rate, "numpy_rows_per_second": plain_rate},
        "open_seconds": opened,
        "rows_per_second": at_once / take.our_seconds,
        "rows_per_second_by_id": at_once / read.our_seconds,
        "reads": {name: asdict(verdict) for name, verdict in reads.items()},
        "aims": {"store_take": AIM},
    }
    text = (
        f"store written: {rate:,.0f} rows/s, a plain memory map {plain_rate:,.0f}: {rate / plain_rate:.2f} times as "
        f"fast; indexed in {written['index_seconds']:.2f} s\n"
        f"store opened, first row read: {opened * 1000:.2f} ms"
    )
    lookup = (read.our_seconds - take.our_seconds) / at_once
    aim = (
        f"aim {AIM} by position: {'reached' if take.ratio >= AIM else 'missed'}, {at_once / take.our_seconds:,.0f} "
        f"rows/s; an id adds {lookup * 1e6:.2f} microseconds: {at_once / read.our_seconds:,.0f} rows/s by id"
    )
    return Result(ratios, measured, "\n".join([text, *map(str, reads.values()), aim]))
