"""Small models of one layer to export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf

from models.conftest import MAKERS, TOWER


def _pictures_alone(folder: Path) -> None:
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    hf.ResNetForImageClassification(config).eval().save_pretrained(folder)
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)


def _captions_alone(folder: Path) -> None:
    MAKERS["chinese_clip"](folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    config = hf.BertConfig(**TOWER, vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=0)
    hf.BertModel(config).eval().save_pretrained(folder)


@pytest.fixture
def make_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a random model: one of the families, or of ``pictures`` or ``captions`` alone."""

    def make(kind: str) -> Path:
        monkeypatch.setitem(TOWER, "num_hidden_layers", 1)
        torch.manual_seed(1)
        makers = {**MAKERS, "pictures": _pictures_alone, "captions": _captions_alone}
        makers[kind](tmp_path / "model")
        return tmp_path / "model"

    return make
