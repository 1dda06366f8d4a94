"""Every recipe that ships trains a student, end to end, with the teachers and data it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import SiglipConfig

from clipdistill.algebra.recipe import Recipe, available
from clipdistill.data.sources import pairs
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build, choose_tokenizer
from clipdistill.teachers.embed import embed
from clipdistill.training.loop import distill
from clipdistill.training.run_folder import read_log
from tiny_runs import tiny_run


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with real and synthetic captions, and labels."""
    folder, source = tmp_path_factory.mktemp("synthetic"), pairs("scenes:train?n=24")
    lines = []
    for index in range(len(source)):
        pixels = source[index].image
        assert isinstance(pixels, np.ndarray)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        told = {"text": source[index].captions[0], "syn_text": [f"a drawing, number {index}", f"drawn: {index}"]}
        told["label"] = ["round", "square", "other"][index % 3]
        lines.append(json.dumps({"file_name": f"{index}.png", **told}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory, teacher: Path, synthetic: Path) -> Path:
    """The teacher's embeddings of these data."""
    out = tmp_path_factory.mktemp("stored") / "store"
    embed(str(synthetic), str(teacher), out, workers=0)
    return out


@pytest.fixture(scope="session")
def sigmoid_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with a logit bias."""
    folder = tmp_path_factory.mktemp("sigmoid")
    tower = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = {**tower, "image_size": 48, "patch_size": 12}, {**tower, "max_position_embeddings": 32}
    SiglipConfig(vision_config=vision, text_config=text).save_pretrained(folder / "config")
    spec = StudentSpec(config=str(folder / "config"), vocab_size=520)
    build(spec, choose_tokenizer(spec, None, ["a red circle"])).save(folder / "siglip")
    return folder / "siglip"


CLASSIFIER = {"preset": "scenes-vit", "width": 16, "layers": 1}
#: What a recipe needs that is not a dual encoder for each letter and a student of two towers.
NEEDS: dict[str, dict[str, Any]] = {
    "classify": {"student": CLASSIFIER},
    "vanilla-kd": {"student": CLASSIFIER},
    "teacher-kd": {"student": CLASSIFIER},
    "embed-kd": {"student": CLASSIFIER},
    "embed-kd-samples": {"student": CLASSIFIER},
    "motis-2": {"bank": {"size": 4, "neighbours": 3}},
    "self-kd": {"train": {"ema": 0.9}},
}


@pytest.mark.parametrize("name", sorted(available()))
def test_every_recipe_trains_a_student_of_another_width(
    name: str, tmp_path: Path, teacher: Path, synthetic: Path, stored: Path, sigmoid_teacher: Path
) -> None:
    given = {"motis-2": stored, "self-kd": "self", "siglip-kd": sigmoid_teacher}.get(name, teacher)
    teachers = {letter: str(given) for letter in Recipe.load(name).teachers}
    needs = NEEDS.get(name, {})
    train = {"steps": 24, "lr": 1e-2, **needs.get("train", {})}
    run = tiny_run(tmp_path / "run", recipe=name, teachers=teachers, data=str(synthetic), **{**needs, "train": train})
    result = distill(run)
    entries = list(read_log(result.folder / "log.jsonl"))
    assert [entry["step"] for entry in entries] == list(range(1, 25))
    found = [entry["loss"] for entry in entries]
    assert sum(found[-6:]) < sum(found[:6])
    assert (result.student / "clipdistill.json").is_file()
