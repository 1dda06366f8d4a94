"""Classifiers on benchmarks: which logit is whose class, and which heads are refused before a picture is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdistill.errors import DataError
from clipdistill.evaluation.class_folders import imagenet, numbered
from clipdistill.evaluation.classify import answers
from clipdistill.evaluation.suites import evaluate_suite, open_suite
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build

KEYS = imagenet().keys
#: As transformers names them: several to a class, and some not as the benchmark does.
NAMES = tuple(
    f"{name}, of the kind {number}" if number % 3 else f"class {number}"
    for number, name in enumerate(imagenet().published)
)
CHOSEN = (0, 7, 300, 301, 999)


def classifier(classes: Sequence[str]) -> Any:
    encoder = build(StudentSpec(preset="scenes-vit"), seed=1, classes=tuple(classes))
    with torch.no_grad():
        for parameter in encoder.module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return encoder


def imagenet_r(root: Path) -> list[tuple[Path, int]]:
    """Two pictures for each of a few classes, with the place of their class among these."""
    made = []
    for place, number in enumerate(CHOSEN):
        for picture in range(2):
            path = root / "imagenet-r" / KEYS[number] / f"{picture}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(9 * place + picture).integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40, 40), Image.Resampling.NEAREST).save(path)
            made.append((path, place))
    return made


@pytest.mark.parametrize("names", [NAMES, KEYS, [f"LABEL_{number}" for number in range(1000)]])
def test_the_thousand_logits_of_imagenet_are_in_its_order_however_they_are_called(
    names: Sequence[str], tmp_path: Path
) -> None:
    """And pictures of a part of the classes are told apart by the logits of these alone."""
    model = classifier(names)
    expected = []
    for path, place in imagenet_r(tmp_path):
        pixels = model.transform(Image.open(path).convert("RGB"))["pixel_values"]
        with torch.no_grad():
            logits = model.module(pixel_values=torch.from_numpy(pixels)[None]).logits[0, list(CHOSEN)]
        expected.append(int(logits.argmax()) == place)
    (found,) = evaluate_suite("imagenet-r", open_suite("imagenet-r", tmp_path), {"m": model}).evaluations
    assert found.metrics == {"classify_top1": pytest.approx(100 * np.mean(expected)), "classify_top5": 100.0}


@pytest.mark.parametrize(
    "names", [sorted(imagenet().published), ("cat", "dog"), [f"LABEL_{number}" for number in range(1001)]]
)
def test_other_heads_are_refused_before_a_picture_is_read(
    names: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagenet_r(tmp_path)
    monkeypatch.setattr("clipdistill.evaluation.evaluate.load", lambda *_: pytest.fail("pictures were read"))
    names = [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]
    model = classifier(["fish" if name == "tench" else name for name in names])
    model.uri = "models/vit"
    message = rf"models/vit is a classifier of {len(names):,} classes, and this suite tells 5 others apart"
    with pytest.raises(DataError, match=message) as error:
        evaluate_suite("imagenet-r", open_suite("imagenet-r", tmp_path), {"m": model})
    assert "evaluate on other data" not in str(error.value)


def test_a_head_in_another_order_is_read_by_its_names(tmp_path: Path) -> None:
    """As a classifier has it that was trained on names in alphabetical order."""
    imagenet_r(tmp_path)
    classes = open_suite("imagenet-r", tmp_path)["imagenet-r"].classes
    heads = sorted({*imagenet().published, "extra", "another"})  # two names are doubled
    assert len(heads) == 1000
    own = tuple(heads.index(imagenet().published[number]) for number in CHOSEN)
    assert answers({}, heads, classes, "d", "m").columns == own != CHOSEN


def test_classes_without_a_published_order_are_found_by_name_alone(tmp_path: Path) -> None:
    (tmp_path / "label.txt").write_text("zero\none\n")
    classes = numbered(tmp_path, chinese=False).classes((0, 1), ("zero", "one"), ("{}",))
    found = answers({"a": "one", "b": "zero"}, ("One", "two", "Zero"), classes, "d", "m")
    assert found.ranks(np.array([[3.0, 9.0, 1.0], [3.0, 9.0, 1.0]], np.float32), ["a", "b"]).tolist() == [1, 2]
    with pytest.raises(DataError, match=r"same names\. Leave it out"):
        answers({"a": "one"}, ("cat", "dog"), classes, "d", "m")
