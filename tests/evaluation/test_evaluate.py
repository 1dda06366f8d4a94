"""Evaluating whole models: what counts, what is left out, and that it is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import transformers as hf
from PIL import Image

from clipdistill.data.sources import pairs
from clipdistill.errors import DataError
from clipdistill.evaluation.captioned import own_picture
from clipdistill.evaluation.evaluate import Tasks, evaluate
from clipdistill.evaluation.retrieval import text_image
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.loading import load
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer
from tiny_runs import TINY


@pytest.fixture(scope="module")
def student() -> HuggingFaceEncoder:
    return build(StudentSpec(**TINY), train_tokenizer(["a big red circle"], 520, 32), 16, 0)


def folder(path: Path, captions: list[str], broken: int = 0) -> Path:
    path.mkdir()
    source = pairs(f"scenes:test?n={len(captions)}")
    lines = []
    for index, caption in enumerate(captions):
        pixels = source[index].image
        assert isinstance(pixels, np.ndarray)
        Image.fromarray(pixels).save(path / f"{index}.png")
        if index < broken:
            (path / f"{index}.png").write_bytes((path / f"{index}.png").read_bytes()[:90])
        lines.append(json.dumps({"file_name": f"{index}.png", "text": caption, "label": str(index % 2)}))
    (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


def test_blank_captions_ask_nothing(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    """Blank captions would all be positives of each other, and any model would find one."""
    told = [f"caption number {index}" for index in range(12)]
    half = [caption if index < 6 else "  " for index, caption in enumerate(told)]
    (found,) = evaluate({"s": student}, Tasks.open(retrieval=str(folder(tmp_path / "half", half))))
    assert found.texts is not None
    assert len(found.texts) == 6
    assert len(found.galleries["retrieval"].images) == 12


def test_broken_pictures_are_named_and_left_out_up_to_a_limit(
    student: HuggingFaceEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = str(folder(tmp_path / "broken", [f"caption {index}" for index in range(10)], broken=3))
    (found,) = evaluate({"s": student}, Tasks.open(data=uri), max_broken=3)
    assert found.skipped == 3
    assert len(found.galleries["retrieval"].images) == 7
    assert capsys.readouterr().err.count("skipped ") == 3
    with pytest.raises(DataError, match=r"3 of 10 pictures of .* cannot be read, 2 are allowed"):
        evaluate({"s": student}, Tasks.open(data=uri), max_broken=2)


def test_data_serve_every_task_they_afford(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    uri = str(folder(tmp_path / "data", [f"caption {index}" for index in range(8)]))
    (found,) = evaluate({"s": student}, Tasks.open(data=uri))
    assert {"text_to_image_R@1", "image_to_text_R@5", "image_to_image_mAP", "zeroshot_acc1"} <= set(found.metrics)
    assert found.params == found.image_params + found.text_params
    assert found.latency["image_ms"] > 0
    captions_only = Tasks.open(data="scenes:test?n=4")
    assert (captions_only.image_retrieval, captions_only.zeroshot) == (None, None)


def test_metrics_do_not_depend_on_the_models_beside(student: HuggingFaceEncoder) -> None:
    tasks = Tasks.open(retrieval="scenes:test?n=20", zeroshot="scenes:zeroshot?n=20")
    alone = evaluate({"a": student}, tasks)[0].metrics
    assert evaluate({"b": student, "a": student}, tasks)[1].metrics == alone


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    """A model of captions alone."""
    path = tmp_path_factory.mktemp("reader")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    hf.BertModel(hf.BertConfig(**sizes, vocab_size=len(words))).save_pretrained(path)
    hf.BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(path)
    return load(str(path))


def test_a_model_of_captions_alone_lacks_the_image_tower(
    reader: DualEncoder, student: HuggingFaceEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = Tasks.open(data=str(folder(tmp_path / "data", [f"caption {index}" for index in range(8)])))
    found, _ = evaluate({"r": reader, "s": student}, tasks)
    told = capsys.readouterr().err
    for task in ("retrieval", "image_retrieval", "zeroshot"):
        assert f"r has no image tower: {task} is left out for it" in told
    assert (found.metrics, set(found.latency)) == ({}, {"text_ms"})
    assert found.text_params == found.params == sum(one.numel() for one in reader.module.parameters()) > 0
    assert found.image_params == 0
    with pytest.raises(DataError, match=r"cannot be measured, for r has no image tower\.$"):
        evaluate({"r": reader}, tasks)


def test_suites_are_not_told_to_name_other_data() -> None:
    encoder = build(StudentSpec(preset="scenes-vit"), seed=0, classes=("a", "b"))
    tasks = replace(Tasks.open(retrieval="scenes:test?n=4"), ask=own_picture)
    with pytest.raises(DataError, match=r"for v has no text tower\.$"):
        evaluate({"v": encoder}, tasks)


def test_what_the_data_lack_is_said(student: HuggingFaceEncoder) -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate({"s": student}, Tasks())
    with pytest.raises(DataError, match="needs labels or groups"):
        evaluate({"s": student}, Tasks.open(image_retrieval="scenes:test?n=4"))
    with pytest.raises(DataError, match="at least two labels, the data have 0"):
        evaluate({"s": student}, Tasks.open(zeroshot="scenes:test?n=4"))


def test_equal_pictures_are_never_wrong_answers(student: HuggingFaceEncoder, tmp_path: Path) -> None:
    path = folder(tmp_path / "copies", [f"caption {index}" for index in range(8)])
    for index in range(4):
        (path / f"{index + 4}.png").write_bytes((path / f"{index}.png").read_bytes())
    (found,) = evaluate({"s": student}, Tasks.open(retrieval=str(path)))
    gallery = found.galleries["retrieval"]
    assert [gallery.contents[i] == gallery.contents[i + 4] for i in range(4)] == [True] * 4
    perfect = text_image(gallery.images, gallery.images, range(8), gallery.same, [str(i) for i in range(8)])
    assert perfect["text_to_image_R@1"] == 100.0
