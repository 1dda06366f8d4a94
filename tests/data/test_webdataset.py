"""Shards as webdataset's and img2dataset's writers make them open by position, without being unpacked."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from clipdistill.data.check import check
from clipdistill.data.images import content_hash, decode, fetch
from clipdistill.data.samples import Sample, Source, TarMember
from clipdistill.data.sources import from_samples, pairs
from clipdistill.data.sources import shard_index as shard_index_module
from clipdistill.data.workers import load
from clipdistill.errors import DataError

Member = tuple[str, bytes]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def picture(colour: int, kind: str = "jpeg") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), (colour, 255 - colour, 20)).save(stream, format=kind)
    return stream.getvalue()


def write_tar(path: Path, members: Sequence[Member], kind: int = tarfile.PAX_FORMAT, when: float = 1.5) -> Path:
    """Write members as webdataset's TarWriter does: a time with a fraction is an extended header before each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), when if kind == tarfile.PAX_FORMAT else int(when)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, caption: str, colour: int = 5, **more: Any) -> list[Member]:
    """One sample as img2dataset writes it."""
    facts = {"url": f"https://example.org/{key}", "caption": caption, "key": key, "status": "success", **more}
    text = json.dumps(facts, indent=4).encode()
    return [(f"{key}.jpg", picture(colour)), (f"{key}.txt", caption.encode()), (f"{key}.json", text)]


def every(source: Source) -> list[Sample]:
    return [source[index] for index in range(len(source))]


def told(uri: str | Path) -> list[tuple[Any, ...]]:
    return [(one.id, one.texts, one.label) for one in every(pairs(uri))]


def problem(uri: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        pairs(uri)
    return str(caught.value)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    for number in range(3):
        keys = [f"{number:05d}{row:04d}" for row in range(2)]
        members = [one for row, key in enumerate(keys) for one in sample(key, f"caption {key}", 10 * number + row)]
        write_tar(folder / f"{number:05d}.tar", members)
        (folder / f"{number:05d}_stats.json").write_text("{}")
    return folder


# Names


def test_shards_open_by_every_name(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards.parent)
    one, two, three = (f"shards/0000{n}.tar" for n in range(3))
    names = ["shards", "shards/{00000..00002}.tar", f"{one}::{two}::{three}", "shards/*.tar", f"{shards}/*.tar"]
    names += ["shards/0000{0,1,2}.tar", f"{one}::shards/0000{{1..2}}.tar"]
    for name in names:
        assert [one.captions[0] for one in every(pairs(name))] == [
            f"caption 0000{n}000{r}" for n in "012" for r in "01"
        ]
    assert len(pairs(one)) == 2
    assert pairs("shards/0000{2..1}.tar")[0].id == "000020000"
    assert "2 of 4 shards are not there: shards/00003.tar, shards/00004.tar" in problem("shards/{00001..00004}.tar")
    assert "shards/x*.tar: no file has such a name" in problem("shards/x*.tar")
    assert "is named twice" in problem(f"{one}::./{one}")
    assert "there is no such file or folder. Did you mean" in problem("shards/00009.tar")
    assert "only plain .tar files" in problem("shards/00000{.tar,_stats.json}")


def test_a_folder_of_pictures_with_a_tar_in_it_stays_one(shards: Path) -> None:
    (shards / "cats").mkdir()
    (shards / "cats" / "a.jpg").write_bytes(picture(3))
    assert [one.id for one in every(pairs(shards))] == ["cats/a.jpg"]


# Samples


def test_samples_follow_webdatasets_names(tmp_path: Path) -> None:
    members = [
        ("./d/a.syn.json", json.dumps({"syn_text": ["made 1", "made 2"]}).encode()),
        ("./d/a.JPG", picture(1)),
        ("./d/a.txt", "\ufeffone\n\n 两 \r\none\nno\u2028line\x1cends\x85here".encode()),
        ("b.png", picture(2, "png")),
        ("b.jpg", picture(3)),
        ("b.cls", b"7\n"),
        ("b.json", json.dumps({"caption": ["x", "y"], "syn_text": "z", "label": "no", "place": "sea"}).encode()),
        ("c.0.jpg", picture(4)),
        ("c.json", b'["not", "an object"]'),
        ("c.webp", picture(4, "webp")),
        ("__meta__", b"{}"),
        ("__meta__/x.jpg", b""),
        (".hidden.jpg", b""),
        ("README", b""),
    ]
    path = write_tar(tmp_path / "a.tar", members)
    assert told(path) == [
        ("d/a", {"": ["one", "两", "no\u2028line\x1cends\x85here"], "syn": ["made 1", "made 2"]}, None),
        ("b", {"": ["x", "y"], "syn": ["z"]}, "7"),
        ("c", {"": []}, None),
    ]
    files = [one.image for one in every(pairs(path))]
    assert [str(file).split(" at ")[0] for file in files] == [
        f"{path}: {name}" for name in ("d/a.jpg", "b.jpg", "c.webp")
    ]
    for file, data in zip(files, (picture(1), picture(3), picture(4, "webp")), strict=True):
        assert isinstance(file, TarMember)
        assert fetch(file) == data
        assert decode(file).tobytes() == decode(data).tobytes()
        assert content_hash(file) == content_hash(data)
    assert [label for _, _, label in told(f"{path}?label=place")] == [None, "sea", None]
    assert [texts for _, texts, _ in told(f"{path}?caption=place&synthetic=caption")][1] == {
        "": ["sea"],
        "syn": ["x", "y"],
    }
    assert [(texts, label) for _, texts, label in told(f"{path}?caption=none")][1] == ({}, "7")
    words = every(pairs(f"{path}?image=none"))
    assert [one.image for one in words] == [None] * 3
    assert "has the key 'plaze', chosen by label=plaze. Did you mean 'place'?" in problem(f"{path}?label=plaze")
    assert "only image=none can be chosen" in problem(f"{path}?image=jpg")


def test_a_caption_of_several_lines_that_the_json_repeats_is_one(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar", [*sample("a", "first\nsecond"), ("b.jpg", picture(1)), ("b.txt", b"first\nsecond")]
    )
    assert [texts[""] for _, texts, _ in told(path)] == [["first\nsecond"], ["first", "second"]]


def test_members_need_not_stand_together(tmp_path: Path) -> None:
    members = [*sample("a", "x"), *sample("b", "y")]
    path = write_tar(tmp_path / "a.tar", sorted(members, key=lambda member: member[0][2:]))
    assert [(key, texts[""]) for key, texts, _ in told(path)] == [("a", ["x"]), ("b", ["y"])]


def test_keys_that_come_again_are_told_apart_by_their_shard(tmp_path: Path) -> None:
    one, two = (write_tar(tmp_path / name / "0.tar", sample("k", name)) for name in ("train", "more"))
    assert [key for key, _, _ in told(f"{one}::{two}")] == ["train/0/k", "more/0/k"]
    assert [key for key, _, _ in told(one)] == ["k"]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("first", ["", "folder", "link"])
def test_every_dialect_of_tar_gives_what_the_library_reads(kind: int, first: str, tmp_path: Path) -> None:
    names = ["short.jpg", "x" * 90 + "/" + "y" * 60 + ".jpg", "图片/猫.png"]
    if kind != tarfile.USTAR_FORMAT:
        names.append("z" * 300 + ".webp")
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=kind) as tar:
        for number, name in enumerate(names):
            other = tarfile.TarInfo(f"{number}.jpg")
            other.type, other.linkname = (
                (tarfile.DIRTYPE, "") if first == "folder" else (tarfile.SYMTYPE, "/etc/passwd")
            )
            if first:
                tar.addfile(other)
            info = tarfile.TarInfo(name)
            info.size = 700 * number + 1
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
    assert [fetch(one.picture) for one in every(pairs(path))] == [bytes([n]) * (700 * n + 1) for n in range(len(names))]
    assert [one.id for one in every(pairs(path))] == [name.rpartition(".")[0] for name in names]


