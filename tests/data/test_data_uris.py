"""What is common to the URIs of several kinds of data: a home folder, and what may be ``none``."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipdistill.data.mixing import write_mix
from clipdistill.data.sources import pairs
from clipdistill.errors import DataError


def png(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), (colour, 1, 2)).save(stream, format="PNG")
    return stream.getvalue()


def write_shard(path: Path, key: str) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in ((f"{key}.png", png(3)), (f"{key}.json", b'{"caption": "x"}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, with the program started in another one."""
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    (home / "photos" / "a.png").write_bytes(png(1))
    facts = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "one"}]}
    (home / "captions_x.json").write_text(json.dumps(facts))
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    monkeypatch.setenv("HOME", str(home))
    return home


def test_a_path_may_begin_at_home(home: Path) -> None:
    assert pairs("~/photos")[0].image == home / "photos" / "a.png"
    assert pairs("~/photos?caption=none")[0].texts == {}
    assert pairs("~/captions_x.json?images=~/photos")[0].image == home / "photos" / "a.png"
    for name in ("a", "b"):
        write_shard(home / f"{name}.tar", name)
    assert [one.id for one in map(pairs("~/a.tar::~/b.tar").__getitem__, (0, 1))] == ["a", "b"]
    assert len(pairs("~/{a,b}.tar")) == 2


def test_so_may_the_parts_of_a_mix(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mix(["~/photos=3", "~/captions_x.json?images=~/photos=1"], "mixes/mix.yaml")
    assert "data: ~/photos\n" in Path("mixes/mix.yaml").read_text()
    mix = Path("mixes/mix.yaml").absolute()
    monkeypatch.chdir("/")
    assert [sample.captions for sample in map(pairs(mix).__getitem__, (0, 1))] == [["a"], ["one"]]


def test_parquet_is_read_the_same_way_without_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {"img": pa.array([png(1), png(2)], pa.binary()), "sentences": [["a", "b"], ["c"]]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with_pictures, without = pairs(tmp_path / "a.parquet"), pairs(f"{tmp_path}/a.parquet?image=none")
    for index in range(2):
        assert with_pictures[index].image is not None
        assert without[index].image is None
        assert with_pictures[index].id == without[index].id
        assert with_pictures[index].captions == without[index].captions != []


@pytest.mark.parametrize("role", ["label", "group", "synthetic"])
def test_what_cannot_be_none_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "a.csv").write_text("filepath,title\na.png,x\n")
    write_shard(tmp_path / "a.tar", "a")
    pq.write_table(pa.table({"image": pa.array([png(1)], pa.binary()), "text": ["x"]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.tar", "a.parquet"):
        with pytest.raises(DataError, match=rf"chosen by {role}=none\..* Only image and caption can be none\.$"):
            pairs(f"{tmp_path / name}?{role}=none")
        with pytest.raises(DataError, match=r"chosen by label=nome\.(?!.*Only image)"):
            pairs(f"{tmp_path / name}?label=nome")
