"""A damaged store, or one made from other data, says so: it never gives another sample's rows."""

from __future__ import annotations

import gzip
import io
import json
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipdistill.errors import ConfigError, StoreError
from clipdistill.teachers.check_store import check_store
from clipdistill.teachers.embed import embed
from clipdistill.teachers.foreign.reinforced import _read_npz, _read_tensors
from clipdistill.teachers.manifest import Data, Manifest, Model
from clipdistill.teachers.store import EmbeddingStore, finish, write_shard

PLAIN = Manifest(Model("m", ""), Data("d", "", 40), 8, 100.0)


def unfinished(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(4):
        rows = rng.standard_normal((10, 8))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        write_shard(folder, "image", number, [f"{number}-{n}" for n in range(10)], rows.astype(np.float16))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    finish(unfinished(tmp_path / "store"), PLAIN)
    return tmp_path / "store"


def change(store: Path, edit: Any) -> None:
    values = json.loads((store / "manifest.json").read_text())
    edit(values)
    (store / "manifest.json").write_text(json.dumps(values))


def test_a_shorter_shard_gives_no_other_rows(store: Path) -> None:
    path = store / "image" / "00001.npy"
    np.save(path, np.load(path)[:5])
    with pytest.raises(StoreError, match=r"00001.npy is \[5, 8\], the manifest says \[10, 8\]"):
        EmbeddingStore.open(store).rows("I", ["1-3"])
    assert len(EmbeddingStore.open(store).rows("I", ["2-3"])) == 1


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_an_unreadable_index_or_shard_is_named(store: Path, content: bytes) -> None:
    for name in ("00002.npy", "index.npy"):
        (store / "image" / name).write_bytes(content)
        with pytest.raises(StoreError, match=name):
            EmbeddingStore.open(store).rows("I", ["2-0"])


def test_an_index_of_something_else_is_refused(store: Path) -> None:
    np.save(store / "image" / "index.npy", np.zeros(40))
    with pytest.raises(StoreError, match="is not the index of these shards"):
        EmbeddingStore.open(store)


def test_a_manifest_cannot_point_outside_its_store(store: Path) -> None:
    change(store, lambda values: values["sides"]["image"]["shards"][0].update(file="../../evil.npy"))
    with pytest.raises(StoreError, match=r"key sides\.image\.shards\.0\.file"):
        EmbeddingStore.open(store)
    change(store, lambda values: values["sides"].update({"../evil": values["sides"].pop("image")}))
    with pytest.raises(StoreError, match="key sides"):
        EmbeddingStore.open(store)


def test_cut_keys_are_found_before_they_shift_all_others(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "store")
    path = folder / "image" / "00001.ids.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(StoreError, match=r"00001.ids.jsonl does not hold 10 keys.*Delete 00001.json"):
        finish(folder, PLAIN)
    path.write_bytes(b'"a"\n\xff')
    with pytest.raises(StoreError, match=r"00001\.ids\.jsonl cannot be read"):
        finish(folder, PLAIN)


def _finish(folder: str) -> None:
    finish(Path(folder), PLAIN)


def test_processes_that_finish_together_agree(tmp_path: Path) -> None:
    folder = unfinished(tmp_path / "store")
    context = get_context("forkserver")
    processes = [context.Process(target=_finish, args=(str(folder),)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert not list(folder.glob("**/.*"))
    assert len(EmbeddingStore.open(folder)) == 40


def test_nothing_compared_is_not_nothing_wrong(store: Path, small_model: str) -> None:
    report = check_store(store, small_model, "scenes:train?n=8")
    assert any("no row could be compared" in finding for finding in report.findings)


def test_a_rank_outside_of_the_world_is_refused(
    tmp_path: Path, small_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("2", "x"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ConfigError, match=f"RANK={rank} of WORLD_SIZE=2"):
            embed("scenes:train?n=8", small_model, tmp_path / "store")


def test_what_unpacks_to_far_too_much_is_refused() -> None:
    bomb = io.BytesIO()
    np.savez_compressed(bomb, image_emb=np.zeros(80 << 20, np.float32))
    with pytest.raises(StoreError, match="unpacks to more than 256 MB"):
        _read_npz(bomb.getvalue())
    with pytest.raises(StoreError, match="unpacks to more than 256 MB"):
        _read_tensors(gzip.compress(bytes(300 << 20), compresslevel=1))
