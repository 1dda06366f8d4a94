"""Converting: everything that is said of pictures, and their bytes, come back from every format."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipdistill.data.convert import FORMATS, convert
from clipdistill.data.images import fetch
from clipdistill.data.samples import Sample, Source
from clipdistill.data.sources import from_samples, pairs
from clipdistill.data.sources.shard_index import IMAGES
from clipdistill.errors import DataError

#: What stands for one sample: id, bytes, captions by view, label, group.
Told = tuple[str, Any, dict[str, list[str]], str | None, str | None]


def picture(colour: int, kind: str = "jpeg") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), (colour, 255 - colour, 20)).save(stream, format=kind)
    return stream.getvalue()


PICTURES = [picture(n, kind) for n in (3, 90) for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm")]


def told(source: Source) -> list[Told]:
    """All samples as they should come back: a caption once, missing synthetic captions not mentioned."""
    samples = [source[index] for index in range(len(source))]
    return [(one.id, one.image if one.image is None else fetch(one.image), *_said(one)) for one in samples]


def _said(sample: Sample) -> tuple[dict[str, list[str]], str | None, str | None]:
    texts = {view: list(dict.fromkeys(captions)) for view, captions in sample.texts.items()}
    return {view: found for view, found in texts.items() if found or view == ""}, sample.label, sample.group


@pytest.fixture(autouse=True, scope="module")
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


def target(folder: Path, kind: str, name: str) -> Path:
    return folder / (f"{name}.parquet" if kind == "parquet" else name)


# Everything comes back

WORD = st.text(st.characters(codec="utf-8"), max_size=12)
CAPTION = st.one_of(
    WORD, st.sampled_from(["", " ", " a ", "two\nlines", "\ufeffmark", "a\r\nb", "\u2028", "two", "狗"])
)
NAME = st.one_of(
    st.integers(0, 999).map(str),
    st.sampled_from(["cats/a.jpg", "cats/b.PNG", "a b.png", "../up.jpg", "/root.jpg", "x/./y.jpg", "000000000"]),
    st.sampled_from(["00000/000000001.jpg", "__meta__", "train/000001", "a.tar", "007", "-1", " 1", "c:\\d.jpg"]),
    WORD.filter(bool),
)


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    names = draw(st.lists(NAME, min_size=1, max_size=5, unique_by=str.casefold))
    views = draw(st.sampled_from([("",), ("",), ("", "syn")]))
    tag = st.none() | WORD.filter(bool) | st.sampled_from(["7", "07", " 7", "cat"])
    return [
        Sample(
            name,
            draw(st.sampled_from(PICTURES)),
            {view: draw(st.lists(CAPTION, max_size=3)) for view in views},
            draw(tag),
            draw(tag),
        )
        for name in names
    ]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(samples(), st.sampled_from(["folder", "shards", "chinese-clip"]), st.sampled_from(list(FORMATS)))
def test_two_conversions_in_a_row_lose_nothing(given_samples: list[Sample], first: str, second: str) -> None:
    source = from_samples(given_samples)
    folder = Path(tempfile.mkdtemp())
    try:
        one = convert(source, target(folder, first, "one"), first, per_file=2)
        assert told(pairs(one.uri)) == told(source)
        two = convert(one.uri, target(folder, second, "two"), second, per_file=2)
        assert told(pairs(two.uri)) == told(source)
        assert two.samples == len(source)
        assert not list(folder.glob(".*"))
    finally:
        shutil.rmtree(folder)


CASES = {
    "names": [Sample(name, PICTURES[0], {"": [name]}) for name in ("a/b.jpg", "a/c.jpg", "d.png")],
    "numbers": [Sample(name, PICTURES[0], {"": ["x", "y"]}, label=name) for name in ("7", "12", "1076345")],
    "pictures alone": [Sample(f"{n}.png", data) for n, data in enumerate(PICTURES)],
    "labels alone": [Sample(f"{n}.png", PICTURES[n], label="ab"[n % 2]) for n in range(3)],
    "groups": [
        Sample(str(n), PICTURES[n], {"": ["x"], "syn": ["y", "z"][:n]}, None, "g" if n else None) for n in range(3)
    ],
    "crossed": [Sample(str(n), PICTURES[n], {"": [["x", "y"], ["y", "x"], ["z", "x", "y"]][n]}) for n in range(3)],
    "missing captions": [Sample(str(n), PICTURES[n], {"": ["a"] * (n == 1)}) for n in range(3)],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_every_pair_of_formats(tmp_path: Path, case: str, first: str, second: str) -> None:
    source = from_samples(CASES[case])
    one = convert(source, target(tmp_path, first, "one"), first)
    assert told(pairs(one.uri)) == told(source)
    two = convert(one.uri, target(tmp_path, second, "two"), second)
    assert told(pairs(two.uri)) == told(source)


WORDS = [Sample(f"line {n}", None, {"": [f"caption {n}", "more"], "syn": ["made"] * n}, "x") for n in range(3)]


def test_words_alone_fit_in_shards_and_parquet_only(tmp_path: Path) -> None:
    source = from_samples(WORDS)
    for kind, name in (("shards", "s"), ("parquet", "p.parquet")):
        made = convert(source, tmp_path / name, kind)
        assert made.uri == f"{tmp_path / name}?image=none"
        assert told(pairs(made.uri)) == told(source)
    for kind in ("folder", "chinese-clip"):
        with pytest.raises(DataError, match=f"there are no pictures, and {kind} needs them"):
            convert(source, tmp_path / kind, kind)


def test_drawn_scenes_become_png(tmp_path: Path) -> None:
    source = pairs("scenes:zeroshot?n=6&copies=2")
    for kind in FORMATS:
        made = pairs(convert("scenes:zeroshot?n=6&copies=2", target(tmp_path, kind, kind), kind).uri)
        assert [_said(made[n]) for n in range(12)] == [_said(source[n]) for n in range(12)]
        assert [made[n].id for n in range(12)] == [source[n].id for n in range(12)]
        for index in range(12):
            data = fetch(made[index].picture)
            assert isinstance(data, bytes)
            with Image.open(io.BytesIO(data)) as image:
                assert image.format == "PNG"
                assert np.array_equal(np.asarray(image), np.asarray(source[index].image))


# The layouts as others know them


def test_a_folder_keeps_the_names_of_files(tmp_path: Path) -> None:
    convert(from_samples(CASES["names"]), tmp_path / "out", "folder")
    rows = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    assert rows[0] == {"file_name": "a/b.jpg", "captions": ["a/b.jpg"]}
    assert (tmp_path / "out/a/b.jpg").read_bytes() == PICTURES[0]
    convert(from_samples(CASES["numbers"]), tmp_path / "numbered", "folder")
    row = json.loads((tmp_path / "numbered/metadata.jsonl").read_text().splitlines()[1])
    assert row == {
        "file_name": "00000/000000001.jpg",
        "clipdistill_id": "12",
        "captions": ["x", "y"],
        "label": "12",
    }


def test_shards_are_laid_out_as_img2dataset_does(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    few = [Sample(f"{n}.jpg", PICTURES[n], {"": [f"a {n}", "b"][: 1 + n % 2]}, str(n)) for n in range(5)]
    convert(from_samples(few), tmp_path / "out", "shards", per_file=2)
    names = ["00000", "00001", "00002"]
    files = [f"{name}{ending}" for name in names for ending in (".parquet", ".tar", "_stats.json")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == files
    with tarfile.open(tmp_path / "out/00000.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert list(found) == [
        f"{key}.{e}" for key, p in (("000000", "jpg"), ("000001", "png")) for e in (p, "txt", "json", "cls")
    ]
    assert found["000000.jpg"] == PICTURES[0]
    assert found["000000.txt"] == b"a 0"
    assert found["000001.txt"] == b"a 1\nb"
    facts = json.loads(found["000000.json"])
    assert {"key": "000000", "caption": "a 0", "status": "success", "width": 9, "height": 7}.items() <= facts.items()
    assert json.loads(found["000001.json"])["caption"] == ["a 1", "b"]
    sidecar = parquet.read_table(tmp_path / "out/00000.parquet").to_pylist()
    assert [(row["key"], row["caption"], row["clipdistill_id"]) for row in sidecar] == [
        ("000000", "a 0", "0.jpg"),
        ("000001", "a 1\nb", "1.jpg"),
    ]
    assert sidecar[0].keys() == facts.keys()
    stats = json.loads((tmp_path / "out/00002_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["status_dict"]) == (1, 1, {"success": 1})


def test_chinese_clip_joins_the_pictures_of_a_text(tmp_path: Path) -> None:
    many = [
        Sample(str(n), PICTURES[n], {"": captions})
        for n, captions in enumerate([["包", "红"], ["红"], [], ["红", "包"]])
    ]
    convert(from_samples(many), tmp_path / "MUGE" / "train", "chinese-clip")
    assert sorted(path.name for path in (tmp_path / "MUGE").iterdir()) == ["train_imgs.tsv", "train_texts.jsonl"]
    lines = [line.split("\t") for line in (tmp_path / "MUGE/train_imgs.tsv").read_text().splitlines()]
    assert [(name, base64.b64decode(text)) for name, text in lines] == [(str(n), PICTURES[n]) for n in range(4)]
    rows = [json.loads(line) for line in (tmp_path / "MUGE/train_texts.jsonl").read_text("utf-8").splitlines()]
    # The last picture tells the second text first, so the first one comes again behind it.
    assert rows == [
        {"text_id": 1, "text": "包", "image_ids": [0]},
        {"text_id": 2, "text": "红", "image_ids": [0, 1, 3]},
        {"text_id": 3, "text": "包", "image_ids": [3]},
    ]


def test_what_chinese_clip_has_no_place_for_stands_beside_it(tmp_path: Path) -> None:
    few = [Sample("a/b.jpg", PICTURES[0], {"": ["x"], "syn": ["made"]}, "bag"), Sample("c", PICTURES[1], {"": []})]
    convert(from_samples(few), tmp_path / "train", "chinese-clip")
    rows = [json.loads(line) for line in (tmp_path / "train_samples.jsonl").read_text().splitlines()]
    assert rows == [
        {"image_id": 1, "clipdistill_id": "a/b.jpg", "syn_text": ["made"], "label": "bag"},
        {"image_id": 2, "clipdistill_id": "c"},
    ]
    (tmp_path / "train_samples.jsonl").write_text('{"image_id": 1, "label": 3}')
    with pytest.raises(DataError, match=r"train_samples.jsonl:1: found .*, expected"):
        pairs(tmp_path / "train")


def test_the_library_datasets_reads_the_parquet_that_is_written(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    few = [Sample(f"{n}.jpg", PICTURES[n], {"": [f"a {n}", "b"]}, "cat", "g") for n in range(5)]
    convert(from_samples(few), tmp_path / "out", "parquet", per_file=2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"0000{n}.parquet" for n in range(3)]
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), split="train")
    assert isinstance(found.features["image"], datasets.Image)
    assert found[3]["image"].size == (9, 7)
    assert found[3]["caption"] == ["a 3", "b"]
    assert (found[3]["clipdistill_id"], found[3]["label"], found[3]["group"]) == ("3.jpg", "cat", "g")


# What goes wrong


def test_broken_pictures_are_copied_and_missing_ones_told(tmp_path: Path) -> None:
    broken = PICTURES[0][:100]
    (tmp_path / "empty.jpg").touch()
    given_samples = [
        Sample("a.webp", broken, {"": ["x"]}),
        Sample("b.jpg", tmp_path / "lost.jpg", {"": ["x"]}),
        Sample("c.jpg", tmp_path / "empty.jpg", {"": ["x"]}),
        Sample("d.jpg", b"no picture", {"": ["x"]}),
    ]
    for kind in FORMATS:
        made = convert(from_samples(given_samples), target(tmp_path, kind, kind), kind)
        assert told(pairs(made.uri)) == [
            ("a.webp", broken, {"": ["x"]}, None, None),
        ]
        assert [name for name, _ in made.skipped] == ["b.jpg", "c.jpg", "d.jpg"]
        assert "there is no such file" in made.skipped[0][1]
        assert "the file is empty" in made.skipped[1][1]
        assert "not a picture" in made.skipped[2][1]
    with pytest.raises(DataError, match=r"none of the 1 samples can be read; the first: .*no such file"):
        convert(from_samples(given_samples[1:2]), tmp_path / "none", "shards")
    assert not (tmp_path / "none").exists()


def test_files_that_are_no_pictures_are_not_carried_away(tmp_path: Path) -> None:
    """A table of strangers names what it likes, and what is converted may be passed on."""
    desk = tmp_path / "desk"
    desk.mkdir()
    (tmp_path / "id_rsa").write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    (tmp_path / "letter.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (desk / "a.png").write_bytes(picture(3, "png"))
    names = ["a.png", "../id_rsa", f"{tmp_path}/id_rsa", "../letter.eps"]
    (desk / "list.jsonl").write_text("".join(json.dumps({"image": name, "text": name}) + "\n" for name in names))
    for kind in FORMATS:
        made = convert(desk / "list.jsonl", target(tmp_path, kind, kind), kind)
        assert [one for _, *one in told(pairs(made.uri))] == [[picture(3, "png"), {"": ["a.png"]}, None, None]]
        assert ["id_rsa" in name for name, _ in made.skipped] == [True, True, False]
        assert "id_rsa: not a picture: it is none of" in made.skipped[0][1]
        assert "letter.eps: EPS files are not read" in made.skipped[2][1]


class Failing:
    """A source that breaks in the middle of the second reading."""

    uri, fingerprint = "failing", "0"

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Sample:
        self.asked += 1
        if self.asked == 35:
            raise KeyboardInterrupt
        return Sample(f"{index}.jpg", PICTURES[0], {"": ["x"]})


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_is_left_of_a_conversion_that_was_stopped(tmp_path: Path, kind: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(Failing(), target(tmp_path, kind, "out"), kind, per_file=4)
    assert list(tmp_path.iterdir()) == []


ONE = Sample("a.jpg", PICTURES[0], {"": ["x"]})


@pytest.mark.parametrize(
    ("given_samples", "message"),
    [
        ([ONE, replace(ONE, id="b", image=None)], "1 of 2 samples have a picture; convert these apart"),
        ([replace(ONE, texts={"old": ["x"]})], "a.jpg has the text view 'old', which no format has a place for"),
        ([replace(ONE, texts={"": ["\ud800"]})], r"'a.jpg' has '\\ud800', which is not Unicode text"),
    ],
)
def test_what_no_format_holds_is_refused_before_anything_is_written(
    tmp_path: Path, given_samples: Sequence[Sample], message: str
) -> None:
    for kind in FORMATS:
        with pytest.raises(DataError, match=message):
            convert(from_samples(given_samples), target(tmp_path / "new", kind, "out"), kind)
    assert list(tmp_path.iterdir()) == []


def test_synthetic_captions_alone_are_not_for_chinese_clip(tmp_path: Path) -> None:
    source = from_samples([replace(ONE, texts={"syn": ["made"]})])
    with pytest.raises(DataError, match="synthetic captions alone"):
        convert(source, tmp_path / "c", "chinese-clip")
    for kind in ("folder", "shards", "parquet"):
        assert told(pairs(convert(source, target(tmp_path, kind, kind), kind).uri)) == told(source)


def test_names_that_one_file_system_cannot_tell_apart(tmp_path: Path) -> None:
    source = from_samples([replace(ONE, id="a.jpg"), replace(ONE, id="a.jpg/b.jpg")])
    with pytest.raises(DataError, match="takes the name for that of an earlier sample, or for its folder"):
        convert(source, tmp_path / "out", "folder")
    assert list(tmp_path.iterdir()) == []


def test_destinations(tmp_path: Path) -> None:
    source = from_samples([ONE])
    for name in ("there", "b.parquet", "b_imgs.tsv"):
        (tmp_path / name).mkdir()
    assert convert(source, tmp_path / "there", "folder").uri == str(tmp_path / "there")
    assert convert(source, tmp_path / "a.parquet").format == "parquet"
    convert(source, tmp_path / "train", "chinese-clip")
    for name, kind in (
        ("there", "shards"),
        ("a.parquet", None),
        ("b.parquet", None),  # an empty folder, but a file is to be written
        ("train", "chinese-clip"),
        ("b", "chinese-clip"),
    ):
        with pytest.raises(DataError, match="there is something already"):
            convert(source, tmp_path / name, kind)
    with pytest.raises(DataError, match="say what to write: to=folder, shards, chinese-clip, parquet"):
        convert(source, tmp_path / "new")
    with pytest.raises(DataError, match=r"there is no format 'shard' to write\. Did you mean 'shards'\?"):
        convert(source, tmp_path / "new", "shard")
    with pytest.raises(DataError, match="the name is that of a parquet file"):
        convert(source, tmp_path / "new.parquet", "folder")
    with pytest.raises(DataError, match="samples per file: found 0"):
        convert(source, tmp_path / "new", "shards", per_file=0)


def test_every_ending_that_is_written_is_one_that_shards_know() -> None:
    from clipdistill.data.convert import _ENDINGS

    assert set(_ENDINGS.values()) <= set(IMAGES)
