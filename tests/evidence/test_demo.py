"""The demonstration, in a few steps: three models, and one report of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipdistill.config import load_run
from clipdistill.errors import ConfigError
from clipdistill.evidence import demo
from clipdistill.models.loading import load
from clipdistill.teachers.store import EmbeddingStore


def test_three_models_and_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (demo._TEACHER, demo._STUDENT):
        monkeypatch.setitem(given, "steps", 3)
        monkeypatch.setitem(given, "batch_size", 8)
    tests = ("scenes:test?n=16", "scenes:test?n=8&copies=2", "scenes:zeroshot?n=16")
    monkeypatch.setattr(demo, "_TESTS", tests)
    monkeypatch.setattr(demo, "_DATA", "scenes:train?n=40")
    report = demo.run(tmp_path / "demo")
    assert report == tmp_path / "demo" / "report.html"
    told = json.loads(report.with_suffix(".json").read_text())
    assert list(told["models"]) == ["teacher", "baseline", "distilled"]
    runs = {name: load_run(tmp_path / "demo" / name / "config.yaml", ["out=again"]) for name in told["models"]}
    assert runs["distilled"].teachers == {"T": f"{tmp_path / 'demo' / 'store'}?views=mean"}
    manifest = EmbeddingStore.open(tmp_path / "demo" / "store").manifest
    teacher = load(str(tmp_path / "demo" / "teacher" / "student"))
    assert (manifest.model.fingerprint, manifest.views.count) == (teacher.fingerprint, 8)
    assert runs["baseline"].teachers == runs["teacher"].teachers == {}
    with pytest.raises(ConfigError, match="is not empty"):
        demo.run(tmp_path / "demo")
