"""A tiny run on drawn pictures: seconds on one core."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdistill.config import RunConfig, make_run
from clipdistill.data.sources import pairs
from clipdistill.training.setup import Setup

TINY = {"preset": "scenes-student", "width": 16, "layers": 1, "text_layers": 1, "embed_dim": 16, "vocab_size": 520}


def tiny_run(out: Path, **changes: Any) -> RunConfig:
    train = {
        "steps": 8,
        "batch_size": 16,
        "workers": 0,
        "log_every": 1,
        "checkpoint_every": 3,
        "precision": "float32",
        "optimizer": "adamw",  # Muon's bfloat16 makes more of a rounding than what is compared
        **changes.pop("train", {}),
    }
    return make_run(
        {"recipe": "clip", "data": "scenes:train?n=64", "student": TINY, "train": train, "out": str(out), **changes}
    )


def write_chinese_clip(split: Path, uri: str) -> Path:
    """Write drawn pictures in Chinese-CLIP's layout: ``split`` is ``photos/train`` for ``photos/train_imgs.tsv``."""
    source = pairs(uri)
    images, texts = [], []
    for index in range(len(source)):
        pixels, stream = source[index].image, io.BytesIO()
        assert isinstance(pixels, np.ndarray)
        Image.fromarray(pixels).save(stream, format="PNG")
        images.append(f"{index}\t{base64.b64encode(stream.getvalue()).decode()}\n")
        for text in source[index].captions:
            row = {"text_id": len(texts), "text": text, "image_ids": [index]}
            texts.append(json.dumps(row, ensure_ascii=False) + "\n")
    split.parent.mkdir(parents=True, exist_ok=True)
    split.with_name(f"{split.name}_imgs.tsv").write_text("".join(images))
    split.with_name(f"{split.name}_texts.jsonl").write_text("".join(texts), encoding="utf-8")
    return split


def fail_at_step(patch: pytest.MonkeyPatch, step: int) -> None:
    """Break the forward pass after that many (the preflight runs one before)."""
    calls = [0]
    losses = Setup.all_losses

    def failing(self: Setup, batches: Any, number: int) -> Any:
        calls[0] += 1
        if calls[0] == step + 1:
            raise RuntimeError("power cut")
        return losses(self, batches, number)

    patch.setattr(Setup, "all_losses", failing)
