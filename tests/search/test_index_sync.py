"""An index that follows its source: what changes, what stays, what readers see meanwhile, and another model."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdistill.errors import ClipdistillError, InterruptedRunError, SearchError
from clipdistill.search import build, contents, publishing
from clipdistill.search.build import build_index
from clipdistill.search.index import Index
from clipdistill.search.lance import LanceTable
from clipdistill.search.locking import writing
from clipdistill.search.runtime import Runtime
from clipdistill.search.sync import rebuild, sync
from clipdistill.search.tables import open_table
from search.test_index import draw, renamed

ONES = np.ones((1, 24), np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, exported: tuple[Path, Any]) -> Path:
    desk = tmp_path_factory.mktemp("made")
    shutil.copytree(exported[0], desk / "model")
    draw(desk / "photos", 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        build_index("photos", "model", "x.index", workers=0)
    return desk


@pytest.fixture
def desk(made: Path, tmp_path: Path) -> Path:
    """A copy of folders that lie together: a model, twelve pictures, an index."""
    shutil.copytree(made, tmp_path / "desk")
    return tmp_path / "desk"


def describe(desk: Path, **words: str) -> None:
    """Give pictures other captions; an empty one takes the picture off the list."""
    path = desk / "photos" / "metadata.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["text"] = words.get("n" + line["file_name"].split(".")[0], line["text"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line["text"]))


def change(desk: Path) -> None:
    """Another picture 1, another caption for 2, no 3 any more, and 20 is new."""
    Image.effect_noise((50, 50), 80).convert("RGB").save(desk / "photos" / "1.jpg")
    describe(desk, n2="something else", n3="")
    draw(desk / "photos", 1, first=20)


@contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pictures go through the model."""
    sizes: list[int] = []
    prepared = Runtime.prepared

    def count(self: Runtime, inputs: Any) -> Any:
        rows = prepared(self, inputs)
        sizes.append(len(rows))
        return rows

    with patch.context() as inner:
        inner.setattr(Runtime, "prepared", count)
        yield sizes


