"""Samples that cannot be read do not end a run: they are skipped, counted and named, whatever of them is damaged."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clipdistill.data.check import check
from clipdistill.data.convert import convert
from clipdistill.data.mixing import write_mix
from clipdistill.data.sources import pairs
from clipdistill.errors import DataError
from clipdistill.teachers.embed import embed
from clipdistill.teachers.manifest import read_records
from clipdistill.training.loop import distill
from clipdistill.training.run_folder import Log, read_log
from tiny_runs import fail_at_step, tiny_run

#: What is said of the sample that has a number for a caption.
REASON = "b: found 5 under 'caption', expected a caption or a list of captions"


def png(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), (colour, 255 - colour, 20)).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine samples, of which ``b`` has a caption of another type."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, name in enumerate("abcdefghi"):
            facts = json.dumps({"caption": 5 if name == "b" else f"a picture of {name}"}).encode()
            for ending, data in (("png", png(20 * number)), ("json", facts)):
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return tmp_path / "a.tar"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_caption_of_another_type_is_skipped(shard: Path, tmp_path: Path, workers: int) -> None:
    train = {"steps": 4, "batch_size": 8, "workers": workers, "max_broken": 1}
    run = distill(tiny_run(tmp_path / "run", data=str(shard), train=train))
    skipped = list(read_log(run.folder / "skipped.jsonl"))
    assert [(entry["id"], entry["reason"]) for entry in skipped] == [("b", f"{shard}: {REASON}")]


def test_more_of_them_than_are_allowed_end_a_run(shard: Path, tmp_path: Path) -> None:
    train = {"steps": 4, "batch_size": 8, "workers": 1, "max_broken": 0}
    with pytest.raises(DataError, match=r"^1 samples of .* cannot be read, train\.max_broken allows 0"):
        distill(tiny_run(tmp_path / "run", data=str(shard), train=train))


def test_a_check_names_it(shard: Path, tmp_path: Path) -> None:
    assert check(pairs(shard)).unreadable == {"b": f"{shard}: {REASON}"}
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "x.png").write_bytes(png(250))
    (folder / "x.txt").write_text("another one")
    mixed = write_mix([f"{shard}=1", f"{folder}=1"], tmp_path / "mix.yaml")
    assert list(check(mixed).unreadable) == ["b"]


def test_what_is_converted_goes_without_it(shard: Path, tmp_path: Path) -> None:
    made = convert(shard, tmp_path / "folder", "folder")
    assert (made.samples, made.skipped) == (8, [("b", f"{shard}: {REASON}")])


@pytest.mark.parametrize("sides", ["IT", "T"])
def test_what_is_embedded_goes_without_it(shard: Path, tmp_path: Path, teacher: Path, sides: str) -> None:
    store = embed(str(shard), str(teacher), tmp_path / "store", sides, workers=0)
    assert store is not None
    assert store.manifest.sides["text"].samples == 8
    assert store.manifest.skipped == (1 if "I" in sides else 0)
    with pytest.raises(DataError, match=r"1 pictures .* cannot be read so far, 0 are allowed"):
        embed(str(shard), str(teacher), tmp_path / "other", sides, workers=0, max_broken=0)


def test_names_that_are_no_text_come_back(tmp_path: Path, teacher: Path) -> None:
    """A name in an older encoding, as archives have them: its bytes are no UTF-8."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number} 狗.png").write_bytes(png(20 * number))
    name = os.fsdecode(b"caf\xe9.png")
    (folder / name).write_bytes(b"no picture")
    train = {"steps": 4, "batch_size": 10, "max_broken": 1, "checkpoint_every": 2}
    config = tiny_run(tmp_path / "run", data=str(folder), train=train)
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, 3)
        with pytest.raises(RuntimeError, match="power cut"):
            distill(config)
    distill(config, resume=True)
    assert [entry["id"] for entry in read_log(tmp_path / "run" / "skipped.jsonl")] == [name]
    store = tmp_path / "store"
    embed(str(folder), str(teacher), store, workers=0)
    assert [entry[0] for record in read_records(store, "image").values() for entry in record.skipped] == [name]
    given = {"recipe": "clip-kd", "teachers": {"T": str(store)}, "augment": "whole"}
    distill(tiny_run(tmp_path / "again", data=str(folder), train={**train, "batch_size": 9}, **given))


def test_a_log_stays_readable(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    log.write({"step": 1, "id": "狗.jpg"})
    log.write({"step": 2, "id": "\udce9 狗.jpg"})
    log.cut(2)
    assert "狗.jpg" in log.path.read_text(encoding="utf-8").split("\n")[0]
    assert [entry["id"] for entry in read_log(log.path)] == ["狗.jpg", "\udce9 狗.jpg"]
