"""Classifiers: what counts as right, whose labels are whose classes, and comparisons with models of two towers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from clipdistill.cli import main
from clipdistill.data.labels import class_numbers
from clipdistill.data.sources import pairs
from clipdistill.errors import DataError
from clipdistill.evaluation.classify import accuracies, label_ranks
from clipdistill.evaluation.evaluate import Tasks, evaluate
from clipdistill.evidence.report import as_dict, table, write_report
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer
from tiny_runs import TINY

CLASSES = ("red", "green", "blue", "black", "white", "grey", "tench, Tinca tinca")


def labels(*names: str) -> dict[str, str]:
    return {f"{number}.png": name for number, name in enumerate(names)}


def test_a_picture_is_right_if_few_other_classes_are_as_likely() -> None:
    draw = np.random.default_rng(0)
    logits = draw.integers(0, 6, (200, 9)).astype(np.float32)  # with many ties
    own = draw.integers(-1, 9, 200)
    expected = [
        0 if label < 0 else 1 + sum(row[other] >= row[label] for other in range(9) if other != label)
        for row, label in zip(logits, own, strict=True)
    ]
    ranks = label_ranks(logits, own.tolist())
    assert ranks.tolist() == expected
    known = [rank for rank in expected if rank]
    assert accuracies(ranks) == {
        "classify_top1": pytest.approx(100 * sum(rank <= 1 for rank in known) / len(known)),
        "classify_top5": pytest.approx(100 * sum(rank <= 5 for rank in known) / len(known)),
    }


def test_without_a_label_there_is_nothing_to_measure() -> None:
    with pytest.raises(DataError, match="none of the 3 pictures has one"):
        accuracies(label_ranks(np.zeros((3, 2), np.float32), [-1, -1, -1]))


def test_labels_are_class_names_however_they_are_written() -> None:
    found = class_numbers(labels("grey", "Tench", "tinca_tinca", "tench, Tinca tinca", "RED"), CLASSES, "d", "m")
    assert list(found.values()) == [5, 6, 6, 6, 0]
    assert class_numbers(labels("Crane"), ("crane", "Crane"), "d", "m") == {"0.png": 1}


def test_labels_that_are_no_class_are_named_in_part() -> None:
    lost = [f"lost {number}" for number in range(7)]
    with pytest.raises(DataError) as error:
        class_numbers(labels("red", *lost), CLASSES, "photos", "models/vit")
    message = str(error.value)
    assert message.startswith(
        "'lost 0', 'lost 1', 'lost 2', 'lost 3', 'lost 4' and 2 more of photos are not among the 7"
    )
    assert "models/vit ('red', 'green'" in message


def test_a_label_that_could_be_two_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"'crane' of d could be several classes of m: \[0, 2\]"):
        class_numbers(labels("crane"), ("crane, bird", "cat", "crane, machine"), "d", "m")


@pytest.fixture(scope="module")
def classifier() -> Any:
    """Far from trained, but with answers of its own."""
    encoder = build(StudentSpec(preset="scenes-vit"), seed=1, classes=CLASSES)
    with torch.no_grad():
        for parameter in encoder.module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return encoder


@pytest.fixture(scope="module")
def dual() -> Any:
    return build(StudentSpec(**TINY), train_tokenizer(["a big red circle"], 520, 32), 16, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty drawn pictures, two of each label at least, the last without one, and one that cannot be read."""
    path = tmp_path_factory.mktemp("labelled")
    source = pairs("scenes:test?n=40")
    lines = []
    for index in range(40):
        pixels = source[index].image
        assert isinstance(pixels, np.ndarray)
        Image.fromarray(pixels).save(path / f"{index}.png")
        label = {} if index == 39 else {"label": CLASSES[index % 6]}
        lines.append(json.dumps({"file_name": f"{index}.png", "text": f"picture {index}", **label}))
    (path / "3.png").write_bytes((path / "3.png").read_bytes()[:90])
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


