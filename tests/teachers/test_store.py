"""Stores: what is written is what is read, in any order, and nothing half written is taken for whole."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipdistill.data.samples import key64
from clipdistill.data.views import Augmentation, Drawn, View
from clipdistill.errors import DataError, StoreError
from clipdistill.teachers import store as store_module
from clipdistill.teachers.manifest import Data, Manifest, Model, Side, ViewPlan, read_records
from clipdistill.teachers.shards import keys64
from clipdistill.teachers.store import EmbeddingStore, finish, write_shard

WIDTH = 8
PLAIN = Manifest(Model("m", "f1"), Data("d", "f2", 10), WIDTH, 100.0)


def unit(count: int, seed: int = 0, dtype: str = "float16") -> NDArray[Any]:
    rows = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


def made(folder: Path, sizes: tuple[int, ...] = (4, 3, 5), views: int = 0, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Write shards of pictures and captions; returns each id's rows ``[V, D]`` and each caption's ``[1, D]``."""
    rows: dict[str, NDArray[Any]] = {}
    per_sample, start = max(views, 1), 0
    for number, size in enumerate(sizes):
        ids = [f"图/{start + at}.jpg" for at in range(size)]
        block = unit(size * per_sample, seed + number)
        write_shard(folder, "image", number, ids, block)
        rows |= {name: block[at * per_sample : (at + 1) * per_sample] for at, name in enumerate(ids)}
        told = [f"caption {start + at}" for at in range(size)]
        words = unit(size, 100 + seed + number)
        write_shard(folder, "text", number, told, words)
        rows |= {name: words[at : at + 1] for at, name in enumerate(told)}
        start += size
    plan = ViewPlan(views, 3, Augmentation(crop=(0.5, 1.0))) if views else ViewPlan()
    finish(folder, replace(PLAIN, views=plan))
    return rows


@pytest.mark.parametrize("views", [0, 3])
def test_rows_come_back_by_key_in_any_order(tmp_path: Path, views: int) -> None:
    rows = made(tmp_path, views=views)
    store = EmbeddingStore.open(tmp_path)
    assert (len(store), store.sides, store.width, store.scale) == (12, "IT", WIDTH, 100.0)
    ids, captions = list(store.keys("I")), list(store.keys("T"))
    assert ids == [f"图/{at}.jpg" for at in range(12)]
    drawn = np.random.default_rng(1).integers(0, 12, 50).tolist()
    for view in range(5):
        wanted = np.stack([rows[ids[at]][view % max(views, 1)] for at in drawn])
        assert np.array_equal(store.rows("I", [ids[at] for at in drawn], view), wanted)
        told = np.stack([rows[captions[at]][0] for at in drawn])
        assert np.array_equal(store.rows("T", [captions[at] for at in drawn], view), told)
        blocks = list(store.blocks("I", view, size=2))
        assert max(map(len, blocks)) == 2
        assert np.array_equal(np.concatenate(blocks), store.rows("I", ids, view))
    assert store.rows("I", []).shape == (0, WIDTH)
    for outside in (-1, 12):
        with pytest.raises(IndexError, match="outside of the store"):
            store.take("I", np.array([3, outside]))


