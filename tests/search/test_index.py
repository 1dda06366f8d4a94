"""An index of pictures: what it keeps of them, and what a search finds."""

from __future__ import annotations

import io
import json
import shutil
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from clipdistill.data.convert import convert
from clipdistill.data.images import content_hash
from clipdistill.data.sources.anchoring import anchored
from clipdistill.errors import SearchError
from clipdistill.search import contents
from clipdistill.search.build import build_index
from clipdistill.search.filters import Filter
from clipdistill.search.index import Index
from clipdistill.search.lance import LanceTable
from clipdistill.search.manifest import Manifest
from clipdistill.search.origin import location_of
from clipdistill.search.runtime import Runtime
from clipdistill.search.sync import sync
from clipdistill.serve.search_api import web_location

COLOURS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, exported: tuple[Path, Any]) -> Path:
    """A folder with a model, ten pictures, one of which lies on its side, and an index of them."""
    desk = tmp_path_factory.mktemp("desk")
    shutil.copytree(exported[0], desk / "model")
    draw(desk / "photos", 10)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        build_index("photos", "model", "photos.index", workers=0)
    return desk


def draw(folder: Path, count: int, first: int = 0) -> None:
    """Noise in a few sizes, the first one 300 x 280 with a tag that turns it; each with a caption and a label."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(first, first + count):
        noise = np.random.default_rng(number).integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
        image, turned = Image.fromarray(noise), Image.Exif()
        turned[0x0112] = 6 if number == 0 else 1
        image = image.resize((300, 280)) if number == 0 else image
        image.save(folder / f"{number}.jpg", exif=turned)
        colour = COLOURS[number % 3]
        lines.append(json.dumps({"file_name": f"{number}.jpg", "text": f"a {colour} thing", "label": colour}) + "\n")
    with (folder / "metadata.jsonl").open("a") as file:
        file.writelines(lines)


def rows_of(desk: Path) -> tuple[list[str], np.ndarray]:
    """Ids, and rows made anew."""
    files = sorted((desk / "photos").glob("*.jpg"))
    return [file.name for file in files], Runtime.open(desk / "model").images(files)


def test_it_holds_row_hash_words_size_and_thumbnail_of_each_picture(desk: Path) -> None:
    index = Index.open(desk / "photos.index")
    ids, rows = rows_of(desk)
    kept = index.vectors(ids)
    assert index.count == len(kept) == 10
    np.testing.assert_allclose([kept[name] for name in ids], rows, atol=1e-5)
    columns = ["hash", "location", "caption", "tags", "width", "height", "thumbnail"]
    told = {row["id"]: row for row in index.rows(ids, columns).to_pylist()}
    for number in range(10):
        name = f"{number}.jpg"
        row = told[name]
        assert row["hash"] == content_hash(desk / "photos" / name)
        assert row["location"] == f"photos/{name}"
        assert (row["caption"], row["tags"]) == (f"a {COLOURS[number % 3]} thing", [COLOURS[number % 3]])
        assert (row["width"], row["height"]) == ((280, 300) if number == 0 else (60, 40 + number))
    small = Image.open(io.BytesIO(index.thumbnail("0.jpg") or b""))
    assert (small.format, small.size, dict(small.getexif())) == ("JPEG", (239, 256), {})
    assert index.thumbnail("no such") is None


def test_a_search_finds_what_comparing_every_row_finds(desk: Path) -> None:
    index = Index.open(desk / "photos.index")
    ids, rows = rows_of(desk)
    queries = np.random.default_rng(0).standard_normal((6, index.manifest.model.width)).astype(np.float32)
    cosines = queries @ rows.T / np.linalg.norm(queries, axis=1, keepdims=True)
    for some in (queries, queries[:1]):  # many are read through at once, one is asked for
        for hits, expected in zip(index.search(some, 4), cosines, strict=False):
            best = np.argsort(-expected)[:4]
            assert [hit.id for hit in hits] == [ids[place] for place in best]
            np.testing.assert_allclose([hit.score for hit in hits], expected[best], atol=1e-5)
    assert len(index.search(queries[:1], 99)[0]) == 10
    assert index.search(queries[:0], 3) == []


def test_a_filter_is_applied_before_the_search(desk: Path) -> None:
    index = Index.open(desk / "photos.index")
    query = index.vectors(["1.jpg"])["1.jpg"][None]
    found = index.search(query, 3, Filter.parse("tags has red"))[0]
    assert len(found) == 3
    assert {hit.tags for hit in found} == {("red",)}
    assert index.search(query, 3, Filter.parse("id = \"x' OR '1'='1\""))[0] == []


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((1, 5)), 3, r"queries are \[Q, 24\]"),
        (np.zeros((1, 24)), 3, "points nowhere"),
        (np.full((1, 24), np.nan), 3, "not finite"),
        (np.ones((1, 24)), 0, "expected 1 or more"),
    ],
)
def test_what_is_no_query_is_refused(desk: Path, queries: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        Index.open(desk / "photos.index").search(queries.astype(np.float32), k)


def test_threads_search_at_the_same_time(desk: Path) -> None:
    index = Index.open(desk / "photos.index")
    ids, rows = rows_of(desk)
    wrong: list[str] = []

    def ask(number: int) -> None:
        for _ in range(5):
            if index.search(rows[number][None], 1)[0][0].id != ids[number]:
                wrong.append(ids[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_processes_embed_what_one_does(desk: Path, tmp_path: Path) -> None:
    index = build_index(desk / "photos", desk / "model", tmp_path / "x.index", workers=2)
    ids, rows = rows_of(desk)
    kept = index.vectors(ids)
    np.testing.assert_allclose([kept[name] for name in ids], rows, atol=1e-5)
    assert index.rows(["3.jpg"], ["location"])["location"].to_pylist() == [str(desk / "photos" / "3.jpg")]


def test_pictures_of_shards_and_drawn_ones_have_rows_too(desk: Path, tmp_path: Path) -> None:
    convert(str(desk / "photos"), tmp_path / "shards", "shards")
    index = build_index(tmp_path / "shards", desk / "model", tmp_path / "x.index", workers=0)
    assert index.count == 10
    found = index.search(index.vectors(["4.jpg"])["4.jpg"][None], 1)[0][0]
    assert (found.id, found.caption) == ("4.jpg", "a green thing")
    assert found.location.startswith(str(tmp_path / "shards"))
    drawn = build_index("scenes:test?n=3", desk / "model", tmp_path / "y.index", workers=0)
    assert (drawn.count, drawn.manifest.source and drawn.manifest.source.uri) == (3, "scenes:test?n=3")


def test_pictures_that_cannot_be_read_are_named_and_left_out(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(desk / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "3.jpg").write_bytes(b"no picture")
    (tmp_path / "photos" / "5.jpg").unlink()
    index = build_index(tmp_path / "photos", desk / "model", tmp_path / "x.index", workers=0)
    assert (index.count, index.manifest.unreadable) == (8, 2)
    told = capsys.readouterr().err
    assert "left out '3.jpg'" in told
    assert "left out '5.jpg'" in told
    for path in (tmp_path / "photos").glob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(SearchError, match="none of the 10 pictures"):
        build_index(tmp_path / "photos", desk / "model", tmp_path / "y.index", workers=0)
    with pytest.raises(SearchError, match="is not complete: its making was interrupted"):
        Index.open(tmp_path / "y.index")


def test_the_same_again_is_complete_and_anything_else_is_refused(
    desk: Path, exported: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, model = desk / "photos.index", desk / "model"
    assert build_index(desk / "photos", model, where).version == 1
    assert "is complete" in capsys.readouterr().err
    with pytest.raises(SearchError, match=r"made with the width 24, and is asked for with 8"):
        build_index(desk / "photos", model, where, width=8)
    draw(tmp_path / "photos", 1)
    with pytest.raises(SearchError, match=r"made with the source .*, and is asked for with"):
        build_index(tmp_path / "photos", model, where)
    other = renamed(model, tmp_path / "other")
    with pytest.raises(SearchError, match=r"made with the model \w+, and is asked for with another.* index rebuild"):
        build_index(desk / "photos", other, where)
    with pytest.raises(SearchError, match="is no index, and not empty"):
        build_index(desk / "photos", model, tmp_path)
    (tmp_path / "words.txt").write_text("a dog\n")
    with pytest.raises(SearchError, match="captions alone"):
        build_index(tmp_path / "words.txt", model, tmp_path / "z.index")
    assert not (tmp_path / "z.index").exists()
    with pytest.raises(SearchError, match="there is no"):
        Index.open(tmp_path / "z.index")


def renamed(model: Path, to: Path) -> Path:
    """The same model under another fingerprint."""
    shutil.copytree(model, to)
    record = json.loads((to / "clipdistill.json").read_text())
    (to / "clipdistill.json").write_text(json.dumps({**record, "fingerprint": "another"}))
    return to


def test_searching_by_fewer_dimensions_gives_scores_of_all(desk: Path, tmp_path: Path) -> None:
    index = build_index(desk / "photos", desk / "model", tmp_path / "x.index", width=8, workers=0)
    assert index.manifest.effort.recall >= 0.99
    assert index.manifest.effort.queries > 10
    ids, rows = rows_of(desk)
    hits = index.search(rows[3][None], 3)[0]
    expected = np.sort(rows @ rows[3])[::-1][:3]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)
    assert [hit.id for hit in hits] == [hit.id for hit in index.search(rows[3][None], 3, exact=True)[0]]
    narrow = {row["id"]: row["vector"] for row in index.rows(ids, ["vector"]).to_pylist()}
    np.testing.assert_allclose(narrow[ids[3]], rows[3][:8] / np.linalg.norm(rows[3][:8]), atol=1e-5)
    with pytest.raises(SearchError, match="have 24 dimensions"):
        build_index(desk / "photos", desk / "model", tmp_path / "y.index", width=25)


def test_folders_that_lie_together_can_be_moved_together(desk: Path, tmp_path: Path) -> None:
    shutil.copytree(desk, tmp_path / "moved")
    index = Index.open(tmp_path / "moved" / "photos.index")
    assert index.model == tmp_path / "moved" / "model"
    (tmp_path / "moved" / "photos" / "9.jpg").write_bytes((desk / "photos" / "8.jpg").read_bytes())
    assert str(sync(index, workers=0)) == "0 added, 1 changed, 0 described anew, 0 removed, 9 kept"


def test_what_is_written_together_is_what_came_together(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are durable a few seconds after they were made, not only at the end."""
    monkeypatch.setattr(contents, "SECONDS", 0.0)
    many = tmp_path / "photos"
    draw(many, 40, first=100)
    written: list[int] = []
    write = LanceTable.write
    monkeypatch.setattr(LanceTable, "write", lambda self, rows: (written.append(rows.num_rows), write(self, rows)))
    build_index(many, desk / "model", tmp_path / "x.index", workers=0)
    assert written == [32, 8]