def test_shards_without_pictures_or_samples(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.txt", b"words"), ("a.b.jpg", picture(1))])
    assert "there are no pictures. Found files ending in: b.jpg, txt. Expected one of: jpg, png, jpeg" in problem(path)
    assert told(f"{path}?image=none") == [("a", {"": ["words"]}, None)]
    assert "there are no samples in it" in problem(write_tar(tmp_path / "b.tar", []))


# The index


def test_the_index_is_used_until_the_tar_changes(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shards / "00000.tar"
    before, source = every(pairs(first)), pairs(first)
    index = shards / "00000.tar.index.json"
    assert sorted(path.name for path in shards.glob("*index*")) == [index.name]
    with monkeypatch.context() as patch:
        patch.setattr(shard_index_module, "_read", None)  # reading the tar again would fail
        assert every(pairs(first)) == before
    stamp = first.stat().st_mtime_ns
    write_tar(first, [*sample("new", "changed"), *sample("more", "changed")])
    os.utime(first, ns=(stamp, stamp + 10**9))
    assert [one.id for one in every(pairs(first))] == ["new", "more"]
    assert pairs(first).fingerprint != source.fingerprint


@pytest.mark.parametrize("damage", ["{", "[]", "{}", "keys", "places", "outside"])
def test_a_damaged_index_is_made_again(shards: Path, damage: str) -> None:
    first, index = shards / "00000.tar", shards / "00000.tar.index.json"
    before = every(pairs(first))
    good = index.read_text()
    record = json.loads(good)
    if damage == "outside":
        record["places"]["jpg"][0] = 10**12
    index.write_text(json.dumps({k: v for k, v in record.items() if k != damage}) if len(damage) > 2 else damage)
    assert every(pairs(first)) == before
    assert index.read_text() == good


def test_an_index_that_cannot_lie_beside_the_tar_lies_in_the_cache_or_nowhere(
    shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = shards / "00000.tar"
    (shards / "00000.tar.index.json").mkdir()  # in the way, also for the superuser
    assert len(pairs(first)) == 2
    cache = Path(os.environ["XDG_CACHE_HOME"])
    assert len(list(cache.rglob("*.index.json"))) == 1
    assert "kept in memory" not in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(shard_index_module, "_read", None)
        assert len(pairs(first)) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPDISTILL_CACHE", str(tmp_path / "chosen"))
    assert len(pairs(first)) == 2
    assert len(list((tmp_path / "chosen").glob("*.index.json"))) == 1
    monkeypatch.setenv("CLIPDISTILL_CACHE", str(tmp_path / "file"))
    assert len(pairs(first)) == 2
    assert "kept in memory (1 of 1 shards)" in capsys.readouterr().err
    assert not list(shards.glob(".*"))


def test_the_fingerprint_follows_keys_captions_sizes_and_choices_but_not_the_place(tmp_path: Path) -> None:
    def fingerprint(name: str, members: Sequence[Member], choice: str = "") -> str:
        return pairs(f"{write_tar(tmp_path / name / '0.tar', members)}{choice}").fingerprint

    first = fingerprint("a", sample("k", "x"))
    assert fingerprint("b", sample("k", "x")) == first
    others = [
        fingerprint("c", sample("l", "x")),
        fingerprint("d", sample("k", "y")),
        fingerprint("e", [("k.jpg", picture(5) + b"\0"), *sample("k", "x")[1:]]),
        fingerprint("f", sample("k", "x"), "?caption=none"),
        fingerprint("g", sample("k", "x", label="z")),
    ]
    assert len({first, *others}) == 6


# Use


def test_samples_are_the_same_in_worker_processes(shards: Path) -> None:
    source = pairs(shards)

    class Items(torch.utils.data.Dataset[list[Any]]):
        def __init__(self) -> None:
            self.source = source

        def __getitem__(self, item: tuple[int, list[int]]) -> list[Any]:
            samples = [self.source[row] for row in item[1]]
            return [[sample.id, fetch(sample.picture)] for sample in samples]

    read = list(load(Items(), [(0, [5, 0]), (0, [3])], workers=2))
    expected = [[[source[row].id, fetch(source[row].picture)] for row in rows] for rows in ([5, 0], [3])]
    assert read == expected
    assert every(pickle.loads(pickle.dumps(source))) == every(source)
    with pytest.raises(IndexError, match="has 6 samples, asked for position 6"):
        source[6]
    assert from_samples(every(source)[:1]).fingerprint != from_samples(every(source)[1:2]).fingerprint


def test_a_broken_picture_and_a_missing_caption_are_met_by_the_check(tmp_path: Path) -> None:
    members = [*sample("a", "x"), ("b.jpg", picture(9)[:100]), ("b.txt", b" "), ("c.txt", b"no picture")]
    source = pairs(write_tar(tmp_path / "a.tar", members))
    report = check(source)
    assert list(report.unreadable) == ["b"]
    assert (report.pictures, report.without_caption) == (2, ["b"])
    with pytest.raises(DataError, match=r"a\.tar: b\.jpg at byte \d+: truncated or damaged"):
        decode(source[1].picture)


# Damage


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_that_is_cut_off_or_damaged_names_the_place(kind: int, tmp_path: Path) -> None:
    data = write_tar(tmp_path / "whole.tar", [*sample("a", "x"), *sample("b", "y")], kind).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        inside = tar.getmember("b.jpg").offset_data
    path = tmp_path / "cut.tar"
    path.write_bytes(data[: inside + 10])
    assert f"{path}: damaged or cut off in b.jpg, which begins at byte {inside}." in problem(path)
    path.write_bytes(data[: inside - 100])
    assert "damaged or cut off" in problem(path)
    damaged = bytearray(data)
    damaged[inside - 400] ^= 255
    path.write_bytes(damaged)
    assert "at the header at byte" in problem(path)
    assert not list(tmp_path.glob("*.index.json"))


def test_what_is_no_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for data in (b"", b"words", bytes(range(256)) * 20):
        path.write_bytes(data)
        assert f"{path}: not a tar" in problem(path)


def test_compressed_tars_say_to_decompress(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    assert "found a gzip file, expected a plain tar" in problem(path)
    path.rename(tmp_path / "a.tar.gz")
    assert "found a compressed tar, expected a plain one. Decompress it first" in problem(tmp_path / "a.tar.gz")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("b.txt", "狗".encode("gbk")), r"b.txt at byte \d+: found byte 0xb9, expected UTF-8"),
        (("b.json", b'{"caption": '), r"b.json at byte \d+: not JSON"),
        (("a.jpg", b"again"), r"a.jpg at byte \d+ is there already at byte 1536; keep one"),
    ],
)
def test_a_text_that_means_nothing_is_named(member: Member, message: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [*sample("a", "x"), member])
    with pytest.raises(DataError, match=message) as caught:
        pairs(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_tar_that_changes_under_a_run_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample("a", "x"))
    source = pairs(path)
    image = source[0].picture
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"a cannot be read any more .*the shard has changed"):
        source[0]
    with pytest.raises(DataError, match="the tar has changed since it was opened"):
        decode(image)


def test_captions_must_be_text(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample("a", "x", width=300))
    with pytest.raises(DataError, match=r"a\.tar: a: found 300 under 'width', expected a caption"):
        pairs(f"{path}?caption=width")[0]
