"""Class folders and captions: what one stray file, or another spelling, must not change."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

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
