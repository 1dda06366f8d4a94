"""Models that ``bench search`` can ask with, by name, and the captions that they read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipdistill.bench import towers
from clipdistill.data.sources import pairs
from clipdistill.models.presets import PRESETS

#: Of the size of OpenAI's ViT-B/16: what all others are compared with.
BESIDE = "clip-b-16"
SPECS: Mapping[str, Mapping[str, Any]] = {**towers.SPECS, BESIDE: {"preset": "vit-base-16"}}
#: What is measured where nobody names models, and what ALL stands for.
DEFAULT, ALL, EVERY = ("vit-tiny-16", "tinyclip-8m-16", BESIDE), "all", (*PRESETS, BESIDE)
_SCENES = 300


def write_captions(path: Path) -> Path:
    """Write a list of drawn scenes' captions, all different, as JSON; return the path."""
    source = pairs(f"scenes:train?n={_SCENES}")
    texts = dict.fromkeys(text for place in range(len(source)) for text in source[place].captions)
    path.write_text(json.dumps(list(texts)), encoding="utf-8")
    return path