def test_a_classifier_is_measured_by_its_head(classifier: Any, folder: Path) -> None:
    (found,) = evaluate({"c": classifier}, Tasks.open(zeroshot=str(folder)))
    own = []
    for index in sorted(set(range(39)) - {3}):
        pixels = classifier.transform(Image.open(folder / f"{index}.png").convert("RGB"))["pixel_values"]
        with torch.no_grad():
            logits = classifier.module(pixel_values=torch.from_numpy(pixels)[None]).logits[0]
        own.append(logits.argsort(descending=True).tolist().index(index % 6) + 1)
    assert set(found.metrics) == {"classify_top1", "classify_top5"}
    assert found.metrics["classify_top1"] == pytest.approx(100 * np.mean(np.array(own) <= 1))
    assert found.metrics["classify_top5"] == pytest.approx(100 * np.mean(np.array(own) <= 5))
    assert 0 < found.metrics["classify_top1"] < found.metrics["classify_top5"] < 100
    assert (found.skipped, found.text_params, found.params) == (1, 0, found.image_params)
    assert set(found.latency) == {"image_ms"}


def test_labels_of_other_data_are_refused_before_anything_is_embedded(
    classifier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipdistill.evaluation.evaluate.load", lambda *_: pytest.fail("pictures were read"))
    with pytest.raises(DataError, match="not among the 7 classes of preset:scenes-vit"):
        evaluate({"c": classifier}, Tasks.open(zeroshot="scenes:zeroshot?n=20"))


def test_a_task_that_a_model_cannot_do_is_left_out_and_said(
    classifier: Any, dual: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = Tasks.open(data=str(folder))
    both = evaluate({"clip": dual, "vit": classifier}, tasks)
    assert "vit has no text tower: retrieval is left out for it" in capsys.readouterr().err
    clip, vit = both
    assert {"mean_recall", "image_to_image_mAP", "zeroshot_acc1"} <= set(clip.metrics)
    assert not any(name.startswith("classify") for name in clip.metrics)
    assert {name.split("_")[0] for name in vit.metrics} == {"image", "classify"}
    assert vit.metrics["image_to_image_mAP"] == evaluate({"v": classifier}, tasks)[0].metrics["image_to_image_mAP"]
    assert "retrieval" not in vit.galleries
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table(both))
    lines = {line[:30].strip(): line[30:].split() for line in captured.get().splitlines()}
    assert lines["Classifier head, top 1"] == ["-", f"{vit.metrics['classify_top1']:.1f}"]
    assert lines["Zero-shot classes, top 1"][-1] == "-"
    page = write_report(both, tmp_path / "report", "mixed", {}, {}).read_text()
    assert "Classifier head" in page
    assert as_dict(both)["models"]["vit"]["metrics"].keys() == vit.metrics.keys()


def test_an_error_is_raised_only_if_nothing_is_left(classifier: Any, dual: Any, folder: Path) -> None:
    tasks = Tasks.open(retrieval=str(folder))
    with pytest.raises(DataError, match=r"retrieval cannot be measured, for v has no text tower\. Name labelled"):
        evaluate({"v": classifier}, tasks)
    first, second = evaluate({"v": classifier, "d": dual}, tasks)
    assert first.metrics == {}
    assert "mean_recall" in second.metrics
    assert set(first.latency) == {"image_ms"}


def test_the_command_line_evaluates_a_classifier(
    classifier: Any, dual: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier.save(tmp_path / "vit")
    dual.save(tmp_path / "clip")
    assert main(["eval", str(tmp_path / "vit"), "--zeroshot", str(folder), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)["models"]["vit"]
    assert set(alone["metrics"]) == {"classify_top1", "classify_top5"}
    arguments = ["eval", str(tmp_path / "vit"), "--against", str(tmp_path / "clip"), "--data", str(folder)]
    assert main([*arguments, "--out", str(tmp_path / "report")]) == 0
    written = json.loads((tmp_path / "report" / "report.json").read_text())["models"]
    assert written["vit"]["metrics"]["classify_top1"] == alone["metrics"]["classify_top1"]
    assert "zeroshot_acc1" in written["clip"]["metrics"]