def test_the_files_are_those_of_the_documented_format(tmp_path: Path) -> None:
    """Read with json and numpy alone."""
    rows = made(tmp_path, views=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("clipdistill store", 1)
    position = 0
    for shard in manifest["sides"]["image"]["shards"]:
        array = np.load(tmp_path / "image" / shard["file"])
        assert array.dtype == np.float16
        lines = (tmp_path / "image" / shard["file"].replace(".npy", ".ids.jsonl")).read_text().splitlines()
        index = np.load(tmp_path / "image" / "index.npy")
        for sample, line in enumerate(lines):
            assert np.array_equal(array[2 * sample : 2 * sample + 2], rows[json.loads(line)])
            assert index["sample"][index["key"] == key64(json.loads(line))].tolist() == [position]
            position += 1
    assert np.all(np.diff(index["key"].astype(np.int64)) > 0)


def test_opening_builds_nothing_and_reads_no_row(tmp_path: Path) -> None:
    made(tmp_path)
    for path in tmp_path.glob("*/0*"):
        path.rename(path.with_name(f"away-{path.name}"))
    store = EmbeddingStore.open(tmp_path)
    assert all(isinstance(index, np.memmap) for index in store._index.values())
    assert store.find("I", ["图/3.jpg", "no"]).tolist() == [3, -1]
    with pytest.raises(StoreError, match=r"00000.npy cannot be read"):
        store.rows("I", ["图/3.jpg"])


def test_keys_hash_as_everywhere_else() -> None:
    keys = ["a", "", "猫/cat.jpg", "\udc80", "x" * 300]
    assert keys64(keys).tolist() == [key64(key) for key in keys]
    assert keys64([]).shape == (0,)


def test_keys_that_are_not_there_are_counted_and_named(tmp_path: Path) -> None:
    made(tmp_path)
    store = EmbeddingStore.open(tmp_path)
    asked = ["图/0.jpg", *(f"gone{at}" for at in range(7))]
    assert store.missing("I", asked) == asked[1:]
    with pytest.raises(DataError, match=r"no row for 7 of the ids asked for: 'gone0', .*'gone4', \.\.\.") as error:
        store.rows("I", asked)
    assert "gone5" not in str(error.value)
    with pytest.raises(StoreError, match="1 of the captions"):
        store.rows("T", ["a cat"])


def test_a_side_that_is_not_there_is_an_error_with_the_cure(tmp_path: Path) -> None:
    write_shard(tmp_path, "image", 0, ["a"], unit(1))
    store = finish(tmp_path, PLAIN)
    assert store.sides == "I"
    with pytest.raises(StoreError, match=r"holds image embeddings only, and text .*--sides image,text"):
        store.rows("T", ["x"])


def test_an_id_twice_is_refused_and_of_equal_captions_the_first_counts(tmp_path: Path) -> None:
    rows = unit(2)
    for number in (0, 1):
        write_shard(tmp_path / "a", "image", number, ["same.jpg"], rows[number : number + 1])
        write_shard(tmp_path / "b", "text", number, ["same"], rows[number : number + 1])
    with pytest.raises(StoreError, match=r"'same.jpg' and 'same.jpg' \(samples 0 and 1\)"):
        finish(tmp_path / "a", PLAIN)
    assert not (tmp_path / "a" / "manifest.json").exists()
    store = finish(tmp_path / "b", PLAIN)
    assert np.array_equal(store.rows("T", ["same"]), rows[:1])
    assert store.manifest.sides["text"].samples == 2
    (tmp_path / "b" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="have one key"):
        finish(tmp_path / "b", replace(PLAIN, sides={"text": Side(by="id")}))


def test_a_store_is_finished_a_shard_at_a_time(tmp_path: Path) -> None:
    """What is kept of a caption is its hash: their texts may be larger than memory."""
    count, size = 8, 400
    for number in range(count):
        keys = [f"{number} {row} " + "x" * 5000 for row in range(size)]
        write_shard(tmp_path, "text", number, keys, unit(size))
    tracemalloc.start()
    finish(tmp_path, PLAIN)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 * size * 5000 < count * size * 5000
    assert np.array_equal(EmbeddingStore.open(tmp_path).rows("T", ["7 3 " + "x" * 5000]), unit(size)[3:4])


def test_what_is_no_finished_store_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a store of embeddings"):
        EmbeddingStore.open(tmp_path)
    (tmp_path / "embed.json").write_text(json.dumps({"sides": "IT", "source": {"samples": 10}, "shard_size": 4}))
    write_shard(tmp_path, "image", 0, list("abcd"), unit(4))
    with pytest.raises(DataError, match="unfinished: 1 of 6 shards are done"):
        EmbeddingStore.open(tmp_path)
    made(tmp_path / "whole")
    path = tmp_path / "whole" / "manifest.json"
    text = path.read_text()
    for change, message in (
        ({"version": 2}, "version 2, and this program reads version 1"),
        ({"width": "wide"}, r"manifest.json: key width: .*\(found wide\)"),
        ({"format": "x"}, "is not the manifest of a store"),
    ):
        path.write_text(json.dumps({**json.loads(text), **change}))
        with pytest.raises(StoreError, match=message):
            EmbeddingStore.open(tmp_path / "whole")
    path.write_text(text[:-20])
    with pytest.raises(StoreError, match="is not JSON"):
        EmbeddingStore.open(tmp_path / "whole")


def test_finishing_needs_every_shard_and_rows_that_fit(tmp_path: Path) -> None:
    write_shard(tmp_path, "image", 1, ["a"], unit(1))
    with pytest.raises(StoreError, match="shard 00000 is missing"):
        finish(tmp_path, PLAIN)
    write_shard(tmp_path, "image", 0, ["b"], unit(1))
    with pytest.raises(StoreError, match=r"00000.npy is float16 \[1, 8\], expected float16 \[1, 9\]"):
        finish(tmp_path, replace(PLAIN, width=9))
    with pytest.raises(StoreError, match=r"expected float16 \[2, 8\]"):
        finish(tmp_path, replace(PLAIN, views=ViewPlan(2)))
    with pytest.raises(StoreError, match="expected float32"):
        finish(tmp_path, replace(PLAIN, dtype="float32"))
    with pytest.raises(StoreError, match="nothing to store"):
        finish(tmp_path / "empty", PLAIN)


@pytest.mark.parametrize(
    ("keys", "rows", "message"),
    [
        (["a", "b"], unit(3), "3 rows for 2 ids"),
        (["a"], unit(1).astype(np.float64), "float16 or float32"),
        (["a"], unit(1)[0], "float16 or float32"),
        (["a", "b"], np.array([[1.0], [np.nan]], np.float32), "the row of 'b' is not finite"),
    ],
)
def test_a_shard_that_makes_no_sense_is_not_written(
    tmp_path: Path, keys: list[str], rows: NDArray[Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        write_shard(tmp_path, "image", 0, keys, rows)
    assert not list(tmp_path.rglob("*.npy"))


def test_the_fingerprint_follows_every_row(tmp_path: Path) -> None:
    made(tmp_path / "a")
    made(tmp_path / "b")
    made(tmp_path / "c", seed=50)
    marks = [EmbeddingStore.open(tmp_path / name).fingerprint for name in "abc"]
    assert marks[0] == marks[1] != marks[2]


def test_few_files_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made(tmp_path, sizes=(1,) * 9)
    monkeypatch.setattr(store_module, "MAX_OPEN", 2)
    store = EmbeddingStore.open(tmp_path)
    ids = list(store.keys("I"))[::-1]
    assert np.array_equal(store.rows("I", ids), np.concatenate([rows[name] for name in ids]))
    assert len(store._open) == 2


def test_a_shard_without_rows_is_no_obstacle(tmp_path: Path) -> None:
    write_shard(tmp_path, "image", 0, [], np.empty((0, WIDTH), np.float16), [("a.jpg", "empty"), ("\udc80", "gone")])
    write_shard(tmp_path, "image", 1, ["b.jpg"], unit(1))
    store = finish(tmp_path, PLAIN)
    assert store.manifest.skipped == 2
    assert read_records(tmp_path, "image")[0].skipped == (("a.jpg", "empty"), ("\udc80", "gone"))
    assert np.array_equal(store.rows("I", ["b.jpg"]), unit(1))
    assert [len(block) for block in store.blocks("I")] == [1]


def _rows_elsewhere(store: EmbeddingStore) -> NDArray[Any]:
    return store.rows("I", ["图/7.jpg", "图/1.jpg"])


def test_a_store_goes_to_another_process_without_its_rows(tmp_path: Path) -> None:
    made(tmp_path)
    store = EmbeddingStore.open(tmp_path)
    here = _rows_elsewhere(store)
    assert len(pickle.dumps(store)) < 4000
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert np.array_equal(pool.apply(_rows_elsewhere, (store,)), here)


def _write_shards(folder: Path, seed: int, start: Any) -> None:
    start.wait()
    for number in range(20):
        write_shard(folder, "image", number, [f"{number}-{at}" for at in range(50)], unit(50, seed * 100 + number))


def test_processes_on_the_same_shards_corrupt_nothing(tmp_path: Path) -> None:
    """Each would write other bytes: rows and record of a shard must be of one of them."""
    context = multiprocessing.get_context("forkserver")
    start = context.Barrier(3)
    others = [context.Process(target=_write_shards, args=(tmp_path, seed, start)) for seed in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join()
        assert process.exitcode == 0
    store = finish(tmp_path, PLAIN)
    for number in range(20):
        found = store.rows("I", [f"{number}-{at}" for at in range(50)])
        assert any(np.array_equal(found, unit(50, seed * 100 + number)) for seed in range(3))
    from clipdistill.teachers.check_store import check_store

    assert check_store(tmp_path).findings == []
    assert not list(tmp_path.glob("**/.*"))


def test_views_are_what_the_manifest_says(tmp_path: Path) -> None:
    made(tmp_path / "drawn", views=2)
    assert EmbeddingStore.open(tmp_path / "drawn").views == Drawn(Augmentation(crop=(0.5, 1.0)), 3, 2)
    made(tmp_path / "whole")
    assert EmbeddingStore.open(tmp_path / "whole").views is None
    numbers = np.arange(36, dtype=np.float64).reshape(4, 9)
    write_shard(tmp_path / "told", "image", 0, ["x"], unit(2), views=numbers[:2])
    write_shard(tmp_path / "told", "image", 1, ["y"], unit(2), views=numbers[2:])
    views = finish(tmp_path / "told", replace(PLAIN, views=ViewPlan(2, explicit=True))).views
    assert views is not None
    assert views.view("y", 5, (1, 1)) == View((27, 28, 29, 30), True, 32, (33, 34, 35))
    assert views.view("x", 0, (1, 1)) == View((0, 1, 2, 3), True, 5, (6, 7, 8))
    with pytest.raises(StoreError, match="no row for 1 of the ids"):
        views.view("z", 0, (1, 1))
    write_shard(tmp_path / "unknown", "image", 0, ["x"], unit(1))
    with pytest.raises(StoreError, match=r"does not say which views .*\?views=any"):
        _ = finish(tmp_path / "unknown", replace(PLAIN, views=ViewPlan(1))).views
