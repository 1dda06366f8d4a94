"""Drawn pictures as a folder that a user might have: files, and captions in metadata.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from clipdistill.data.sources import pairs


def draw_pictures(folder: Path, uri: str) -> Path:
    """Write the pictures of a URI such as ``scenes:test?n=8``, each with its first caption; returns the folder."""
    folder.mkdir(parents=True)
    source = pairs(uri)
    lines = []
    for place in range(len(source)):
        picture = source[place].picture
        assert isinstance(picture, np.ndarray)
        Image.fromarray(picture).save(folder / f"{place}.png")
        lines.append(json.dumps({"file_name": f"{place}.png", "text": source[place].captions[0]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder
