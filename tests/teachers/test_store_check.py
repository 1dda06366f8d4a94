"""Checking a store: every kind of damage is found, and a whole store is found whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipdistill.cli import main
from clipdistill.data.samples import Sample
from clipdistill.data.sources import from_samples, pairs
from clipdistill.data.views import Augmentation
from clipdistill.errors import DataError, ModelError, StoreError
from clipdistill.teachers.check_store import SAMPLES, check_store
from clipdistill.teachers.embed import embed
from clipdistill.teachers.manifest import Manifest
from clipdistill.teachers.store import EmbeddingStore, finish, write_shard

DATA = "scenes:train?n=30"


@pytest.fixture(scope="module")
def whole(small_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores") / "whole"
    embed(DATA, small_model, out, views=2, augmentation=Augmentation(crop=(0.4, 1.0)), shard_size=8)
    return out


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "store")
    return tmp_path / "store"


def test_a_whole_store_is_whole_and_rows_are_recomputed(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check_store(whole)
    assert report.findings == []
    assert f"recomputed {2 * SAMPLES} rows: least cosine 0.9999" in " ".join(report.notes) or "1.0000" in str(report)
    assert main(["store", "check", str(whole)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out


def test_one_flipped_bit_is_found(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store / "image" / "00002.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert main(["store", "check", str(store)]) == 1
    printed = capsys.readouterr().out
    assert f"wrong: {path} is not what was written" in printed
    assert "1 findings" in printed


def test_missing_files_and_other_keys_are_found(store: Path) -> None:
    (store / "image" / "00001.npy").unlink()
    keys = store / "text" / "00000.ids.jsonl"
    keys.write_text(keys.read_text() + '"one more"\n')
    findings = check_store(store).findings
    assert len(findings) == 2
    assert "00001.npy is missing" in findings[0]
    assert "00000.ids.jsonl is not what was written" in findings[1]


def test_an_index_out_of_order_is_found(store: Path) -> None:
    path = store / "text" / "index.npy"
    index = np.load(path)
    np.save(path, index[::-1])
    assert check_store(store).findings == [f"{path} is not the index of the keys beside it"]


def test_rows_that_are_not_of_unit_length_are_found(tmp_path: Path, whole: Path) -> None:
    manifest = EmbeddingStore.open(whole).manifest
    rows = np.eye(3, manifest.width, dtype=np.float16)
    rows[1] *= 2
    write_shard(tmp_path, "text", 0, ["a", "b", "c"], rows)
    finish(tmp_path, manifest)
    (finding,) = check_store(tmp_path).findings
    assert "1 rows are not of length 1, first row 1: 2.0000" in finding


def test_rows_of_another_model_are_found(small_models: list[Path], store: Path) -> None:
    findings = check_store(store, model=str(small_models[1])).findings
    assert "the model" in findings[0]
    assert any("is another: cosine" in finding for finding in findings[1:])


def test_rows_of_other_views_are_found(store: Path) -> None:
    path = store / "manifest.json"
    manifest = Manifest.from_json(path.read_text())
    path.write_text(replace(manifest, views=replace(manifest.views, seed=99)).to_json())
    findings = check_store(store).findings
    assert findings
    assert all("picture" in finding and "is another" in finding for finding in findings)


def test_totals_that_do_not_add_up_are_found(store: Path) -> None:
    values = json.loads((store / "manifest.json").read_text())
    values["sides"]["text"]["samples"] += 1
    (store / "manifest.json").write_text(json.dumps(values))
    (finding,) = check_store(store).findings
    assert "text shards hold" in finding


def test_what_cannot_be_opened_is_said_but_what_is_named_must_open(store: Path, small_model: str) -> None:
    values = json.loads((store / "manifest.json").read_text())
    values["model"]["uri"] = "/moved/away"
    (store / "manifest.json").write_text(json.dumps(values))
    report = check_store(store)
    assert report.findings == []
    assert "rows were not recomputed" in report.notes[-1]
    assert "/moved/away" in report.notes[-1]
    assert "recomputed" in check_store(store, model=small_model).notes[-1]
    with pytest.raises(ModelError):
        check_store(store, model="/also/away")


def test_data_that_have_changed_are_found(store: Path) -> None:
    findings = check_store(store, data="scenes:train?n=20").findings
    assert findings == ["the data scenes:train?n=20 is not what was embedded: its fingerprint differs"]


def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a store"):
        check_store(tmp_path)


def test_a_store_runs_no_command(small_model: str, store: Path, tmp_path: Path) -> None:
    path = store / "manifest.json"
    manifest = Manifest.from_json(path.read_text())
    command = f"pipe:touch {tmp_path}/ran; cat x.tar"
    path.write_text(replace(manifest, source=replace(manifest.source, uri=command)).to_json())
    report = check_store(store)
    assert any("a command is run only where you name it yourself" in note for note in report.notes)
    assert main(["store", "export", str(store), "--out", str(tmp_path / "rows")]) == 1
    assert not (tmp_path / "ran").exists()


def test_passwords_of_addresses_are_not_in_a_store(small_model: str, tmp_path: Path) -> None:
    class Away:
        """A picture behind an address."""

        size = 3

        def read_bytes(self) -> bytes:
            raise DataError("the server has gone")

        def __str__(self) -> str:
            return "https://me:hunter2@example.org/0.tar?token=hunter3"

    made = pairs("scenes:train?n=5")
    samples = [made[place] for place in range(5)] + [Sample("away", Away(), {"": ["a dog"]})]
    source = from_samples(samples, "https://me:hunter2@example.org/{0..3}.tar?token=hunter3")
    for _ in range(2):  # to begin, and to go on
        embed(source, small_model, tmp_path / "store", workers=0)
    every = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*.json"))
    assert b"hunter" not in every
    assert every.count(b"https://***@example.org") == 3
