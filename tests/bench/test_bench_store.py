"""The benchmark of the store on a tiny one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clipdistill.bench import store
from clipdistill.data.samples import key64
from clipdistill.teachers.store import EmbeddingStore


def test_everything_is_measured() -> None:
    found = store.run(count=300, width=16, at_once=8, calls=3)
    measured = json.loads(json.dumps(found.measured))
    assert set(found.ratios) == {"store_read", "store_take", "store_write"}
    assert found.ratios["store_read"] == measured["reads"]["store_read"]["ratio"]
    assert measured["write"]["rows"] == 300
    assert min(measured["open_seconds"], measured["write"]["rows_per_second"], measured["rows_per_second"]) > 0
    assert "aim 0.8 by position" in found.text
    assert found.ratios["store_take"] == measured["reads"]["store_take"]["ratio"]
    assert measured["rows_per_second"] > measured["rows_per_second_by_id"]


def test_both_ways_read_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHARD_BYTES", 2 * 16 * 64)  # shards of 64 rows: the last one is not full
    ids = [f"{number}" for number in range(150)]
    store._write(tmp_path, ids, 16)
    plain = np.load(tmp_path / "plain.npy")
    opened = EmbeddingStore.open(tmp_path / "store")
    assert len(opened.manifest.sides["image"].shards) == 3
    assert np.array_equal(opened.rows("I", ids), plain)
    assert np.allclose(np.linalg.norm(plain.astype(np.float32), axis=1), 1, atol=1e-2)
    assert len({key64(row.tobytes().hex()) for row in plain}) == 150


def test_both_ways_are_asked_for_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"{number}" for number in range(150)]
    store._write(tmp_path, ids, 16)
    compared = []

    def both(claim: str, ours: tuple, theirs: tuple, pairs: int) -> str:
        compared.extend(np.array_equal(ours[1](), theirs[1]()) for _ in range(pairs + 1))
        return claim

    monkeypatch.setattr(store, "versus", both)
    plain = np.load(tmp_path / "plain.npy", mmap_mode="r")
    found = store._read(EmbeddingStore.open(tmp_path / "store"), plain, ids, at_once=9, calls=4)
    assert compared == [True] * 10
    assert str(found["store_read"]) == "9 random rows of 150 by id"
