"""Benchmarks from their names on the command line to the files of a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, DataError
from clipdistill.evidence import suites
from clipdistill.evidence.report import writing
from clipdistill.evidence.suites import evaluate_suites, suite_tables, suites_as_dict
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer
from tiny_runs import TINY


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, Flickr30k with eight pictures, and two data sets of ELEVATER."""
    desk = tmp_path_factory.mktemp("desk")
    for seed, name in enumerate(("small", "large")):
        build(StudentSpec(**TINY), train_tokenizer(["a big red circle"], 520, 32), 16, seed).save(desk / name)
    source, entries = pairs("scenes:test?n=8"), []
    for index in range(8):
        sample = source[index]
        assert isinstance(sample.image, np.ndarray)
        places = [f"flickr30k/images/{index}.png"]
        places += [f"elevater/{data_set}/test/{index % 2}/{index}.png" for data_set in ("mnist", "dtd")]
        for place in places:
            (desk / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.image).save(desk / place)
        entries.append({"filename": f"{index}.png", "split": "test", "sentences": [{"raw": sample.captions[0]}]})
    (desk / "flickr30k" / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))
    for data_set in ("mnist", "dtd"):
        (desk / "elevater" / data_set / "label.txt").write_text("zero\none\n")
    return desk


def test_every_suite_has_its_table_its_report_and_its_json(desk: Path, tmp_path: Path) -> None:
    words = [f"flickr30k={desk}/flickr30k", f"elevater={desk}/elevater"]
    models = [str(desk / "small"), str(desk / "large")]
    found = evaluate_suites(models, words, tmp_path / "out")
    assert [one.name for one in found["flickr30k"]] == ["small", "large"]
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told == json.loads(json.dumps(suites_as_dict(found)))
    figures = told["suites"]["elevater"]["models"]["large"]["metrics"]
    assert set(figures) == {"zeroshot_mean", "zeroshot_mnist", "zeroshot_dtd"}
    assert (tmp_path / "out" / "flickr30k" / "report.html").is_file()
    files = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/clip_benchmark/*.json")}
    assert sorted((one["dataset"], one["model"]) for one in files.values()) == [
        (data_set, model) for data_set in ("dtd", "flickr30k", "mnist") for model in ("large", "small")
    ]
    mnist = next(one["metrics"] for one in files.values() if (one["dataset"], one["model"]) == ("mnist", "large"))
    assert mnist["acc1"] == pytest.approx(figures["zeroshot_mnist"] / 100)
    console = Console(record=True, width=100)
    for table in suite_tables(found):
        console.print(table)
    text = console.export_text()
    assert text.index("flickr30k") < text.index("mean recall") < text.index("elevater") < text.index("mnist")
    evaluate_suites(models[:1], words[:1], tmp_path / "out")  # over an earlier report of ours


def test_an_interrupted_evaluation_is_repeated_in_its_folder(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"flickr30k={desk}/flickr30k", f"elevater={desk}/elevater"]
    measure = suites.evaluate_suite

    def interrupted(name: str, *more: Any) -> Any:
        if name == "elevater":
            raise KeyboardInterrupt
        return measure(name, *more)

    with monkeypatch.context() as patch:
        patch.setattr(suites, "evaluate_suite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_suites([str(desk / "small")], words, tmp_path / "out")
    report = tmp_path / "out" / "report.json"
    assert list(json.loads(report.read_text())["suites"]) == ["flickr30k"]
    evaluate_suites([str(desk / "small")], words[1:], tmp_path / "out")
    assert list(json.loads(report.read_text())["suites"]) == ["elevater"]


def test_a_report_that_could_not_be_written_whole_is_written_again(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, written = [f"flickr30k={desk}/flickr30k"], []
    write = writing.write_text

    def full(path: Path, text: str) -> None:
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(path))
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            evaluate_suites([str(desk / "small")], words, tmp_path / "out")
    evaluate_suites([str(desk / "small")], words, tmp_path / "out")
    assert (tmp_path / "out" / "flickr30k" / "report.html").is_file()
    assert all(len(path.name.encode()) < 255 for path in (tmp_path / "out").rglob("*"))


def test_words_that_mean_nothing_are_refused_before_a_model_is_loaded(desk: Path, tmp_path: Path) -> None:
    for words, message in (
        (["flickr30k"], "expected NAME=FOLDER"),
        (["flickr30k="], "expected NAME=FOLDER"),
        ([f"flickr30k={desk}/flickr30k"] * 2, "flickr30k is given twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate_suites(["no/such/model"], words)
    with pytest.raises(DataError, match=r"no suite 'flicker30k'\. Did you mean 'flickr30k"):
        evaluate_suites(["no/such/model"], [f"flicker30k={desk}"])
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ConfigError, match="holds other files"):
        evaluate_suites(["no/such/model"], [f"flickr30k={desk}/flickr30k"], tmp_path)
