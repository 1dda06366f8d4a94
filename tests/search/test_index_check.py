"""What clipdistill index check finds, and the verbs of an index on the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipdistill.cli import main
from clipdistill.search.build import build_index
from clipdistill.search.checking import check
from clipdistill.search.contents import vectors
from clipdistill.search.index import Index
from clipdistill.search.manifest import Effort
from clipdistill.search.table import schema
from clipdistill.search.tables import write_table
from search.test_index import draw, renamed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, exported: tuple[Path, Any]) -> Path:
    desk = tmp_path_factory.mktemp("made")
    shutil.copytree(exported[0], desk / "model")
    draw(desk / "photos", 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        build_index("photos", "model", "x.index", width=16, workers=0)
    return desk


@pytest.fixture
def desk(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def alter(desk: Path, **columns: pa.Array) -> None:
    """Write something else over the rows of pictures 0 and 1, and publish it without another word."""
    folder = desk / "x.index"
    manifest = Index.open(folder).manifest
    table = write_table(manifest, folder)
    rows = table.rows(["0.jpg", "1.jpg"], schema(16, 24).names, written=True)
    for name, values in columns.items():
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(place), values)
    table.write(rows)
    replace(manifest, snapshot=table.publish().snapshot).write(folder)


def test_a_whole_index_has_no_findings(desk: Path) -> None:
    assert check(Index.open("x.index")) == []


def test_rows_that_are_not_the_models_are_found(desk: Path) -> None:
    row = np.zeros((2, 24), np.float32)
    row[:, 3] = 1
    alter(desk, full=vectors(row))
    findings = check(Index.open("x.index"))
    assert len(findings) == 2
    assert all("has a cosine of" in finding and "expected 0.999" in finding for finding in findings)


def test_damaged_rows_and_thumbnails_are_found(desk: Path) -> None:
    row = np.full((2, 24), 0.5, np.float32)
    alter(desk, full=vectors(row), thumbnail=pa.array([b"\xff\xd8\xff no", b""]))
    told = "\n".join(check(Index.open("x.index")))
    assert "2 ids have a row that is not of unit length: '" in told
    assert told.count("cannot be decoded") == 1


def test_a_manifest_that_does_not_fit_is_found(desk: Path) -> None:
    index = Index.open("x.index")
    replace(index.manifest, count=13).write(desk / "x.index")
    assert check(Index.open("x.index")) == [
        "the table holds 12 rows, and the manifest says 13",
        "12 rows can be read, and the manifest says 13",
    ]


def test_recall_that_has_fallen_is_found(desk: Path) -> None:
    index = Index.open("x.index")
    replace(index.manifest, effort=Effort(rescore=1, recall=2.0)).write(desk / "x.index")
    (finding,) = check(Index.open("x.index"))
    assert "and was 2.0000 when the index was published" in finding


def test_a_model_or_source_that_is_gone_is_told(desk: Path) -> None:
    (desk / "photos").rename(desk / "elsewhere")
    (finding,) = check(Index.open("x.index"))
    assert "the source cannot be opened" in finding
    (desk / "model").rename(desk / "other")
    (finding,) = check(Index.open("x.index"))
    assert "the model cannot be opened" in finding


def test_the_verbs(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "photos", "--model", "model", "--out", "y.index", "--workers", "0"]) == 0
    assert "y.index: 12 pictures, version 1; every row is compared" in capsys.readouterr().err
    draw(desk / "photos", 1, first=30)
    assert main(["index", "sync", "y.index", "--workers", "0"]) == 0
    assert capsys.readouterr().out == "1 added, 0 changed, 0 described anew, 0 removed, 12 kept\n"
    assert main(["index", "check", "y.index"]) == 0
    assert capsys.readouterr().out == "y.index: 13 pictures, version 2; nothing is wrong\n"
    renamed(desk / "model", desk / "other")
    assert main(["index", "rebuild", "y.index", "--model", "other", "--workers", "0"]) == 0
    assert Index.open("y.index").manifest.model.fingerprint == "another"
    values = json.loads((desk / "y.index" / "index.json").read_text())
    (desk / "y.index" / "index.json").write_text(json.dumps({**values, "count": 7}))
    assert main(["index", "check", "y.index"]) == 1
    assert "the manifest says 7" in capsys.readouterr().out
    assert main(["index", "nothing", "--model", "model", "--out", "z.index"]) == 1
    assert "error: nothing: there is no such file or folder" in capsys.readouterr().err


def test_a_mistyped_verb_is_no_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "chek", "x.index"]) != 0
    assert "there is no command 'chek', and no such folder. Did you mean 'check'?" in capsys.readouterr().err