@contextmanager
def full_disk(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """No version can be published, though rows are written."""

    def publish(self: LanceTable) -> Any:
        raise OSError("the disk is full")

    with patch.context() as inner:
        inner.setattr(LanceTable, "publish", publish)
        yield


def test_what_is_new_changed_retold_and_gone_is_published_at_once(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Index.open(desk / "x.index")
    old = before.vectors(["1.jpg", "2.jpg", "3.jpg"])
    change(desk)
    with counted(monkeypatch) as embedded:
        changes = sync(before, workers=0)
    assert str(changes) == "1 added, 1 changed, 1 described anew, 1 removed, 9 kept"
    assert embedded == [2]
    after = before.current()
    assert (before.version, after.version, before.count, after.count) == (1, 2, 12, 12)
    assert before.search(old["3.jpg"][None], 1)[0][0].id == "3.jpg"
    assert after.search(old["3.jpg"][None], 1)[0][0].id != "3.jpg"
    kept = after.vectors(["1.jpg", "2.jpg", "3.jpg", "20.jpg"])
    assert set(kept) == {"1.jpg", "2.jpg", "20.jpg"}
    fresh = Runtime.open(desk / "model").images([desk / "photos" / "1.jpg"])[0]
    np.testing.assert_allclose(kept["1.jpg"], fresh, atol=1e-5)
    np.testing.assert_array_equal(kept["2.jpg"], old["2.jpg"])
    assert after.rows(["2.jpg"], ["caption"])["caption"].to_pylist() == ["something else"]
    assert after.current() is after


def test_nothing_new_is_no_new_version(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.open(desk / "x.index")
    with counted(monkeypatch) as embedded:
        assert not sync(index, workers=0)
    assert embedded == []
    assert index.current() is index


def test_searches_see_the_old_version_or_the_new_one(desk: Path) -> None:
    index = Index.open(desk / "x.index")
    old = {hit.id for hit in index.search(ONES, 99)[0]}
    seen: list[frozenset[str]] = []
    stop = threading.Event()

    def read() -> None:
        opened = index
        while not stop.is_set():
            opened = opened.current()
            seen.append(frozenset(hit.id for hit in opened.search(ONES, 99)[0]))

    reader = threading.Thread(target=read)
    reader.start()
    change(desk)
    sync(index, workers=0)
    new = {hit.id for hit in index.current().search(ONES, 99)[0]}
    while frozenset(new) not in seen and reader.is_alive():
        pass
    stop.set()
    reader.join()
    assert set(seen) == {frozenset(old), frozenset(new)}


def test_a_source_that_is_gone_deletes_nothing(desk: Path) -> None:
    index = Index.open(desk / "x.index")
    describe(desk, **{f"n{number}": "" for number in range(7)})
    with pytest.raises(SearchError, match=r"7 of the 12 in the index .* --allow-deletes"):
        sync(index, workers=0)
    (desk / "photos").rename(desk / "elsewhere")
    with pytest.raises(ClipdistillError, match="there is no such file or folder"):
        sync(index, workers=0)
    (desk / "photos").mkdir()
    with pytest.raises(ClipdistillError, match="there are no pictures"):
        sync(index, workers=0)
    assert index.current() is index
    (desk / "photos").rmdir()
    (desk / "elsewhere").rename(desk / "photos")
    assert sync(index, workers=0, allow_deletes=True).removed == 7
    assert index.current().count == 5


def test_a_picture_that_cannot_be_read_now_stays(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = Index.open(desk / "x.index")
    (desk / "photos" / "4.jpg").write_bytes(b"")
    changes = sync(index, workers=0)
    assert (changes.stale, changes.kept, changes.unreadable, changes.removed) == (1, 12, 0, 0)
    assert index.current().count == 12
    assert "12 kept (1 of which cannot be read now)" in str(changes)
    assert "kept as it was '4.jpg': " in capsys.readouterr().err


def test_one_writes_at_a_time(desk: Path) -> None:
    index = Index.open(desk / "x.index")
    with writing(index.folder), pytest.raises(SearchError, match="another process is writing"):
        sync(index)
    assert not sync(index, workers=0)


def test_ctrl_c_keeps_what_was_done(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.open(desk / "x.index")
    draw(desk / "photos", 40, first=100)
    real = contents.look_all

    def stopped(*args: Any) -> Iterator[Any]:
        for number, looks in enumerate(real(*args)):
            if number:
                raise KeyboardInterrupt
            yield looks

    with monkeypatch.context() as patch:
        patch.setattr(contents, "look_all", stopped)
        with pytest.raises(InterruptedRunError, match="20 pictures were embedded in this run, and are written"):
            sync(index, workers=0)
    assert index.current() is index
    assert index.count == 12
    with counted(monkeypatch) as embedded:
        sync(index, workers=0)
    assert sum(embedded) == 20
    assert index.current().count == 52


def test_another_model_is_refused_and_a_rebuild_goes_over_to_it(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.open(desk / "x.index")
    own = index.manifest.model.fingerprint
    other = renamed(desk / "model", desk / "other")
    (desk / "model").rename(desk / "put away")
    with pytest.raises(SearchError, match=r"is not at .*model any more.*index rebuild"):
        sync(index)
    other.rename(desk / "model")
    with pytest.raises(SearchError, match=rf"made with the model {own}, and .*model is another now.*index rebuild"):
        sync(index)
    with full_disk(monkeypatch), pytest.raises(OSError, match="full"):
        rebuild(index, desk / "model", workers=0)
    assert index.current() is index
    with counted(monkeypatch) as embedded:
        fresh = rebuild(index, desk / "model", width=8, workers=0)
    assert embedded == [12]  # at another width what the first try wrote is of no use
    assert (fresh.version, fresh.count, fresh.manifest.model.fingerprint) == (2, 12, "another")
    assert (fresh.manifest.width, fresh.manifest.table) == (8, "pictures-3")
    assert index.current().version == 2
    assert len(index.search(ONES, 3)[0]) == 3  # the old one is still there
    names = {path.name for path in (desk / "x.index" / "rows").iterdir()}
    assert names == {"pictures-1.lance", "pictures-3.lance"}


def test_a_rebuild_goes_on_where_it_was_stopped(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.open(desk / "x.index")
    other = renamed(desk / "model", desk / "other")
    with full_disk(monkeypatch), pytest.raises(OSError, match="full"):
        rebuild(index, other, workers=0)
    draw(desk / "photos", 1, first=20)
    assert sync(index, workers=0).added == 1  # the old one can be brought up to date meanwhile
    with counted(monkeypatch) as embedded:
        fresh = rebuild(index, other, workers=0)
    assert embedded == [1]
    assert (fresh.count, fresh.version, fresh.manifest.table) == (13, 3, "pictures-2")


def test_old_versions_are_removed_after_a_while(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was published last is there until the next time; what came before it goes after an hour."""
    first = Index.open(desk / "x.index")
    monkeypatch.setattr("clipdistill.search.lance._MARGIN", timedelta(seconds=0.2))
    time.sleep(0.3)
    monkeypatch.setattr(publishing, "SECONDS_KEPT", 0.0)
    draw(desk / "photos", 1, first=20)
    sync(first, workers=0)
    assert len(open_table(first.manifest, first.folder).search(ONES, 3)[0]) == 3
    second = first.current()
    draw(desk / "photos", 1, first=21)
    sync(first, workers=0)
    assert [one.snapshot for one in first.current().manifest.retired] == [second.manifest.snapshot]
    assert len(second.search(ONES, 99)[0]) == 13
    with pytest.raises(SearchError, match="open it again"):
        open_table(first.manifest, first.folder)
    assert not sync(first.current(), workers=0)
    assert first.current().count == 14


def test_a_stop_between_publishing_and_calibrating_is_made_good(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.open(desk / "x.index")
    with monkeypatch.context() as patch:
        patch.setattr(build, "finish", killed)
        with pytest.raises(RuntimeError, match="killed"):
            rebuild(index, desk / "model", width=12, workers=0)
    half = index.current()
    assert (half.manifest.table, half.manifest.calibration) == ("pictures-2", {})
    shutil.copytree(desk / "x.index", desk / "y.index")

    whole = rebuild(half, desk / "model", width=12, workers=0)  # the same again, and not once more from the start
    assert (whole.manifest.table, sorted(path.name for path in whole.folder.glob("*.json"))) == (
        "pictures-2",
        ["index.json"],
    )
    assert whole.manifest.calibration

    synced = Index.open(desk / "y.index")
    assert not sync(synced, workers=0)
    assert synced.current().manifest.calibration.keys() == whole.manifest.calibration.keys()
    assert not (desk / "y.index" / "pending.json").exists()


def killed(*given: Any) -> None:
    raise RuntimeError("killed")
