"""Class folders and captions: what one stray file, or another spelling, must not change."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from clipdistill.data.check import check
from clipdistill.data.samples import caption_key
from clipdistill.data.sources import pairs
from clipdistill.errors import DataError
from clipdistill.evaluation.class_folders import numbered


def classes(root: Path) -> Path:
    for name in ("cat/a", "cat/b", "dog/c", "dog/d", "fox/e"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / f"{name}.png")
    return root


def test_one_stray_file_does_not_undo_class_folders(tmp_path: Path) -> None:
    assert {sample.label for sample in map(pairs(classes(tmp_path)).__getitem__, range(5))} == {"cat", "dog", "fox"}
    (tmp_path / "dog" / "c.txt").write_text("a note")
    with pytest.raises(DataError, match="1 of 5 pictures have a caption file beside them"):
        pairs(tmp_path)
    (tmp_path / "dog" / "c.txt").unlink()
    Image.new("RGB", (4, 4)).save(tmp_path / "cover.png")
    with pytest.raises(DataError, match=r"1 lie beside these folders \(first cover.png\)"):
        pairs(tmp_path)


@pytest.mark.parametrize("name", ["captions.csv", "shop.tsv", "rows.jsonl", "rows.parquet"])
def test_captions_of_others_are_not_passed_over(name: str, tmp_path: Path) -> None:
    """Names of files are no captions where a table beside them may have the real ones."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / name).write_text("filepath,title\na.png,a red boat\n")
    with pytest.raises(DataError, match=rf"{name} lies beside the pictures.*open .*{name}; else write .*caption=none"):
        pairs(tmp_path)
    assert pairs(f"{tmp_path}?caption=none")[0].captions == []
    (tmp_path / "a.txt").write_text("a boat")
    assert pairs(tmp_path)[0].captions == ["a boat"]
    (classes(tmp_path / "classes") / name).write_text("x,y\n")
    assert pairs(tmp_path / "classes")[0].label == "cat", "a folder for each class says enough"


def test_pictures_of_phones_and_browsers_are_looked_at(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jfif", "JPEG")
    (tmp_path / "b.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    report = check(pairs(tmp_path))
    assert (report.samples, list(report.unreadable)) == (2, ["b.HEIC"])
    assert "convert it" in report.unreadable["b.HEIC"]


def test_paths_of_a_table_count_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not from where one stands, as open_clip's do."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "told").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "shop" / "a.png")
    table = tmp_path / "told" / "rows.tsv"
    table.write_text("filepath\ttitle\nshop/a.png\ta boat\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"rows.tsv:2: shop/a.png counts from the folder of the table.*Move the table"):
        pairs(table)
    table.write_text("filepath\ttitle\n../shop/a.png\ta boat\n")
    assert pairs(table)[0].captions == ["a boat"]
    table.write_text("filepath\ttitle\nhttps://shop.example/a.png\ta boat\n")
    with pytest.raises(DataError, match=r"rows.tsv:2: .*an address.*img2dataset"):
        pairs(table)


def test_captions_and_names_are_one_per_line_feed(tmp_path: Path) -> None:
    """Characters that Python, and nothing that writes such files, takes for ends of lines stay inside."""
    strange = "one\u2028two\x85three\x1cfour"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(f"{strange}\r\n\n last \n".encode())
    assert pairs(tmp_path)[0].captions == [strange, "last"]
    (tmp_path / "label.txt").write_bytes(f"{strange}\r\nlast\n\n".encode())
    assert numbered(tmp_path, chinese=False).names == (strange, "last")


def test_equal_captions_are_equal_however_they_are_encoded() -> None:
    assert caption_key("A  Red Caf\u00e9") == caption_key("a red cafe\u0301")
    assert caption_key("a red fox") != caption_key("a red ox")
