"""Golden rows and checksums: what an exported folder is examined by."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipdistill.cli import main
from clipdistill.search.golden import check_golden


@pytest.fixture
def folder(exported: tuple[Path, Any], tmp_path: Path) -> Path:
    shutil.copytree(exported[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_an_export_is_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check_golden(folder) == []
    assert main(["doctor", str(folder)]) == 0
    assert "nothing is wrong" in capsys.readouterr().err


def test_every_changed_or_missing_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((folder / "clipdistill.json").read_text())
    files = record["runtime"]["files"]
    assert set(files) == {"golden.npz", "onnx/text_model.onnx", "onnx/vision_model.onnx", "tokenizer.json"}
    for name in files:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert any(line.startswith(f"{name} is not the file") for line in check_golden(folder))
        (folder / name).unlink()
        assert any(line.startswith(f"{name} is missing") for line in check_golden(folder))
        assert main(["doctor", str(folder)]) == 1
        assert f"{name} is missing" in capsys.readouterr().out
        (folder / name).write_bytes(whole)
    assert check_golden(folder) == []


def test_rows_that_differ_are_named(folder: Path) -> None:
    with np.load(folder / "golden.npz") as golden:
        kept = {name: golden[name].copy() for name in golden.files}
    kept["image_embeds"][2] = kept["image_embeds"][2][::-1]
    kept["text_embeds"][1] = np.nan
    np.savez(folder / "golden.npz", **kept)
    findings = check_golden(folder)
    assert len(findings) == 3
    assert findings[0].startswith("golden.npz is not the file")
    assert findings[1].startswith("golden picture 2: the cosine with its row is")
    assert findings[2].startswith("golden caption 'x': the cosine with its row is nan")


def test_other_preprocessing_is_found(folder: Path) -> None:
    path = folder / "clipdistill.json"
    record = json.loads(path.read_text())
    record["runtime"]["image"]["transform"]["resample"] = 0
    path.write_text(json.dumps(record))
    findings = check_golden(folder)
    assert findings
    assert all(line.startswith("golden picture") for line in findings)


def test_what_is_no_export_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path)]) == 1
    assert "is not an exported model" in capsys.readouterr().err
