"""Benchmarks whose pictures are not all where they should be: none is left out without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipdistill.errors import DataError
from clipdistill.evaluation.suites import open_suite

TENCH, MISSILE = "n01440764", "n03773504"


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


@pytest.mark.parametrize(
    ("stray", "message"),
    [
        ("2.jpg", r"1 pictures lie loose, the first is 2\.jpg"),
        (f"{TENCH}/images/2.jpg", r"n01440764/images: 1 pictures lie too deep, the first is 2\.jpg"),
        (f"{TENCH}/a/b/2.PNG", r"n01440764/a: 1 pictures lie too deep, the first is 2\.PNG"),
        (f"{MISSILE}/images/2.jpg", r"n03773504/images: 1 pictures lie too deep"),
    ],
)
def test_pictures_outside_the_folders_of_classes_are_refused(stray: str, message: str, tmp_path: Path) -> None:
    touch(tmp_path, f"{TENCH}/1.jpg", stray)
    with pytest.raises(DataError, match=message):
        open_suite("imagenet-a", tmp_path)


def test_what_is_hidden_or_no_picture_does_not_count(tmp_path: Path) -> None:
    hidden = [f"{TENCH}/._1.jpg", f"{TENCH}/.thumbnails/1.jpg", "._2.jpg"]
    touch(tmp_path, f"{TENCH}/1.jpg", f"{TENCH}/notes/readme.txt", "README.txt", *hidden)
    source = open_suite("imagenet-a", tmp_path)["imagenet-a"].zeroshot
    assert source is not None
    assert [source[index].id for index in range(len(source))] == [f"{TENCH}/1.jpg"]


def test_coco_1k_is_not_defined_for_fewer_pictures(tmp_path: Path) -> None:
    touch(tmp_path, *(f"val2014/{number}.jpg" for number in range(10)))
    entries = [{"filename": f"{n}.jpg", "split": "test", "sentences": [{"raw": str(n)}]} for n in range(10)]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    assert open_suite("coco", tmp_path)
    with pytest.raises(DataError, match="found 10 test pictures; coco-1k is the mean over 5 galleries of 1,000"):
        open_suite("coco-1k", tmp_path)
