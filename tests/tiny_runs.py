"""A tiny run on drawn pictures: seconds on one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipdistill.config import RunConfig, make_run

TINY = {"preset": "scenes-student", "width": 16, "layers": 1, "text_layers": 1, "embed_dim": 16, "vocab_size": 520}


def tiny_run(out: Path, **changes: Any) -> RunConfig:
    train = {
        "steps": 8,
        "batch_size": 16,
        "workers": 0,
        "log_every": 1,
        "checkpoint_every": 3,
        "precision": "float32",
        **changes.pop("train", {}),
    }
    return make_run(
        {"recipe": "clip", "data": "scenes:train?n=64", "student": TINY, "train": train, "out": str(out), **changes}
    )
