"""Teachers and data for the runs of these tests, and what every recipe needs of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipConfig

from clipdistill.algebra.recipe import Recipe
from clipdistill.config import RunConfig
from clipdistill.data.sources import pairs
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build, choose_tokenizer
from clipdistill.teachers.embed import embed
from tiny_runs import TINY, tiny_run


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of another width, with random weights that tell pictures apart."""
    spec = StudentSpec(**{**TINY, "width": 32, "embed_dim": 24})
    source = pairs("scenes:train?n=64")
    captions = [caption for place in range(len(source)) for caption in source[place].captions]
    encoder = build(spec, choose_tokenizer(spec, None, captions))
    with torch.no_grad():  # at the usual initial scale all pictures look alike to so small a model
        for parameter in encoder.module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    folder = tmp_path_factory.mktemp("teacher") / "student"
    encoder.save(folder)
    return folder


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


RecipeRun = Callable[[str, Path, dict[str, Any]], RunConfig]


@pytest.fixture(scope="session")
def recipe_run(teacher: Path, synthetic: Path, stored: Path, sigmoid_teacher: Path) -> RecipeRun:
    """Makes a tiny run of a recipe, with the teachers, student and data it needs."""

    def make(name: str, out: Path, train: dict[str, Any]) -> RunConfig:
        given = {"motis-2": stored, "self-kd": "self", "siglip-kd": sigmoid_teacher}.get(name, teacher)
        teachers = {letter: str(given) for letter in Recipe.load(name).teachers}
        needs = {**NEEDS.get(name, {})}
        train = {**train, **needs.pop("train", {})}
        return tiny_run(out, recipe=name, teachers=teachers, data=str(synthetic), **needs, train=train)

    return make
