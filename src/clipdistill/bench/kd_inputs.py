"""What embed-kd measures on: drawn JPEG pictures with captions, and a teacher of CLIP's sizes with random weights.

``python -m clipdistill.bench.kd_inputs '{"folder": ..., ...}'`` makes one of them, in a process of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from clipdistill.bench.pictures import jpeg
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build, choose_tokenizer

_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
#: Words of a caption: about as many as those of the web have.
_WORDS = 10


def make_pictures(folder: Path, count: int, vocabulary: int) -> None:
    """Write ``count`` pictures, each with a caption of words that :func:`make_teacher` knows, as a folder of data."""
    folder.mkdir(parents=True)
    draw, known, lines = np.random.default_rng(0), words(vocabulary), []
    for number in range(count):
        name, caption = f"{number:04d}.jpg", " ".join(known[at] for at in draw.integers(0, len(known), _WORDS))
        (folder / name).write_bytes(jpeg(number))
        lines.append(json.dumps({"file_name": name, "text": caption}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def make_teacher(folder: Path, spec: dict[str, Any], vocabulary: int) -> None:
    """Write a CLIP of those sizes with random weights, and a vocabulary of that size."""
    shape = StudentSpec(**spec, vocab_size=vocabulary)
    build(shape, choose_tokenizer(shape, None, words(vocabulary)), seed=0).save(folder)


def words(count: int) -> list[str]:
    """Random words of six letters: so many give a vocabulary of as many entries."""
    return ["".join(letters) for letters in _LETTERS[np.random.default_rng(0).integers(0, 26, (count, 6))]]


def main(folder: str, vocabulary: int, pictures: int | None = None, teacher: dict[str, Any] | None = None) -> None:
    """Make pictures or a teacher."""
    if pictures is not None:
        make_pictures(Path(folder), pictures, vocabulary)
    if teacher is not None:
        make_teacher(Path(folder), teacher, vocabulary)
    print("{}")


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
