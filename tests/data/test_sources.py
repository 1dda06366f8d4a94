"""Every kind of data opens through one function, and every mistake is one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipdistill.data.sources import pairs
from clipdistill.errors import DataError

Rows = list[dict[str, Any]]


def picture(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (colour, 10, 20)).save(path)
    return path


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Rows) -> None:
    lines = [",".join(rows[0])] + [",".join(f'"{value}"' for value in row.values()) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


def told(uri: str | Path) -> list[tuple[Any, ...]]:
    source = pairs(uri)
    return [(s.id, s.captions, s.label, s.group) for s in (source[i] for i in range(len(source)))]


def problem(uri: str | Path) -> str:
    with pytest.raises(DataError) as caught:
        pairs(uri)
    return str(caught.value)


# Folders


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_with_metadata(kind: str, tmp_path: Path) -> None:
    picture(tmp_path / "图片" / "猫.jpg")
    rows = [
        {"file_name": "图片/猫.jpg", "text": "一只猫, 两只狗", "title": "cat", "label": "cat", "group": "g"},
        {"file_name": "b.jpg", "text": "a dog", "title": "dog", "label": "dog", "group": "h"},
        {"file_name": "图片/猫.jpg", "text": "a cat", "title": "cat", "label": "cat", "group": "g"},
        {"file_name": "./图片/猫.jpg", "text": "a cat", "title": "cat", "label": "cat", "group": "g"},
    ]
    WRITERS[kind](tmp_path / f"metadata.{kind}", rows)
    assert told(tmp_path) == [
        ("图片/猫.jpg", ["一只猫, 两只狗", "a cat"], "cat", "g"),
        ("b.jpg", ["a dog"], "dog", "h"),
    ]
    assert pairs(tmp_path)[0].image == tmp_path / "图片" / "猫.jpg"
    assert [captions for _, captions, _, _ in told(f"{tmp_path}?caption=title")] == [["cat"], ["dog"]]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_list_of_captions(kind: str, tmp_path: Path) -> None:
    rows = [{"file_name": "a.jpg", "text": ["one", "two", "one"]}, {"file_name": "b.jpg", "text": []}]
    WRITERS[kind](tmp_path / f"metadata.{kind}", rows)
    assert told(tmp_path) == [("a.jpg", ["one", "two"], None, None), ("b.jpg", [], None, None)]


def test_missing_values_and_labels_without_captions(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "metadata.jsonl",
        [{"file_name": "a.jpg", "label": 3}, {"file_name": "b.jpg", "label": None}, {"file_name": "a.jpg"}],
    )
    assert told(tmp_path) == [("a.jpg", [], "3", None), ("b.jpg", [], None, None)]


def test_sidecar_captions(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    picture(tmp_path / "sub" / "a.JPG")
    picture(tmp_path / "c.png")
    (tmp_path / "b.txt").write_text("\ufeff一只猫\n\n  a cat  \na cat\n", encoding="utf-8")
    (tmp_path / "sub" / "a.txt").write_text("a dog", encoding="utf-8")
    (tmp_path / "README.txt").write_text("not a caption", encoding="utf-8")
    assert told(tmp_path) == [
        ("b.png", ["一只猫", "a cat"], None, None),
        ("c.png", [], None, None),
        ("sub/a.JPG", ["a dog"], None, None),
    ]


def test_class_folders(tmp_path: Path) -> None:
    for name in (
        "sea-lion/2.png",
        "sea-lion/10.png",
        "old_car/1.jpeg",
        ".cache/x.png",
        "old_car/.hidden.png",
    ):
        picture(tmp_path / name)
    assert told(tmp_path) == [
        ("old_car/1.jpeg", ["old car"], "old_car", None),
        ("sea-lion/10.png", ["sea lion"], "sea-lion", None),
        ("sea-lion/2.png", ["sea lion"], "sea-lion", None),
    ]


@pytest.mark.parametrize("folder", ["", "images/"])
def test_file_names_are_the_last_resort(folder: str, tmp_path: Path) -> None:
    picture(tmp_path / f"{folder}two-dogs_on a_beach.webp")
    picture(tmp_path / f"{folder}猫.png")
    assert told(tmp_path) == [
        (f"{folder}two-dogs_on a_beach.webp", ["two dogs on a beach"], None, None),
        (f"{folder}猫.png", ["猫"], None, None),
    ]


def test_a_folder_of_splits_names_them(tmp_path: Path) -> None:
    for split in ("train", "test"):
        picture(tmp_path / split / "a.jpg")
        write_jsonl(tmp_path / split / "metadata.jsonl", [{"file_name": "a.jpg", "text": "x"}])
    assert f"Did you mean {tmp_path}/test or {tmp_path}/train?" in problem(tmp_path)


def test_two_metadata_files_are_one_too_many(tmp_path: Path) -> None:
    for kind in ("jsonl", "csv"):
        WRITERS[kind](tmp_path / f"metadata.{kind}", [{"file_name": "a.jpg", "text": "x"}])
    assert "found metadata.jsonl and metadata.csv; keep one" in problem(tmp_path)
    assert len(pairs(tmp_path / "metadata.csv")) == 1


def test_empty_missing_and_misspelt_folders(tmp_path: Path) -> None:
    (tmp_path / "notes.doc").write_text("x")
    message = problem(tmp_path)
    assert f"{tmp_path}: there are no pictures" in message
    assert "metadata.jsonl" in message
    assert ".webp" in message
    assert "found 1 other files" in message
    (tmp_path / "flickr30k").mkdir()
    assert f"Did you mean {tmp_path}/flickr30k?" in problem(tmp_path / "flicker30k" / "test")
    assert "there is no such file or folder. Data can be" in problem(tmp_path / "zzz")


def test_choices_need_columns_to_choose_from(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    assert "caption=title chooses a column, but there is none of metadata.jsonl" in problem(f"{tmp_path}?caption=title")


# Tables


def test_open_clip_csv_and_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('filepath,title,text\nx/1.jpg,"a, b",no\n\n/abs/2.jpg,"两\n行",no\n', "utf-8")
    assert told(tmp_path / "a.csv") == [
        ("x/1.jpg", ["a, b"], None, None),
        ("/abs/2.jpg", ["两\n行"], None, None),
    ]
    (tmp_path / "a.tsv").write_text('filepath\ttitle\n../1.jpg\ta, 5" pipe\n', "utf-8")
    assert told(tmp_path / "a.tsv") == [("../1.jpg", ['a, 5" pipe'], None, None)]
    assert pairs(tmp_path / "a.tsv")[0].image == tmp_path / "../1.jpg"


def test_separators(tmp_path: Path) -> None:
    path = tmp_path / "tabs.csv"
    path.write_text("filepath\ttitle\r\n1.jpg\ta\r\n", "utf-8")
    assert told(path) == [("1.jpg", ["a"], None, None)]
    path.write_text("filepath,x\ttitle\n1.jpg,y\ta\n", "utf-8")
    assert told(f"{path}?sep=tab&image=filepath,x") == [("1.jpg,y", ["a"], None, None)]
    assert "sep is 'semicolon', expected tab or comma" in problem(f"{path}?sep=semicolon")


def test_a_table_names_an_absolute_path_within_its_folder_like_a_relative_one(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "a.csv",
        [{"filepath": "x.jpg", "title": "one"}, {"filepath": str(tmp_path / "x.jpg"), "title": "two"}],
    )
    assert told(tmp_path / "a.csv") == [("x.jpg", ["one", "two"], None, None)]


@pytest.mark.parametrize("image", ["image", "file_name", "filepath"])
@pytest.mark.parametrize("caption", ["text", "caption", "title", "captions"])
@pytest.mark.parametrize("kind", WRITERS)
def test_usual_column_names(image: str, caption: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"list.{kind}"
    WRITERS[kind](path, [{image: "a.jpg", caption: "一只猫"}])
    assert told(path) == [("a.jpg", ["一只猫"], None, None)]


@pytest.mark.parametrize("kind", WRITERS)
def test_missing_columns_name_what_was_found(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"list.{kind}"
    WRITERS[kind](path, [{"url": "a.jpg", "alt": "x"}])
    assert problem(path) == (
        f"{path}: no column for picture paths. Found: url, alt. "
        f"Expected one of: file_name, image, filepath. Choose one with ?image=COLUMN."
    )
    assert "no column for captions. Found: url, alt" in problem(f"{path}?image=url")
    message = problem(f"{path}?image=url&caption=alr")
    assert "no column 'alr', chosen by caption=alr. Did you mean 'alt'?" in message
    assert told(f"{path}?image=url&caption=alt") == [("a.jpg", ["x"], None, None)]


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "json cut": (
        "a.jsonl",
        b'{"image": "a", "text": "x"}\n{"image": "b", "te\n',
        r"a\.jsonl:2: not JSON \(.*found",
    ),
    "json too deep": ("a.jsonl", b'{"image": "a"}\n' + b"[" * 100_000, r"a\.jsonl:2: not JSON \(.*found"),
    "number too long": ("a.jsonl", b'{"image": "a", "text": %s}\n' % (b"1" * 5000), r"a\.jsonl:1: not JSON \(.*found"),
    "no byte": ("a.jsonl", b'{"image": "a\\u0000.jpg", "text": "x"}\n', r"a\.jsonl:1: found 'a.*which no file can be"),
    "half a character": (
        "a.jsonl",
        b'{"image": "\\ud800", "text": "x"}\n',
        r"a\.jsonl:1: found .*no file can be called",
    ),
    "json list": ("a.jsonl", b'\n["image"]\n', r"a\.jsonl:2: found .*expected an object"),
    "no path": (
        "a.jsonl",
        b'{"image": "a", "text": "x"}\n{"text": "y"}\n',
        r"a\.jsonl:2: found None in column",
    ),
    "caption 5": (
        "a.jsonl",
        b'{"image": "a", "text": 5}\n',
        r"a\.jsonl:1: found 5 in column 'text', expected a cap",
    ),
    "caption in list": ("a.jsonl", b'{"image": "a", "text": ["x", {}]}\n', r"found {} in column 'text'"),
    "label": (
        "a.jsonl",
        b'{"image": "a", "text": "x", "label": "cat"}\n{"image": "a", "text": "y", "label": "dog"}\n',
        r"a\.jsonl:2: label of a is 'dog', but an earlier line says 'cat'",
    ),
    "group": (
        "a.csv",
        b"filepath,title,group\na,x,1\na,y,\na,z,2\n",
        r"a\.csv:4: group of a is '2', but an earlier line says '1'",
    ),
    "too many fields": ("a.csv", b"filepath,title\na,b\nc,d,e\n", r"a\.csv:3: found 3 fields, expected 2"),
    "too few fields": (
        "a.tsv",
        b"filepath\ttitle\na\n",
        r"a\.tsv:2: found 1 fields, expected 2 \(filepath, title\)",
    ),
    "open quote": ("a.csv", b'filepath,title\na,b\nc,"d\ne,f\n', r"a\.csv:3: not a record of a CSV file"),
    "empty path": ("a.csv", b"filepath,title\n ,b\n", r"a\.csv:2: found ' ' in column 'filepath'"),
    "not utf-8": (
        "a.csv",
        b"filepath,title\na,b\nc,\xb0\xa1\n",
        r"a\.csv:3: found byte 0xb0, expected UTF-8",
    ),
    "empty csv": ("a.csv", b"", "the table has no rows"),
    "header only": ("a.csv", b"filepath,title\n", "the table has no rows"),
    "empty jsonl": ("a.jsonl", b"\n\n", "the table has no rows"),
    "not parquet": ("a.parquet", b"PAR1 nothing of the kind", "not a parquet file that can be read"),
    "other suffix": (
        "a.xlsx",
        b"",
        r"unknown kind of file '\.xlsx'\. Known: \.csv, \.jsonl, \.parquet, \.tsv",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_table_is_one_error_with_file_and_line(name: str, tmp_path: Path) -> None:
    file, data, message = BROKEN[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        pairs(tmp_path / file)
    assert str(tmp_path / file) in str(caught.value)


def test_a_broken_sidecar_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\xfe")
    assert f"{tmp_path / 'a.txt'}:2: found byte 0xff" in problem(tmp_path)


def test_parquet_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("image", pa.string()), ("text", pa.string())])
    pq.write_table(schema.empty_table(), path)
    assert "the table has no rows" in problem(path)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from clipdistill.errors import ConfigError

    write_parquet(tmp_path / "a.parquet", [{"image": "a", "text": "x"}])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'clipdistill\[train\]'"):
        pairs(tmp_path / "a.parquet")


# URIs


def test_unknown_choices_and_kinds(tmp_path: Path) -> None:
    assert "unknown choice 'capton'. Did you mean 'caption'?" in problem(f"{tmp_path}?capton=x")
    message = problem("sceens:train?n=3")
    assert "unknown kind of data 'sceens:'. Did you mean 'scenes'?" in message
    assert "scenes:train" in message
    assert "sep=tab is for .csv and .tsv" in problem(f"{jsonl_in(tmp_path)}?sep=tab")


def jsonl_in(folder: Path) -> Path:
    write_jsonl(folder / "a.jsonl", [{"image": "a", "text": "x"}])
    return folder / "a.jsonl"


def test_a_name_that_looks_like_a_choice_or_a_kind_is_still_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("what?caption=no", "scenes:mine"):
        picture(tmp_path / name / "a.png")
    assert told(tmp_path / "what?caption=no") == [("a.png", ["a"], None, None)]
    monkeypatch.chdir(tmp_path)
    assert told("scenes:mine") == [("a.png", ["a"], None, None)]


def test_scenes_open_like_any_other_data() -> None:
    source = pairs("scenes:train?n=3&seed=0")
    assert len(source) == 3
    assert source[0].captions


# Pictures and captions


def test_a_link_to_the_folder_above_does_not_multiply_pictures(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "one.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert len(pairs(tmp_path)) == 1


def test_synthetic_captions_are_a_text_view(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    row = {"file_name": "one.png", "text": "a dot", "syn_text": ["a small dot", "one dot"], "alt": "dotty"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert pairs(tmp_path)[0].texts == {"": ["a dot"], "syn": ["a small dot", "one dot"]}
    assert pairs(f"{tmp_path}?synthetic=alt")[0].texts["syn"] == ["dotty"]
    with pytest.raises(DataError, match="there is no column 'alto', chosen by synthetic=alto"):
        pairs(f"{tmp_path}?synthetic=alto")


def test_a_caption_may_be_very_long(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    (tmp_path / "data.csv").write_text("filepath,title\none.png," + "very long " * 20_000)
    assert len(pairs(tmp_path / "data.csv")[0].captions[0]) > 131_072
