"""Chinese-CLIP's two files of a split, as its documentation describes them, open like any other data."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipdistill.data.check import check
from clipdistill.data.images import content_hash, decode, fetch
from clipdistill.data.samples import Base64Line
from clipdistill.data.sources import pairs
from clipdistill.errors import DataError


def jpeg(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), (colour, 255 - colour, 20)).save(stream, format="JPEG")
    return stream.getvalue()


PICTURES = {11: jpeg(10), 22: jpeg(120), 33: jpeg(250)}
TEXTS = [
    {"text_id": 1, "text": "红色的包", "image_ids": [11, 33]},
    {"text_id": 2, "text": "单肩包", "image_ids": [11]},
    {"text_id": 3, "text": "没有图", "image_ids": []},
]


def write_split(folder: Path, split: str = "train", texts: Any = TEXTS, urlsafe: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    lines = [f"{name}\t{encode(data).decode()}" for name, data in PICTURES.items()]
    (folder / f"{split}_imgs.tsv").write_text("\n".join(lines) + "\n")
    rows = "\n".join(json.dumps(row, ensure_ascii=False) for row in texts)
    (folder / f"{split}_texts.jsonl").write_text(rows + "\n", encoding="utf-8")
    return folder / split


def problem(uri: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        pairs(uri)
    return str(caught.value)


@pytest.mark.parametrize("urlsafe", [False, True])
def test_texts_are_gathered_at_their_pictures(tmp_path: Path, urlsafe: bool) -> None:
    source = pairs(write_split(tmp_path, urlsafe=urlsafe))
    samples = [source[index] for index in range(len(source))]
    assert [(sample.id, sample.captions) for sample in samples] == [
        ("11", ["红色的包", "单肩包"]),
        ("22", []),
        ("33", ["红色的包"]),
    ]
    for sample, data in zip(samples, PICTURES.values(), strict=True):
        assert isinstance(sample.image, Base64Line)
        assert fetch(sample.image) == data
        assert decode(sample.image).tobytes() == decode(data).tobytes()
        assert content_hash(sample.image) == content_hash(data)


@pytest.mark.parametrize(
    "name", ["train", "train_imgs.tsv", "train_texts.jsonl", "lmdb/train", "../photos", "lmdb/../train"]
)
def test_a_split_is_found_by_every_name_it_goes_by(tmp_path: Path, name: str) -> None:
    write_split(tmp_path / "photos")
    (tmp_path / "photos" / "lmdb" / "train" / "pairs").mkdir(parents=True)
    (tmp_path / "photos" / "lmdb" / "train" / "pairs" / "data.mdb").touch()
    assert len(pairs(tmp_path / "photos" / name)) == 3


def test_the_fingerprint_changes_with_texts_and_pictures(tmp_path: Path) -> None:
    known = {pairs(write_split(tmp_path / "a")).fingerprint, pairs(write_split(tmp_path / "b")).fingerprint}
    assert len(known) == 1
    assert pairs(write_split(tmp_path / "c", texts=TEXTS[1:])).fingerprint not in known


def test_a_folder_of_pictures_that_is_called_lmdb_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "lmdb" / "cats").mkdir(parents=True)
    (tmp_path / "lmdb" / "cats" / "a.jpg").write_bytes(jpeg(3))
    assert len(pairs(tmp_path / "lmdb" / "cats")) == 1


def test_several_splits_must_be_told_apart(tmp_path: Path) -> None:
    write_split(tmp_path, "train")
    write_split(tmp_path, "valid")
    assert f"{tmp_path}/train or {tmp_path}/valid" in problem(tmp_path)
    assert "no columns to choose" in problem(f"{tmp_path}/train?caption=text")


@pytest.mark.parametrize("missing", ["train_imgs.tsv", "train_texts.jsonl"])
def test_half_a_split(tmp_path: Path, missing: str) -> None:
    split = write_split(tmp_path)
    (tmp_path / missing).unlink()
    assert f"needs {missing}" in problem(split)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("imgs.tsv", "44 abcd", r"train_imgs.tsv:4: found '44 abcd', expected an image id, a tab"),
        ("imgs.tsv", "44\t", r"train_imgs.tsv:4: found"),
        ("imgs.tsv", "22\tabcd", r"train_imgs.tsv:4: the image id 22 is that of line 2"),
        ("texts.jsonl", "{oops", r"train_texts.jsonl:4: not JSON"),
        ("texts.jsonl", "[" * 100_000, r"train_texts.jsonl:4: not JSON"),
        ("texts.jsonl", '{"text": "a"}', r'train_texts.jsonl:4: found {"text": "a"}, expected'),
        ("texts.jsonl", '{"text": "a", "image_ids": [99]}', r"train_texts.jsonl:4: image_ids names 99"),
    ],
)
def test_a_line_that_means_nothing(tmp_path: Path, file: str, line: str, message: str) -> None:
    split = write_split(tmp_path)
    with (tmp_path / f"train_{file}").open("a") as out:
        out.write(line + "\n")
    assert message in problem(split)


def test_a_damaged_picture_is_met_when_it_is_read(tmp_path: Path) -> None:
    split = write_split(tmp_path)
    with (tmp_path / "train_imgs.tsv").open("a") as file:
        file.write("44\tab!d\n55\tAAAA\n")
    source = pairs(split)
    for index, reason in ((3, r"train_imgs\.tsv:4: its base64 text is damaged"), (4, r"train_imgs\.tsv:5: not a pic")):
        with pytest.raises(DataError, match=reason):
            decode(source[index].image)
    with pytest.raises(DataError, match=r"train_imgs\.tsv:4: its base64"):
        fetch(source[3].image)
    report = check(source)
    assert set(report.unreadable) == {"44", "55"}
    assert report.unreadable["44"].startswith("its base64 text is damaged")
    assert check(pairs(write_split(tmp_path / "other")), source).errors
