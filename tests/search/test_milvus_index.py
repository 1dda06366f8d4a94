"""An index whose rows are in Milvus against one in LanceDB: the same verbs, the same answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdistill.cli import main
from clipdistill.errors import SearchError
from clipdistill.search import build
from clipdistill.search import milvus as milvus_engine
from clipdistill.search.build import build_index
from clipdistill.search.checking import check
from clipdistill.search.filters import Filter
from clipdistill.search.index import Index
from clipdistill.search.query import Options, Query
from clipdistill.search.runtime import Runtime
from clipdistill.search.searcher import Searcher
from clipdistill.search.sync import rebuild, sync
from drawn_pictures import draw_pictures

QUERIES = ["a red circle", "two dogs", "犬", "a big green square"]
FILTERS = [None, "caption contains 'a'", "not (id = '3.png' or width < 10)", "tags has nothing"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("drawn") / "photos", "scenes:train?n=48")


@pytest.fixture(scope="module")
def model(exported: tuple[Path, Any]) -> Path:
    return exported[0]


def describe(folder: Path, change: dict[str, str | None]) -> None:
    """Give pictures other captions; None takes a picture away."""
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    told = {line["file_name"]: line["text"] for line in lines} | change
    kept = {name: text for name, text in told.items() if text is not None}
    for name in told.keys() - kept.keys():
        (folder / name).unlink()
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in kept.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def compare(one: Index, other: Index, rows: np.ndarray) -> None:
    assert one.count == other.count
    for text in FILTERS:
        where = Filter.parse(text) if text else None
        for exact in (False, True):
            pairs_of_hits = zip(one.search(rows, 10, where, exact), other.search(rows, 10, where, exact), strict=True)
            for hits, others in pairs_of_hits:
                assert [hit.id for hit in hits] == [hit.id for hit in others]
                np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in others], atol=1e-5)
                assert [hit.caption for hit in hits] == [hit.caption for hit in others]
    ids = [hit.id for hit in one.search(rows[:1], 3)[0]]
    assert [one.thumbnail(name) for name in ids] == [other.thumbnail(name) for name in ids]


@pytest.fixture
def both(model: Path, photos: Path, tmp_path: Path) -> Iterator[tuple[Index, Index, Path]]:
    """An index in LanceDB and one in Milvus of the same pictures, which may be changed."""
    mine = tmp_path / "photos"
    shutil.copytree(photos, mine)
    lance = build_index(mine, model, tmp_path / "l.index", workers=0)
    milvus = build_index(mine, model, tmp_path / "m.index", f"{tmp_path}/x.db", workers=0)
    yield lance, milvus, mine
    lance.close()
    milvus.close()


def test_both_engines_answer_alike_through_every_change(
    both: tuple[Index, Index, Path], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lance, milvus, mine = both
    rows = Runtime.open(model).texts(QUERIES)
    compare(lance, milvus, rows)
    before = milvus.search(rows, 10)

    for seed, name in enumerate(("9.png", "new.png")):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (48, 48, 3), np.uint8)).save(mine / name)
    describe(mine, {"3.png": None, "4.png": None, "new.png": "a new one", "10.png": "said anew"})
    changes = [sync(index, workers=0) for index in (lance, milvus)]
    assert changes[0] == changes[1]
    assert (changes[1].added, changes[1].changed, changes[1].retold, changes[1].removed) == (1, 1, 1, 2)
    assert milvus.search(rows, 10) == before
    fresh = milvus.current()
    assert fresh.version == milvus.version + 1
    milvus.close()
    compare(lance.current(), fresh, rows)
    assert check(fresh) == []
    assert not sync(fresh, workers=0)

    narrow = [rebuild(index.current(), model, width=12, workers=0) for index in (lance, milvus)]
    compare(narrow[0], narrow[1], rows)
    assert narrow[1].manifest.table == "pictures-2"
    assert check(narrow[1]) == []
    # Rescoring wants more candidates than hits, but no more than the engine gives.
    assert narrow[1].manifest.effort.rescore * 10 > 12
    monkeypatch.setattr(milvus_engine, "MOST", 12)
    monkeypatch.setattr(narrow[1].table, "most", 12)
    assert [len(hits) for hits in narrow[1].search(rows, 12)] == [12] * len(rows)
    for index in narrow:
        index.close()


def test_a_searcher_goes_over_to_a_new_version(both: tuple[Index, Index, Path], model: Path) -> None:
    _, milvus, mine = both
    searcher = Searcher.open(milvus.folder)
    query, options = Query(texts={"a red circle": 1.0}), Options(k=100)
    assert len(searcher.search(query, options).hits) == 48
    describe(mine, {"3.png": None})
    sync(milvus, workers=0)
    assert len(searcher.search(query, options).hits) == 48
    assert searcher.reload()
    assert len(searcher.search(query, options).hits) == 47


def test_the_verbs_take_an_engine(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(model), "--engine", str(tmp_path / "v.db")]
    assert main(["index", str(photos), *words, "--out", "v.index", "--workers", "0"]) == 0
    assert main(["index", "sync", "v.index", "--workers", "0"]) == 0
    assert main(["index", "check", "v.index"]) == 0
    assert main(["search", "v.index", "a red circle", "--json", "-k", "3"]) == 0
    assert main(["index", "export", "v.index", "--out", "rows"]) == 0
    assert main(["index", "import", "rows", *words, "--out", "taken.index"]) == 1
    assert "in Milvus already" in "".join(capsys.readouterr())
    words[-1] = str(tmp_path / "w.db")
    assert main(["index", "import", "rows", *words, "--out", "w.index"]) == 0
    assert main(["index", "check", "w.index"]) == 0
    assert Index.open("v.index").manifest.engine == str(tmp_path / "v.db")


def test_a_folder_of_the_same_name_does_not_take_another_index(model: Path, photos: Path, tmp_path: Path) -> None:
    engine = f"{tmp_path}/y.db"
    first = build_index(photos, model, tmp_path / "a" / "photos.index", engine, workers=0)
    (tmp_path / "few").mkdir()
    shutil.copy(photos / "0.png", tmp_path / "few")
    with pytest.raises(SearchError, match=r"pictures_1 is in Milvus already, and .*photos.index has not begun it"):
        build_index(tmp_path / "few", model, tmp_path / "b" / "photos.index", engine, workers=0)
    assert check(first) == []
    assert not (tmp_path / "b" / "photos.index" / "pending.json").exists()
    first.close()


def test_a_stop_before_it_is_finished_and_then_a_sync_lose_nothing(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, words = tmp_path / "photos", (model, tmp_path / "s.index", f"{tmp_path}/z.db")
    shutil.copytree(photos, mine)
    with monkeypatch.context() as patch:
        patch.setattr(build, "finish", killed)
        with pytest.raises(RuntimeError, match="killed"):
            build_index(mine, *words, workers=0)
    describe(mine, {"3.png": None})
    index = Index.open(words[1])
    assert sync(index, workers=0).removed == 1
    index.close()
    index = build_index(mine, *words, workers=0)  # complete: there is nothing to do
    assert check(index) == []
    assert index.manifest.calibration
    index.close()


def killed(*given: Any) -> None:
    raise RuntimeError("killed")
