"""Small models with random weights, and stores made with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipdistill.data.sources import pairs
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build, choose_tokenizer
from tiny_runs import TINY

DATA = "scenes:train?n=30"


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two models that differ in their weights alone."""
    source, spec = pairs(DATA), StudentSpec(**TINY)
    captions = [caption for index in range(len(source)) for caption in source[index].captions]
    tokenizer = choose_tokenizer(spec, None, captions)
    folders = []
    for seed in (0, 1):
        encoder = build(spec, tokenizer, None, seed, None, None)
        with torch.no_grad():  # at the usual initial scale everything would look alike to so small a model
            for parameter in encoder.module.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4.0)
        folders.append(tmp_path_factory.mktemp("models") / f"model{seed}")
        encoder.save(folders[-1])
    return folders


@pytest.fixture(scope="session")
def small_model(small_models: list[Path]) -> str:
    """The first of them."""
    return str(small_models[0])
