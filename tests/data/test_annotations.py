"""Annotation files in the formats they are given out in: all captions of a picture are one sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipdistill.data.images import decode
from clipdistill.data.sources import pairs
from clipdistill.errors import DataError

CHINESE = """COCO_val2014_000000000042#zhm#0\t一只狗
COCO_train2014_000000000007#zhm#0 一只 猫
COCO_val2014_000000000042#zhm#1\t狗
"""


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (90, 10, 20)).save(path)
    return path


def told(uri: str | Path) -> list[tuple[str, list[str]]]:
    source = pairs(uri)
    samples = [source[index] for index in range(len(source))]
    return [(sample.id, sample.captions) for sample in samples]


def problem(uri: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        pairs(uri)
    return str(caught.value)


def coco(**changes: Any) -> str:
    data = {
        "info": {"year": 2017},
        "images": [
            {"id": 42, "file_name": "000000000042.jpg", "height": 6, "width": 8, "license": 3},
            {"id": 7, "file_name": "000000000007.jpg"},
            {"id": 9, "file_name": "000000000009.jpg"},
        ],
        "annotations": [
            {"image_id": 7, "id": 1, "caption": "A cat."},
            {"image_id": 42, "id": 2, "caption": "A dog.\n"},
            {"image_id": 42, "id": 3, "caption": "One dog runs."},
            {"image_id": 42, "id": 4, "caption": "A dog."},
        ],
    }
    return json.dumps(data | changes)


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "captions_val2017.json").write_text(coco())
    for name in ("000000000042", "000000000007"):
        picture(tmp_path / "coco" / "val2017" / f"{name}.jpg")
    return tmp_path / "coco"


# COCO


def test_coco_captions_find_their_pictures(coco_folder: Path) -> None:
    path = coco_folder / "annotations" / "captions_val2017.json"
    expected = [("000000000042.jpg", ["A dog.", "One dog runs."]), ("000000000007.jpg", ["A cat."])]
    assert told(path) == [*expected, ("000000000009.jpg", [])]
    assert decode(pairs(path)[0].picture).size == (8, 6)
    with pytest.raises(DataError, match="there is no such file"):
        decode(pairs(path)[2].picture)
    (coco_folder / "val2017").rename(coco_folder / "elsewhere")
    assert "no folder of pictures found; looked for val2017, images/val2017" in problem(path)
    assert told(f"{path}?images={coco_folder / 'elsewhere'}")[:2] == expected
    assert pairs(f"{path}?images={coco_folder}")[0].image == coco_folder / "elsewhere" / "000000000042.jpg"
    assert pairs(f"{path}?images={coco_folder}&caption=none")[0].texts == {}
    assert "there is no folder nowhere, chosen by images=nowhere" in problem(f"{path}?images=nowhere")


def test_pictures_that_are_not_there_or_there_twice(coco_folder: Path, tmp_path: Path) -> None:
    path = coco_folder / "annotations" / "captions_val2017.json"
    other = picture(tmp_path / "other" / "x.jpg").parent
    assert f"{path}: images[0]: none of the 3 pictures is in {other}, the first is called 000000000042.jpg" in problem(
        f"{path}?images={other}"
    )
    for name in ("train", "test"):
        picture(other / name / "000000000007.jpg")
    assert "images[1]: 000000000007.jpg may be t" in problem(f"{path}?images={other}")


BAD_COCO: list[tuple[dict[str, Any], str]] = [
    ({"annotations": [{"image_id": 5, "caption": "x"}]}, "annotations[0]: image_id is 5, which no entry of images has"),
    ({"annotations": [{"image_id": 7}]}, "annotations[0]: found None for 'caption', expected str"),
    ({"annotations": [{"image_id": 7, "category_id": 1}]}, "annotations[0]: found objects, not captions"),
    ({"annotations": [3]}, "annotations[0]: found 3 for 'image_id'"),
    (
        {"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]},
        "images[1]: the file a is that of an earl",
    ),
    ({"images": [{"id": 1}]}, "images[0]: found None for 'file_name', expected str"),
    ({"images": [], "annotations": []}, "it names no pictures"),
    ({"images": {}}, "found the keys info, images, annotations, expected COCO's captions"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_COCO)
def test_bad_entries_are_named_by_number(coco_folder: Path, changes: dict[str, Any], message: str) -> None:
    path = coco_folder / "annotations" / "captions_val2017.json"
    path.write_text(coco(**changes))
    assert f"{path}: {message}" in problem(path)


def test_other_json_is_refused(coco_folder: Path) -> None:
    path = coco_folder / "annotations" / "captions_val2017.json"
    assert "split=test is for Karpathy's files" in problem(f"{path}?split=test")
    assert "an annotation file has no columns to choose" in problem(f"{path}?caption=title")
    assert "images=x is for annotation files only" in problem(f"{coco_folder / 'val2017'}?images=x")
    path.write_text("[1, 2]")
    assert "found a list, expected COCO's captions" in problem(path)
    path.write_text('{"images": ')
    assert f"{path}: not JSON" in problem(path)


# Karpathy's splits


def entry(name: str, split: str, *captions: str, **more: str) -> dict[str, Any]:
    sentences = [{"tokens": caption.split(), "raw": caption, "imgid": 0, "sentid": 0} for caption in captions]
    return {"filename": name, "imgid": 0, "split": split, "sentences": sentences, "sentids": [0], **more}


def test_karpathys_coco(tmp_path: Path) -> None:
    images = [
        entry("COCO_val2014_1.jpg", "test", "A dog.", "Dogs.", filepath="val2014", cocoid="1"),
        entry("COCO_val2014_2.jpg", "restval", "A cat.", filepath="val2014"),
        entry("COCO_train2014_3.jpg", "train", "A car.", filepath="train2014"),
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images, "dataset": "coco"}))
    for image in images:
        picture(tmp_path / image["filepath"] / image["filename"])
    assert told(f"{path}?split=test") == [("COCO_val2014_1.jpg", ["A dog.", "Dogs."])]
    for both in ("train,restval", "train+restval"):
        source = pairs(f"{path}?split={both}&images={tmp_path}")
        assert [source[row].image for row in range(len(source))] == [
            tmp_path / "val2014" / "COCO_val2014_2.jpg",
            tmp_path / "train2014" / "COCO_train2014_3.jpg",
        ]
    assert "holds several splits. Choose ?split=restval or ?split=test or ?split=train" in problem(path)
    assert "unknown split 'tets'. Did you mean 'test'? Known: restval, test, train." in problem(f"{path}?split=tets")
    path.write_text(json.dumps({"images": [images[0], {**images[0], "sentences": [{}], "filename": "x"}]}))
    assert "images[1]: found None for 'raw', expected str" in problem(path)


def test_karpathys_flickr30k(tmp_path: Path) -> None:
    path = tmp_path / "dataset_flickr30k.json"
    path.write_text(json.dumps({"images": [entry("1.jpg", "test", "Two men."), entry("2.jpg", "val", "x")]}))
    picture(tmp_path / "flickr30k-images" / "1.jpg")
    assert told(f"{path}?split=test") == [("1.jpg", ["Two men."])]
    assert told(f"{path}?split=test&images={tmp_path / 'flickr30k-images'}") == [("1.jpg", ["Two men."])]


# Lines


def test_flickr30k_tokens(tmp_path: Path) -> None:
    path = tmp_path / "results_20130124.token"
    path.write_text("1.jpg#0\tTwo men , one hat .\n1.jpg#1\tMen .\n\n2.jpg#0\tA #1 fan .\n")
    picture(tmp_path / "images" / "1.jpg")
    assert told(path) == [("1.jpg", ["Two men , one hat .", "Men ."]), ("2.jpg", ["A #1 fan ."])]
    with path.open("a") as file:
        file.write("3.jpg A man .\n")
    assert f"{path}:5: found '3.jpg A man .', expected 1000092795.jpg#0, a tab and a caption" in problem(path)
    assert "split=test is for Karpathy's" in problem(f"{path}?split=test")


def test_coco_cn_and_flickr30k_cn(tmp_path: Path) -> None:
    path = tmp_path / "coco-cn_test.txt"
    path.write_text(CHINESE, "utf-8")
    for name in ("val2014/COCO_val2014_000000000042.jpg", "train2014/COCO_train2014_000000000007.jpg"):
        picture(tmp_path / "coco" / name)
    dog, cat = "COCO_val2014_000000000042", "COCO_train2014_000000000007"
    for uri in (str(path), f"{path}?images={tmp_path / 'coco'}"):
        assert told(uri) == [(dog, ["一只狗", "狗"]), (cat, ["一只 猫"])]
        assert pairs(uri)[0].image == (tmp_path / "coco" / "val2014" / f"{dog}.jpg")
    path.write_text("1007129816.jpg#0\t戴着帽子的男人\n1007129816.jpg#1 男人\n", "utf-8")
    picture(tmp_path / "flickr30k-images" / "1007129816.jpg")
    assert told(f"{path}?images={tmp_path / 'flickr30k-images'}") == [("1007129816.jpg", ["戴着帽子的男人", "男人"])]
    path.write_text("1007129816\t戴着帽子的男人\n", "utf-8")
    assert told(path) == [("1", ["1007129816\t戴着帽子的男人"])]  # without a number nothing says that it is no caption
    assert told(f"{path}?images={tmp_path / 'flickr30k-images'}") == [("1007129816", ["戴着帽子的男人"])]
    path.write_bytes("1.jpg#0\tx\n1.jpg#1\t狗\n".encode("gbk"))
    assert f"{path}:2: found byte 0xb9, expected UTF-8" in problem(path)


# Tables of links, and CLIP-KD's tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "Train_GCC-training.tsv",
            "a very typical bus station\thttp://lh6.example.org/a.jpg\nx\thttps://e.org/b.jpg\n",
        ),
        ("cc12m.tsv", "https://example.org/a.jpg\ta bus\n"),
        ("cc3m.tsv", "caption\turl\na bus\thttps://example.org/a.jpg\n"),
        ("laion.csv", 'url,caption\nhttps://example.org/a.jpg,"a, bus"\n'),
    ],
)
def test_tables_of_links_say_to_download(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    message = problem(tmp_path / name)
    assert "found captions and links" in message
    assert "img2dataset" in message
    assert "{00000.." in message


def test_links_beside_pictures_or_in_captions_are_no_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("filepath,title,url\na.jpg,a bus,https://example.org/a.jpg\n")
    assert told(path) == [("a.jpg", ["a bus"])]
    path.write_text("caption,url\na bus,https://example.org/a.jpg\n")
    assert told(f"{path}?image=none") == [("2", ["a bus"])]


def test_clip_kds_table(tmp_path: Path) -> None:
    """Its rows are ``title`` and ``filepath``, separated by tabs, in a file called ``.csv``."""
    path = tmp_path / "cc3m_train.csv"
    path.write_text("title\tfilepath\na very typical, old bus station\ttrain/0/1.jpg\n")
    picture(tmp_path / "train" / "0" / "1.jpg")
    assert told(path) == [("train/0/1.jpg", ["a very typical, old bus station"])]
    assert decode(pairs(path)[0].picture).size == (8, 6)
