"""Indexes of pictures that were embedded before: read from every layout, and only if the model made those rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from clipdistill.coming_from import index_filling, index_rows
from clipdistill.coming_from.index import import_index
from clipdistill.coming_from.index_rows import open_rows
from clipdistill.data.images import content_hash
from clipdistill.errors import SearchError, StoreError
from clipdistill.search.index import Index
from clipdistill.search.runtime import Runtime
from clipdistill.search.sync import sync
from clipdistill.teachers.embed import embed
from drawn_pictures import draw_pictures

COUNT = 20


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures with captions and labels, in files of their own."""
    return draw_pictures(tmp_path_factory.mktemp("drawn") / "photos", f"scenes:train?n={COUNT}")


@pytest.fixture(scope="module")
def model(exported: tuple[Path, Any]) -> Path:
    return exported[0]


@pytest.fixture(scope="module")
def rows(model: Path, photos: Path) -> np.ndarray:
    return Runtime.open(model).images([photos / f"{place}.png" for place in range(COUNT)])


def write_folder(folder: Path, rows: np.ndarray, parts: Sequence[Sequence[int]], **columns: list[Any]) -> Path:
    """A clip-retrieval folder of some parts of the rows."""
    for number, places in enumerate(parts):
        for name in ("img_emb", "metadata"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", rows[list(places)].astype(np.float16))
        table = pa.table({name: [values[place] for place in places] for name, values in columns.items()})
        parquet.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
    return folder


def paths(photos: Path) -> list[str]:
    return [str(photos / f"{place}.png") for place in range(COUNT)]


def check_whole(index: Index, ids: list[str], rows: np.ndarray, photos: Path) -> None:
    """Rows, hashes and thumbnails are those of the pictures."""
    assert index.count == COUNT
    vectors = index.vectors(ids)
    np.testing.assert_allclose(np.stack([vectors[name] for name in ids]), rows, atol=1e-3)
    for row in index.rows(ids, ["hash", "location", "width", "thumbnail"]).to_pylist():
        file = Path(row["location"])
        file = file if file.is_absolute() else Path("/") / file
        assert row["hash"] == content_hash(photos / file.name)
        with Image.open(photos / file.name) as picture:
            assert row["width"] == picture.width
        assert row["thumbnail"][:2] == b"\xff\xd8"


def test_a_clip_retrieval_folder_becomes_an_index(model: Path, photos: Path, rows: np.ndarray, tmp_path: Path) -> None:
    captions, urls = [f"caption {place}" for place in range(COUNT)], [f"https://x/{place}" for place in range(COUNT)]
    parts = [range(12), range(12, COUNT), [0, 5]]
    folder = write_folder(tmp_path / "in", rows, parts, image_path=paths(photos), caption=captions, url=urls)
    index = import_index(folder, model, tmp_path / "x.index")
    check_whole(index, paths(photos), rows, photos)
    assert index.rows([paths(photos)[3]], ["caption"])["caption"].to_pylist() == ["caption 3"]
    assert not index.manifest.unchecked
    with pytest.raises(SearchError, match="knows no source"):
        sync(index)
    with pytest.raises(SearchError, match="is an index already"):
        import_index(folder, model, tmp_path / "x.index")


def test_addresses_are_kept_where_there_are_no_files(model: Path, rows: np.ndarray, tmp_path: Path) -> None:
    urls = [f"https://x/{place}.jpg" for place in range(COUNT)]
    folder = write_folder(tmp_path / "in", rows, [range(COUNT)], key=[f"k{place}" for place in range(COUNT)], url=urls)
    with pytest.raises(SearchError, match=r"no picture is at hand.*--unchecked"):
        import_index(folder, model, tmp_path / "no.index")
    index = import_index(folder, model, tmp_path / "x.index", unchecked=True)
    assert index.manifest.unchecked
    row = index.rows(["k4"], ["location", "hash", "thumbnail", "width"]).to_pylist()[0]
    assert row == {"id": "k4", "location": "https://x/4.jpg", "hash": "", "thumbnail": b"", "width": 0}
    assert index.thumbnail("k4") is None
    keys = [f"{place:09d}" for place in range(COUNT)]  # as clip-retrieval writes what lay in shards
    folder = write_folder(tmp_path / "shards", rows, [range(COUNT)], image_path=keys, url=urls)
    index = import_index(folder, model, tmp_path / "y.index", unchecked=True)
    assert index.rows([keys[4]], ["location"])["location"].to_pylist() == ["https://x/4.jpg"]


def test_with_the_data_ids_and_captions_come_from_there_and_a_sync_goes_on(
    model: Path, photos: Path, rows: np.ndarray, tmp_path: Path
) -> None:
    mine = tmp_path / "photos"
    shutil.copytree(photos, mine)
    elsewhere = [f"/elsewhere/photos/{place}.png" for place in range(COUNT)]
    elsewhere[7] = "/elsewhere/photos/unknown.png"
    folder = write_folder(tmp_path / "in", rows, [range(COUNT)], image_path=elsewhere)
    index = import_index(folder, model, tmp_path / "x.index", data=str(mine))
    assert index.count == COUNT - 1
    said = json.loads((photos / "metadata.jsonl").read_text().splitlines()[3])
    assert index.rows(["3.png"], ["caption"])["caption"].to_pylist() == [said["text"]]
    changes = sync(index, workers=0)
    assert (changes.added, changes.changed, changes.removed, changes.kept) == (1, 0, 0, COUNT - 1)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_an_array_with_a_table_becomes_an_index(
    ending: str, model: Path, photos: Path, rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_rows, "ROWS", 8)
    np.save(tmp_path / "rows.npy", rows * 3)
    lines = [{"uid": place, "path": path, "title": "t", "tags": ["a"]} for place, path in enumerate(paths(photos))]
    if ending == "jsonl":
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    else:
        parquet.write_table(pa.Table.from_pylist(lines), tmp_path / "rows.parquet")
    index = import_index(tmp_path / "rows.npy", model, tmp_path / "x.index", width=8)
    check_whole(index, [str(place) for place in range(COUNT)], rows, photos)
    assert (index.manifest.width, index.manifest.full) == (8, rows.shape[1])
    assert index.rows(["3"], ["tags", "caption"]).to_pylist() == [{"id": "3", "tags": ["a"], "caption": "t"}]

    if ending == "jsonl":
        whole = (tmp_path / "rows.jsonl").read_bytes()
        (tmp_path / "rows.jsonl").write_bytes(whole.replace(b'"uid": 3', b'"uid": "\xff"'))
        with pytest.raises(StoreError, match=r"rows\.jsonl:4: not JSON \(.*can't decode byte 0xff"):
            import_index(tmp_path / "rows.npy", model, tmp_path / "y.index")
        (tmp_path / "rows.jsonl").write_bytes(whole)
    np.save(tmp_path / "rows.npy", rows[:-1])
    with pytest.raises(StoreError, match=r"19 rows, and .* not as many"):
        import_index(tmp_path / "rows.npy", model, tmp_path / "y.index")


def test_a_store_becomes_an_index(exported: tuple[Path, Any], photos: Path, tmp_path: Path) -> None:
    folder, torch_model = exported
    store = embed(str(photos), str(folder.parent / "model"), tmp_path / "store", sides="I", workers=0, dtype="float32")
    assert store is not None
    assert store.manifest.model.fingerprint == torch_model.fingerprint
    index = import_index(tmp_path / "store", folder, tmp_path / "x.index")
    ids = [f"{place}.png" for place in range(COUNT)]
    check_whole(index, ids, np.asarray(store.rows("I", ids), np.float32), photos)
    assert sync(index, workers=0).kept == COUNT

    embed(str(photos), str(folder.parent / "model"), tmp_path / "views", sides="I", workers=0, views=2)
    with pytest.raises(StoreError, match="2 drawn views"):
        import_index(tmp_path / "views", folder, tmp_path / "y.index")


def test_rows_of_another_model_are_refused(model: Path, photos: Path, rows: np.ndarray, tmp_path: Path) -> None:
    other = np.random.default_rng(0).normal(size=rows.shape).astype(np.float32)
    folder = write_folder(tmp_path / "in", other, [range(COUNT)], image_path=paths(photos))
    with pytest.raises(SearchError, match=r"not rows of .*: 16 pictures were embedded again.*at least 0.999"):
        import_index(folder, model, tmp_path / "x.index")
    late = np.where(np.arange(COUNT)[:, None] < 12, rows, other)
    folder = write_folder(tmp_path / "late", late, [range(12), range(12, COUNT)], image_path=paths(photos))
    with pytest.raises(SearchError, match="1 pictures were embedded again"):
        import_index(folder, model, tmp_path / "y.index")
    with pytest.raises(SearchError, match="is not complete"):
        Index.open(tmp_path / "y.index")
    folder = write_folder(tmp_path / "in2", rows, [range(12), range(12, COUNT)], image_path=paths(photos))
    assert import_index(folder, model, tmp_path / "y.index").count == COUNT  # over what was left of the failed one


def test_a_recorded_fingerprint_speaks_for_the_rows(model: Path, rows: np.ndarray, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in", rows, [range(COUNT)], key=[f"k{place}" for place in range(COUNT)])
    record = folder / "clipdistill.json"
    record.write_text(json.dumps({"fingerprint": "of another"}))
    with pytest.raises(SearchError, match="no model is recorded with them that is this one"):
        import_index(folder, model, tmp_path / "x.index")
    record.write_text(json.dumps({"fingerprint": Runtime.open(model).fingerprint}))
    assert import_index(folder, model, tmp_path / "x.index").count == COUNT


def test_rows_that_cannot_be_are_told(model: Path, rows: np.ndarray, tmp_path: Path) -> None:
    keys = [f"k{place}" for place in range(COUNT)]
    lost = np.where(np.arange(COUNT)[:, None] == 3, 0, rows)
    wide = write_folder(tmp_path / "wide", rows[:, :5], [range(COUNT)], key=keys)
    zero = write_folder(tmp_path / "zero", lost, [range(COUNT)], key=keys)
    nameless = write_folder(tmp_path / "ids", rows, [range(COUNT)], similarity=keys)
    with pytest.raises(SearchError, match=rf"rows are 5 wide, those of .* {rows.shape[1]}"):
        import_index(wide, model, tmp_path / "x.index", unchecked=True)
    with pytest.raises(SearchError, match="the row of 'k3' is zero"):
        import_index(zero, model, tmp_path / "y.index", unchecked=True)
    with pytest.raises(StoreError, match="no column of ids"):
        import_index(nameless, model, tmp_path / "z.index", unchecked=True)
    with pytest.raises(StoreError, match="no known layout"):
        import_index(tmp_path, model, tmp_path / "z.index")


def test_a_folder_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing holds more than a block: the rows stay on disk until one is asked for."""
    monkeypatch.setattr("clipdistill.teachers.foreign.clip_retrieval.ROWS", 100)
    rows = np.zeros((1000, 4), np.float32)
    folder = write_folder(tmp_path / "in", rows, [range(1000)], key=[str(place) for place in range(1000)])
    embedded = open_rows(folder)
    assert isinstance(embedded.blocks, Iterator)
    sizes = [len(block.ids) for block in embedded.blocks]
    assert sizes == [100] * 10
    first = next(open_rows(folder).blocks)
    assert isinstance(first.rows, np.memmap)


def test_importing_needs_no_torch() -> None:
    program = (
        "import sys\n"
        f"import {import_index.__module__}, {index_filling.__name__}\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
