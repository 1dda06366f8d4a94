"""clip-retrieval's folders: read as they are, refused where they are damaged, and written so that they come back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_rows import close, naive_unit, random_rows, stored, unit_rows
from PIL import Image

from clipdistill.cli import main
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, DataError, ModelError, StoreError
from clipdistill.teachers.check_store import check_store
from clipdistill.teachers.embed import embed
from clipdistill.teachers.foreign import export as export_module
from clipdistill.teachers.foreign import filling, import_store
from clipdistill.teachers.foreign.export import export_store
from clipdistill.teachers.store import EmbeddingStore

DATA = "scenes:train?n=30&captions=2"


def write_partition(folder: Path, number: str, columns: dict[str, list[Any]], **sides: Any) -> None:
    """Write ``image`` and ``text`` rows with their table, named as clip-retrieval's writer names them."""
    for side, rows in sides.items():
        name = {"image": "img_emb", "text": "text_emb"}[side]
        (folder / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / name / f"{name}_{number}.npy", rows)
    (folder / "metadata").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")


def table(start: int, count: int) -> dict[str, list[Any]]:
    numbers = range(start, start + count)
    paths, captions = [f"/data/photos/{n}.jpg" for n in numbers], [f"caption {n}\n" for n in numbers]
    return {"image_path": paths, "caption": captions, "key": [f"{n:05d}" for n in numbers]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two partitions of five and four rows; the fourth caption of the second is the first of all again."""
    path, second = tmp_path / "embeddings", table(5, 4)
    second["caption"][3] = "caption 0\n"
    write_partition(path, "0", table(0, 5), image=unit_rows(5, seed=1), text=unit_rows(5, seed=2))
    write_partition(path, "1", second, image=unit_rows(4, seed=3), text=unit_rows(4, seed=4))
    return path


def test_rows_stay_as_they_are_to_the_bit(folder: Path, tmp_path: Path) -> None:
    store = import_store(folder, tmp_path / "store", scale=50.0)
    rows, words = stored(store, "I"), stored(store, "T")
    images = np.concatenate([unit_rows(5, seed=1), unit_rows(4, seed=3)])
    assert list(rows) == [f"/data/photos/{n}.jpg" for n in range(9)]
    assert all(np.array_equal(rows[f"/data/photos/{n}.jpg"], images[n]) for n in range(9))
    assert list(words) == [f"caption {n}" for n in range(8)]
    assert np.array_equal(words["caption 7"], unit_rows(4, seed=4)[2])
    assert np.array_equal(store.rows("T", ["caption 0"])[0], unit_rows(5, seed=2)[0])
    assert (store.scale, store.width, store.sides, store.views) == (50.0, 8, "IT", None)
    assert check_store(tmp_path / "store").findings == []


def test_rows_of_any_length_and_type_become_unit_rows(tmp_path: Path) -> None:
    for dtype in ("float16", "float32", "float64"):
        rows = random_rows(6, dtype=dtype) * 30
        write_partition(tmp_path / dtype, "0", table(0, 6), image=rows)
        store = import_store(tmp_path / dtype, tmp_path / f"store-{dtype}")
        assert close(np.stack(list(stored(store, "I").values())), np.stack([naive_unit(row) for row in rows]))
        assert store.manifest.dtype == "float16"
        assert store.sides == "I"


def test_rows_that_are_nearly_of_unit_length_are_not_rounded_again(tmp_path: Path) -> None:
    nearly, far = ((unit_rows(50) * factor).astype(np.float16) for factor in (1.0004, 1.01))
    for name, rows in (("nearly", nearly), ("far", far)):
        write_partition(tmp_path / name, "0", table(0, 50), image=rows)
    store = import_store(tmp_path / "nearly", tmp_path / "store")
    assert np.array_equal(next(store.blocks("I")), nearly)
    lengths = np.linalg.norm(next(import_store(tmp_path / "far", tmp_path / "other").blocks("I")).astype(float), axis=1)
    assert np.abs(lengths - 1).max() < 6e-4


def test_many_shards_and_blocks_hold_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = import_store(folder, tmp_path / "whole")
    monkeypatch.setattr(filling, "SHARD_BYTES", 3 * 8 * 2)
    monkeypatch.setattr("clipdistill.teachers.foreign.clip_retrieval.ROWS", 2)
    parts = import_store(folder, tmp_path / "parts")
    assert [shard.samples for shard in parts.manifest.sides["image"].shards] == [4, 3, 2]
    for side in "IT":
        one, other = stored(whole, side), stored(parts, side)
        assert list(one) == list(other)
        assert all(np.array_equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("columns", "expected"), [(["key", "url"], "key-0"), (["url"], "url-0")])
def test_the_first_known_column_is_the_id(tmp_path: Path, columns: list[str], expected: str) -> None:
    values = {name: [f"{name}-{n}" for n in range(3)] for name in [*columns, "similarity"]}
    write_partition(tmp_path / "from", "0", values, image=unit_rows(3))
    assert next(import_store(tmp_path / "from", tmp_path / "store").keys("I")) == expected
    chosen = import_store(tmp_path / "from", tmp_path / "chosen", id_column="similarity")
    assert list(chosen.keys("I")) == ["similarity-0", "similarity-1", "similarity-2"]


def test_texts_without_captions_are_found_by_id(tmp_path: Path) -> None:
    write_partition(tmp_path / "from", "0", {"key": [7, 8, 9]}, image=unit_rows(3), text=unit_rows(3, seed=5))
    store = import_store(tmp_path / "from", tmp_path / "store")
    assert store.manifest.sides["text"].by == "id"
    assert np.array_equal(store.rows("T", ["9", "7"]), unit_rows(3, seed=5)[[2, 0]])


def test_captions_that_say_nothing_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {"image_path": ["a", "b", "c"], "caption": ["one", " \n", None]}
    write_partition(tmp_path / "from", "0", columns, image=unit_rows(3), text=unit_rows(3))
    store = import_store(tmp_path / "from", tmp_path / "store")
    assert (list(store.keys("T")), len(store)) == (["one"], 3)
    assert "2 text rows without a caption" in capsys.readouterr().err


def test_ids_become_those_of_the_data(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in (3, 6, 11):
        Image.new("RGB", (8, 8)).save(photos / f"{number}.jpg")
    store = import_store(folder, tmp_path / "store", data=photos)
    assert list(store.keys("I")) == ["3.jpg", "6.jpg"]
    assert np.array_equal(store.rows("I", ["6.jpg"])[0], unit_rows(4, seed=3)[1])
    assert store.manifest.source.fingerprint == pairs(photos).fingerprint
    assert "7 image rows that are not in" in capsys.readouterr().err


def _break_table(folder: Path) -> None:
    pq.write_table(pa.table(table(5, 3)), folder / "metadata" / "metadata_1.parquet")


def _break_row(value: float) -> Callable[[Path], None]:
    def breaking(folder: Path) -> None:
        rows = unit_rows(4, seed=3)
        rows[2] = value
        np.save(folder / "img_emb" / "img_emb_1.npy", rows)

    return breaking


def _break_width(folder: Path) -> None:
    np.save(folder / "img_emb" / "img_emb_1.npy", unit_rows(4, width=6))


def _break_ids(folder: Path) -> None:
    columns = table(5, 4)
    columns["image_path"][2] = "/data/photos/1.jpg"
    pq.write_table(pa.table(columns), folder / "metadata" / "metadata_1.parquet")


def _break_pickle(folder: Path) -> None:
    np.save(folder / "img_emb" / "img_emb_1.npy", np.array([{}, {}, {}, {}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_break_table, r"img_emb_1\.npy has 4 rows, .*metadata_1\.parquet has 3"),
        (_break_row(np.nan), r"img_emb_1\.npy, row 2: the row of '/data/photos/7\.jpg' is not finite"),
        (_break_row(0.0), r"img_emb_1\.npy, row 2: the row of '/data/photos/7\.jpg' is zero"),
        (_break_width, r"img_emb_1\.npy, row 0: rows are 6 wide, those before 8"),
        (
            _break_ids,
            r"img_emb_1\.npy, row 2: the id '/data/photos/1\.jpg' is there before, at .*img_emb_0\.npy, row 1",
        ),
        (_break_pickle, r"img_emb_1\.npy cannot be read as an array of numbers"),
        (lambda folder: (folder / "metadata" / "metadata_1.parquet").unlink(), r"metadata_1\.parquet is missing"),
        (lambda folder: (folder / "text_emb" / "text_emb_1.npy").unlink(), "partition 1 has image rows only"),
        (lambda folder: (folder / "metadata" / "metadata_1.parquet").write_text("x"), "not a parquet file"),
    ],
)
def test_damage_is_named_and_nothing_is_left(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(StoreError, match=message):
        import_store(folder, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings"]


def test_arguments_that_mean_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no column 'image_pth'. Did you mean 'image_path'\?"):
        import_store(folder, tmp_path / "store", id_column="image_pth")
    with pytest.raises(StoreError, match="rows are 8 wide, and have no columns 4:12"):
        import_store(folder, tmp_path / "store", columns=(4, 12))
    with pytest.raises(ConfigError, match="the scale is -1"):
        import_store(folder, tmp_path / "store", scale=-1)
    with pytest.raises(StoreError, match=r"of no known layout\. Known: a clip-retrieval folder"):
        import_store(tmp_path, tmp_path / "store")
    with pytest.raises(StoreError, match="is there already"):
        import_store(folder, folder)
    with pytest.raises(ModelError):
        import_store(folder, tmp_path / "store", model=str(tmp_path / "nothing"))


def test_a_model_gives_its_scale_and_must_have_the_width(folder: Path, tmp_path: Path, small_model: str) -> None:
    with pytest.raises(StoreError, match=r"rows are 8 wide, those of .* 16\. Name the model"):
        import_store(folder, tmp_path / "store", model=small_model)
    write_partition(tmp_path / "wide", "0", table(0, 3), image=unit_rows(3, width=16))
    store = import_store(tmp_path / "wide", tmp_path / "store", model=small_model)
    from clipdistill.models.loading import load

    encoder = load(small_model)
    assert (store.scale, store.manifest.model.fingerprint) == (encoder.scale, encoder.fingerprint)


@pytest.fixture(scope="module")
def embedded(small_model: str, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    store = embed(DATA, small_model, tmp_path_factory.mktemp("stores") / "store", workers=0, shard_size=16)
    assert store is not None
    return store


def test_a_store_comes_back_from_clip_retrieval(
    embedded: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "SAMPLES", 12)
    assert main(["store", "export", str(embedded.path), "--out", str(tmp_path / "out"), "--to", "clip-retrieval"]) == 0
    assert main(["store", "import", str(tmp_path / "out"), "--out", str(tmp_path / "back"), "--scale", "20"]) == 0
    back = EmbeddingStore.open(tmp_path / "back")
    assert back.scale == 20.0
    for side in "IT":
        one, other = stored(embedded, side), stored(back, side)
        assert list(one) == list(other)
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_captions_come_back_with_the_spaces_that_the_data_have(small_model: str, tmp_path: Path) -> None:
    captions, photos = [" a dog", "a dog ", "a dog", "a cat\n"], tmp_path / "photos"
    photos.mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(photos / f"{number}.jpg")
    rows = [{"file_name": f"{number}.jpg", "text": caption} for number, caption in enumerate(captions)]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = embed(str(photos), small_model, tmp_path / "store", workers=0)
    assert made is not None
    export_store(made, tmp_path / "out")
    back = import_store(tmp_path / "out", tmp_path / "back")
    assert list(back.keys("T")) == list(made.keys("T")) == captions
    assert np.array_equal(back.rows("T", captions), made.rows("T", captions))


def test_an_exported_folder_is_aligned_row_by_row(embedded: EmbeddingStore, tmp_path: Path) -> None:
    export_store(embedded, tmp_path / "out")
    assert [path.name for path in sorted((tmp_path / "out" / "img_emb").iterdir())] == [
        "img_emb_0.npy",
        "img_emb_1.npy",
    ]
    source = pairs(DATA)
    expected = [(source[at].id, caption) for at in range(len(source)) for caption in source[at].captions]
    found = []
    for number in range(2):
        images, words = (np.load(tmp_path / f"out/{name}/{name}_{number}.npy") for name in ("img_emb", "text_emb"))
        rows = pq.read_table(tmp_path / "out" / "metadata" / f"metadata_{number}.parquet").to_pylist()
        assert images.dtype == np.float16
        for row, image, text in zip(rows, images, words, strict=True):
            found.append((row["image_path"], row["caption"]))
            assert np.array_equal(image, embedded.rows("I", [row["image_path"]])[0])
            assert np.array_equal(text, embedded.rows("T", [row["caption"]])[0])
    assert found == expected


def test_one_side_is_exported_without_the_data(embedded: EmbeddingStore, tmp_path: Path) -> None:
    shutil.copytree(embedded.path, tmp_path / "moved")
    manifest = tmp_path / "moved" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(DATA, "photos/gone"))
    with pytest.raises(DataError, match=r"cannot be opened: .* --sides image"):
        export_store(tmp_path / "moved", tmp_path / "out")
    with pytest.raises(DataError, match="has no picture"):
        export_store(tmp_path / "moved", tmp_path / "out", data="scenes:validation?n=4")
    assert not (tmp_path / "out").exists()
    assert main(["store", "export", str(tmp_path / "moved"), "--out", str(tmp_path / "out"), "--sides", "image"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["img_emb", "metadata"]
    export_store(tmp_path / "moved", tmp_path / "words", sides="T")
    back = import_store(tmp_path / "words", tmp_path / "back")
    assert stored(back, "T").keys() == stored(embedded, "T").keys()


def test_export_refuses_what_it_cannot_write(embedded: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown layout 'clip_retrieval'\. Did you mean 'clip-retrieval'"):
        export_store(embedded, tmp_path / "out", "clip_retrieval")
    with pytest.raises(StoreError, match="is there already"):
        export_store(embedded, embedded.path)
