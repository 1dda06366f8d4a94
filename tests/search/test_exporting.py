"""An index in clip-retrieval's layout, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from clipdistill.coming_from.index import import_index
from clipdistill.errors import SearchError
from clipdistill.search import exporting
from clipdistill.search.build import build_index
from clipdistill.search.exporting import export_index
from clipdistill.search.index import Index
from drawn_pictures import draw_pictures

COLUMNS = ["hash", "location", "caption", "tags", "width", "height", "thumbnail"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pictures with captions, in files of their own."""
    return draw_pictures(tmp_path_factory.mktemp("drawn") / "photos", "scenes:train?n=30")


@pytest.fixture(scope="module")
def index(exported: tuple[Path, Any], photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build_index(photos, exported[0], tmp_path_factory.mktemp("made") / "photos.index", workers=0)


def test_an_index_is_written_as_clip_retrieval_does(
    index: Index, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "ROWS", 8)
    assert export_index(index, tmp_path / "out") == 30
    arrays = sorted(path.name for path in (tmp_path / "out" / "img_emb").iterdir())
    assert arrays == ["img_emb_0.npy", "img_emb_1.npy", "img_emb_2.npy", "img_emb_3.npy"]
    seen = {}
    for number in range(4):
        rows = np.load(tmp_path / "out" / "img_emb" / f"img_emb_{number}.npy")
        table = parquet.read_table(tmp_path / "out" / "metadata" / f"metadata_{number}.parquet")
        assert rows.dtype == np.float16
        assert len(rows) == table.num_rows == (8, 8, 8, 6)[number]
        seen.update({row["id"]: (row, vector) for row, vector in zip(table.to_pylist(), rows, strict=True)})
    true = index.vectors(list(seen))
    lines = map(json.loads, (photos / "metadata.jsonl").read_text().splitlines())
    said = {line["file_name"]: line["text"] for line in lines}
    assert len(seen) == 30
    for name, (row, vector) in seen.items():
        np.testing.assert_allclose(vector.astype(np.float32), true[name], atol=1e-3)
        assert row["image_path"] == str(photos / name)
        assert (row["caption"], row["url"]) == (said[name], "")


def test_what_is_imported_again_is_the_same_index(index: Index, exported: tuple[Path, Any], tmp_path: Path) -> None:
    export_index(index, tmp_path / "out")
    back = import_index(tmp_path / "out", exported[0], tmp_path / "back.index")
    assert back.count == 30
    assert back.manifest.model.fingerprint == index.manifest.model.fingerprint
    ids = [f"{place}.png" for place in range(30)]
    old, new = (one.rows(ids, COLUMNS).sort_by("id").to_pylist() for one in (index, back))
    for one, other in zip(old, new, strict=True):
        assert Path(other.pop("location")).read_bytes() == Path("/", one.pop("location")).read_bytes()
        assert one == other
    queries = np.stack(list(index.vectors(ids).values()))
    for hits, again in zip(index.search(queries, 5), back.search(queries, 5), strict=True):
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in again], atol=2e-3)


def test_nothing_is_overwritten(index: Index, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(SearchError, match="is there already"):
        export_index(index, tmp_path / "out")


def test_an_export_that_fails_leaves_nothing(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, array: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(exporting.np, "save", full)
    with pytest.raises(OSError, match="no space"):
        export_index(index, tmp_path / "out")
    assert not list(tmp_path.iterdir())
