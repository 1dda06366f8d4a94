"""Pictures without captions and captions without pictures: they open, batch and are checked as what they are."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clipdistill.data.batches import Batches, Inlet
from clipdistill.data.check import check, render
from clipdistill.data.order import Order
from clipdistill.data.samples import Sample, Source, gives
from clipdistill.data.sources import from_samples, pairs
from clipdistill.data.sources.lines import Lines
from clipdistill.data.views import Transform
from clipdistill.data.workers import load
from clipdistill.errors import DataError

SEES = Transform(resize=(4, 4))


def jpeg(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (colour, 5, 9)).save(buffer, "JPEG")
    return buffer.getvalue()


def tokenize(captions: Sequence[str]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([[len(caption)] for caption in captions])}


def every(source: Source) -> list[Sample]:
    return [source[index] for index in range(len(source))]


def told(uri: str | Path) -> list[tuple[Any, ...]]:
    return [(s.id, s.image is not None, s.texts, s.label, s.group) for s in every(pairs(uri))]


def problem(uri: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        pairs(uri)
    return str(caught.value)


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    else:
        tab = "\t" if path.suffix == ".tsv" else ","
        path.write_text("\n".join(tab.join(map(str, row)) for row in [rows[0], *(r.values() for r in rows)]), "utf-8")
    return path


# Captions alone


def test_a_text_file_holds_one_caption_per_line(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes("\ufeff a cat\r\n\n \t\n一只猫 \nthe end".encode())
    assert told(path) == [
        ("1", False, {"": ["a cat"]}, None, None),
        ("4", False, {"": ["一只猫"]}, None, None),
        ("5", False, {"": ["the end"]}, None, None),
    ]
    assert gives(pairs(path)) == "T"
    before = pairs(path).fingerprint
    assert before == pairs(str(path)).fingerprint
    path.write_text("a cat")
    assert pairs(path).fingerprint != before


def test_a_long_text_file_is_left_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("\n".join(f"caption {n} " + "x" * 200 for n in range(20_000)))
    source = pairs(path)
    assert isinstance(source, Lines)
    held = sum(part.itemsize * len(part) for part in (source.numbers, source.starts, source.sizes))
    assert held == 24 * 20_000
    assert source[19_999].captions == ["caption 19999 " + "x" * 200]
    with pytest.raises(IndexError):
        source[20_000]


def test_broken_text_files_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nb\xff\n")
    assert problem(path) == f"{path}:2: found byte 0xff, expected UTF-8 text; save the file as UTF-8"
    path.write_bytes(b"\n \n")
    assert problem(path) == f"{path}: there are no captions; expected one per line"
    assert f"a text file of captions has no columns to choose; name {path}" in problem(f"{path}?caption=text")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_without_a_column_of_pictures_is_captions_alone(kind: str, tmp_path: Path) -> None:
    rows = [{"caption": "a cat", "group": "g"}, {"caption": "a dog", "group": "g"}, {"caption": "", "group": "h"}]
    first = {"csv": 2, "tsv": 2}.get(kind, 1)  # below the header
    assert told(write_table(tmp_path / f"list.{kind}", rows)) == [
        (str(first), False, {"": ["a cat"]}, None, "g"),
        (str(first + 1), False, {"": ["a dog"]}, None, "g"),
        (str(first + 2), False, {"": [""]}, None, "h"),
    ]


def test_lists_and_synthetic_captions_without_pictures(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": ["one", "two", "one"], "syn_text": "three"}, {"text": [], "syn_text": None}]
    assert [sample.texts for sample in every(pairs(write_table(tmp_path / "a.jsonl", rows)))] == [
        {"": ["one", "two"], "syn": ["three"]},
        {"": []},
    ]


@pytest.mark.parametrize("name", ["img", "image_path", "filename", "Image", "path"])
def test_a_misspelt_column_of_pictures_is_not_taken_for_captions_alone(name: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / "list.csv", [{name: "a.jpg", "text": "x"}])
    assert problem(path) == (
        f"{path}: no column for picture paths, expected one of: file_name, image, filepath. The column '{name}' looks "
        f"like one: open list.csv?image={name}, or list.csv?image=none for the captions alone."
    )
    assert gives(pairs(f"{path}?image={name}")) == "IT"
    assert told(f"{path}?image=none") == [("2", False, {"": ["x"]}, None, None)]


def test_the_pictures_of_a_table_can_be_left_aside(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv", [{"filepath": "a.jpg", "title": "x"}, {"filepath": "a.jpg", "title": "y"}])
    assert [(name, texts) for name, _, texts, _, _ in told(f"{path}?image=none")] == [
        ("2", {"": ["x"]}),
        ("3", {"": ["y"]}),
    ]
    assert "there is no column 'imgae', chosen by image=imgae" in problem(f"{path}?image=imgae")
    assert "image=none and caption=none leave nothing to read" in problem(f"{path}?image=none&caption=none")
    bare = write_table(tmp_path / "b.csv", [{"filepath": "a.jpg", "label": "x"}])
    assert "b.csv: no column for captions" in problem(f"{bare}?image=none")


# Pictures alone


def test_a_folder_opens_without_captions(tmp_path: Path) -> None:
    for name in ("sub/two-dogs.png", "sub/cat.png"):
        (tmp_path / "flat" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "flat" / name)
    for name in ("old_car/1.png", "sea-lion/2.png"):
        (tmp_path / "classes" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / "classes" / name)
    assert gives(pairs(tmp_path / "flat")) == "IT"
    assert told(f"{tmp_path}/flat?caption=none") == [
        ("sub/cat.png", True, {}, None, None),
        ("sub/two-dogs.png", True, {}, None, None),
    ]
    assert gives(pairs(f"{tmp_path}/flat?caption=none")) == "I"
    assert [label for _, _, texts, label, _ in told(f"{tmp_path}/classes?caption=none") if not texts] == [
        "old_car",
        "sea-lion",
    ]
    (tmp_path / "flat" / "sub" / "cat.txt").write_text("a cat")
    (tmp_path / "flat" / "sub" / "two-dogs.txt").write_text("two dogs")
    assert [texts for _, _, texts, _, _ in told(f"{tmp_path}/flat?caption=none")] == [{}, {}]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_opens_without_captions(kind: str, tmp_path: Path) -> None:
    rows = [{"file_name": "a.jpg", "text": "x", "syn_text": "y"}, {"file_name": "a.jpg", "text": "z", "syn_text": "y"}]
    path = write_table(tmp_path / f"metadata.{kind}", rows)
    assert told(f"{path}?caption=none") == [("a.jpg", True, {}, None, None)]
    assert told(f"{tmp_path}?caption=none") == told(f"{path}?caption=none")
    assert gives(pairs(tmp_path)) == "IT"
    bare = write_table(tmp_path / f"bare.{kind}", [{"file_name": "a.jpg", "other": "x"}])
    assert "no column for captions" in problem(bare)
    assert told(f"{bare}?caption=none") == [("a.jpg", True, {}, None, None)]


def test_chinese_clips_layout_opens_without_captions(tmp_path: Path) -> None:
    (tmp_path / "train_imgs.tsv").write_text("7\tAAAA\n")
    (tmp_path / "train_texts.jsonl").write_text('{"text_id": 1, "text": "x", "image_ids": [7]}\n')
    assert gives(pairs(tmp_path / "train")) == "IT"
    assert told(f"{tmp_path}/train?caption=none") == [("7", True, {}, None, None)]
    assert "has no columns to choose" in problem(f"{tmp_path}/train?caption=text")


def test_missing_captions_do_not_make_a_source_of_pictures() -> None:
    silent = [Sample(str(n), jpeg(n), {"": []}) for n in range(3)]
    assert gives(from_samples(silent)) == "IT"
    assert gives(from_samples([Sample("a", jpeg(1), label="x")])) == "I"
    mixed = [Sample("a", jpeg(1)), Sample("b", None, {"": ["x"]})]
    assert gives(from_samples(mixed)) == "IT"


def test_fingerprints_tell_a_picture_from_none() -> None:
    prints = [from_samples([Sample("a", image, {"": ["x"]})]).fingerprint for image in (None, jpeg(1))]
    assert prints[0] != prints[1]


# Batches


def test_a_batch_of_captions_alone_has_no_pixels_and_no_keys_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nTwo")
    batches = Batches(pairs(tmp_path / "a.txt"), {"S": Inlet(None, tokenize, ("",))}, None)
    batch = next(load(batches, [(0, [2, 0, 1])], workers=1))
    assert (batch.ids, batch.pixels, batch.skipped) == (["3", "1", "2"], {}, [])
    assert batch.tokens["S"]["input_ids"].tolist() == [[3], [3], [3]]
    assert batch.groups[:, 0].tolist() == [-1, -1, -1]
    assert batch.groups[0, 1] == batch.groups[2, 1] != batch.groups[1, 1]


def test_a_batch_of_pictures_alone_has_no_tokens_and_no_keys_of_captions() -> None:
    source = from_samples([Sample(str(n), jpeg(n // 2), group="g") for n in range(4)])
    batch = Batches(source, {"S": Inlet(SEES, None)}, None).assemble(*next(Order(4, 4, 0).walk(0, 1)))
    assert (batch.tokens, batch.skipped, len(batch.ids)) == ({}, [], 4)
    assert batch.pixels["S"]["pixel_values"].shape == (4, 3, 4, 4)
    assert batch.groups[:, 1].tolist() == [-1] * 4
    assert len(set(batch.groups[:, 0].tolist())) == 2
    assert len(set(batch.groups[:, 2].tolist())) == 1


def test_what_a_sample_lacks_is_the_reason_it_is_skipped() -> None:
    source = from_samples(
        [Sample("words", None, {"": ["x"]}), Sample("sight", jpeg(1)), Sample("both", jpeg(2), {"": ["y"]})]
    )
    batch = Batches(source, {"S": Inlet(SEES, tokenize, ("",))}, None).assemble(0, [0, 1, 2])
    assert batch.ids == ["both"]
    assert batch.skipped == [("words", "it has no picture"), ("sight", "it has no caption")]


# The check


def test_the_check_of_captions_alone_counts_them_and_misses_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo words\nOne\n")
    report = check(pairs(tmp_path / "a.txt"), against=from_samples([Sample("t", jpeg(1), {"": ["two words"]})], "test"))
    assert (report.samples, report.pictures, report.captions) == (3, 0, 3)
    assert (report.width, report.unreadable) == (None, {})
    assert report.errors == []
    assert report.warnings == ["1 caption equal to an earlier one (33.3%)", "1 caption also in test"]
    assert "pictures       0\n" in render(report)


def test_the_check_of_a_table_of_captions_alone_names_empty_ones(tmp_path: Path) -> None:
    report = check(pairs(write_table(tmp_path / "a.jsonl", [{"text": "x"}, {"text": ""}, {"text": None}])))
    assert report.errors == ["1 sample without a caption", "1 sample with an empty caption"]


def test_the_check_of_pictures_alone_misses_no_caption(tmp_path: Path) -> None:
    for number, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        (tmp_path / name).write_bytes(jpeg(number // 2))
    (tmp_path / "d.jpg").write_bytes(b"cut")
    report = check(pairs(f"{tmp_path}?caption=none"))
    assert (report.samples, report.pictures, report.captions) == (4, 4, 0)
    assert (report.errors, report.warnings) == (
        ["1 picture cannot be read"],
        ["1 picture identical to an earlier one"],
    )
    assert "captions       0\n" in render(report)


def test_a_label_that_only_some_pictures_have_is_a_warning() -> None:
    report = check(from_samples([Sample("a", jpeg(1), label="x"), Sample("b", jpeg(2))]))
    assert (report.errors, report.warnings) == ([], ["1 picture without a caption or label"])