def test_a_damaged_manifest_is_named(desk: Path, tmp_path: Path) -> None:
    shutil.copytree(desk / "photos.index", tmp_path / "x.index")
    path = tmp_path / "x.index" / "index.json"
    good = json.loads(path.read_text())
    for text, message in (
        ("{", "damaged"),
        ("{}", "does not say format"),
        (json.dumps({**good, "version_of_format": 9}), "is of version 9"),
        (json.dumps({**good, "count": -1}), "key count"),
    ):
        path.write_text(text)
        with pytest.raises(SearchError, match=message):
            Index.open(tmp_path / "x.index")
    path.write_text(json.dumps({**good, "snapshot": 99}))
    with pytest.raises(SearchError, match=r"cannot be read or written.*99"):
        Index.open(tmp_path / "x.index")
    assert Manifest.read(desk / "photos.index").to_json() == (desk / "photos.index" / "index.json").read_text()


def test_addresses_that_are_told_hold_no_secrets() -> None:
    class Member:
        def __str__(self) -> str:
            return "https://me:word@host/x.tar?X-Amz-Signature=5ec&part=1: a.jpg at byte 512"

    told = location_of(cast(Any, Member()), Path())
    assert told == "https://***@host/x.tar?X-Amz-Signature=***&part=1: a.jpg at byte 512"
    assert web_location(told) is None, "a part of a file has no address"
    assert web_location("https://host/x.jpg") == "https://host/x.jpg"
    assert web_location("photos/x.jpg") is None


def test_paths_of_a_source_count_from_where_it_was_named(tmp_path: Path) -> None:
    root = Path("/data")
    assert anchored("photos", root) == "/data/photos"
    assert anchored("../a.tar::/b/c.tar", root) == "/data/../a.tar::/b/c.tar"
    assert anchored("hf:org/name?split=test", root) == "hf:org/name?split=test"
    assert anchored("scenes:test?n=4", root) == "scenes:test?n=4"
    assert anchored("s3://bucket/{0..3}.tar", root) == "s3://bucket/{0..3}.tar"
    assert anchored("c.json?images=val2017&split=test", root) == "/data/c.json?images=/data/val2017&split=test"
