"""Models of open_clip in a run: as teacher, live and stored, and as the student that training starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipdistill.data.sources import pairs
from clipdistill.errors import ClipdistillError
from clipdistill.models.loading import load
from clipdistill.teachers.embed import embed
from clipdistill.training.loop import distill
from clipdistill.training.setup import prepare, train_mode
from tiny_open_clip import make
from tiny_runs import fail_at_step, tiny_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("open_clip") / "model", "bpe")


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_live_teacher_and_its_stored_rows_teach_the_same(folder: Path, tmp_path: Path) -> None:
    uri, data = f"local-dir:{folder}", "scenes:train?n=64"
    embed(data, uri, tmp_path / "store", dtype="float32", workers=0, precision="float32")
    options: dict[str, Any] = {"recipe": "clip-kd", "train": {"steps": 4}, "augment": "whole"}
    distill(tiny_run(tmp_path / "live", teachers={"T": uri}, **options))
    distill(tiny_run(tmp_path / "stored", teachers={"T": str(tmp_path / "store")}, **options))
    np.testing.assert_allclose(losses(tmp_path / "live"), losses(tmp_path / "stored"), rtol=1e-4)
    teacher, student = load(uri), load(str(tmp_path / "stored"))
    assert student.tokenizer.get_vocab() == teacher.tokenizer.get_vocab()


def test_a_student_that_was_open_clips_stays_open_clips(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **{"student": {"pretrained": str(folder)}, "recipe": "clip-kd", "teachers": {"T": str(folder)}},
        **{"train": {"optimizer": "muon", "ema": 0.9}},
    }
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    distill(tiny_run(whole, **options))
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, 5)
        with pytest.raises(RuntimeError, match="power cut"):
            distill(tiny_run(broken, **options))
    distill(tiny_run(broken, **options), resume=True)
    assert losses(whole) == losses(broken)
    student = load(str(whole))
    assert student.fingerprint == load(str(broken)).fingerprint != load(str(folder)).fingerprint
    module, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{whole / 'student'}")
    sample = pairs("scenes:train?n=64")[0]
    assert student.transform is not None
    assert isinstance(sample.image, np.ndarray)
    picture = Image.fromarray(sample.image)
    pixels = preprocess(picture)[None]
    np.testing.assert_array_equal(student.transform(picture)["pixel_values"], pixels[0].numpy())
    tokens = open_clip.get_tokenizer(f"local-dir:{whole / 'student'}")(sample.captions)
    with torch.no_grad():
        assert torch.equal(student.images({"pixel_values": pixels}), module.eval().encode_image(pixels))
        assert torch.equal(student.texts(student.tokenize(sample.captions)), module.encode_text(tokens))


@pytest.mark.parametrize(("frozen", "learning"), [("text", "visual"), ("image", "text")])
def test_a_frozen_tower_is_the_whole_tower(frozen: str, learning: str, folder: Path) -> None:
    student = load(str(folder))
    train_mode(student, frozen)
    named = student.module.named_parameters()
    assert {name.split(".")[0] for name, parameter in named if parameter.requires_grad} == {learning, "logit_scale"}


def test_masked_pictures_and_bfloat16(folder: Path, tmp_path: Path) -> None:
    train = {"steps": 2, "precision": "bfloat16"}
    distill(
        tiny_run(
            tmp_path / "run", student={"pretrained": str(folder)}, recipe=[{"contrast": "SI@masked-ST"}], train=train
        )
    )
    assert np.isfinite(losses(tmp_path / "run")).all()


@pytest.mark.parametrize(
    ("student", "more", "message"),
    [
        ({"pretrained": "{}"}, {"prune": {"sparsity": 0.5}}, "is of kind CustomTextCLIP; prune works on"),
        ({"preset": "scenes-student", "inherit": "even"}, {}, "is no dual encoder of two towers of transformers"),
    ],
)
def test_what_only_models_of_transformers_can_do(
    student: dict[str, str], more: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    spec = {key: value.format(folder) for key, value in student.items()}
    with pytest.raises(ClipdistillError, match=message):
        prepare(tiny_run(tmp_path / "run", student=spec, teachers={"T": str(folder)}, recipe="clip-kd", **more))
