"""Chinese-CLIP's feature files, as its extract_features writes them: one JSON object per line.

::

    train_imgs.img_feat.jsonl     {"image_id": 1076345, "feature": [0.03, ...]}
    train_texts.txt_feat.jsonl    {"text_id": 8428, "feature": [0.01, ...]}
    train_texts.jsonl             {"text_id": 8428, "text": "高级感托特包斜挎", "image_ids": [1076345, 517602]}

The last is the split's own file: it tells which caption a text row is of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from clipdistill.data.sources.chinese_clip import TEXTS, find_split
from clipdistill.errors import StoreError
from clipdistill.teachers.foreign.blocks import Block, Choice, Foreign, Origin, as_ids

LAYOUT = "Chinese-CLIP's features (train_imgs.img_feat.jsonl, train_texts.txt_feat.jsonl)"
#: What a line's id is called, by side, and what the names of such files hold.
IDS = {"image": "image_id", "text": "text_id"}
NAMES = {"image": "_imgs.*feat.jsonl", "text": "_texts.*feat.jsonl"}
LINES = 512


def find_features(path: Path) -> dict[str, Path]:
    """The feature files that ``path`` means, by side; empty where it is not this layout.

    ``path`` is one of the files, their folder, or a split, as ``photos/train``. Raises StoreError for a folder with
    several splits.
    """
    if path.is_file():
        line = _first_line(path) if path.suffix == ".jsonl" else {}
        return {side: path for side, name in IDS.items() if name in line and "feature" in line}
    folder, split = (path, "*") if path.is_dir() else (path.parent, path.name)
    found = {side: sorted(folder.glob(split + name)) for side, name in NAMES.items()}
    for files in found.values():
        if len(files) > 1:
            names = " or ".join(str(file) for file in files)
            raise StoreError(f"{path}: there are several feature files of one kind. Name a split or a file: {names}.")
    return {side: files[0] for side, files in found.items() if files}


def read_features(path: Path, choice: Choice) -> Foreign:
    """Open such files; raises StoreError if nothing says which captions the text rows are of."""
    files = find_features(path)
    captions = _captions(files["text"], choice) if "text" in files else {}
    total = sum(file.stat().st_size for file in files.values())
    foreign = Foreign(LAYOUT, iter(()), total, "bytes", "caption")
    foreign.blocks = _blocks(files, captions, foreign)
    return foreign


def _first_line(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        try:
            line = json.loads(file.readline())
        except (ValueError, RecursionError):
            return {}
    return line if isinstance(line, dict) else {}


def _captions(features: Path, choice: Choice) -> dict[str, str]:
    """What each text id says, from the split's file: beside the features, or that of the data."""
    texts = features.with_name(features.name.split(TEXTS.removesuffix(".jsonl"))[0] + TEXTS)
    split = find_split(Path(choice.source.uri)) if choice.source else None
    if split is not None:
        texts = split.with_name(split.name + TEXTS)
    if not texts.is_file():
        raise StoreError(
            f"{features} numbers its texts, and {texts}, which says what they are, is not there. Put it there, name "
            "the split it belongs to with --data SPLIT, or import the image features alone by naming their file."
        )
    said: dict[str, str] = {}
    for number, row in _objects(texts):
        if "text_id" not in row or not isinstance(row.get("text"), str):
            raise StoreError(f'{texts}:{number}: found {_short(row)}, expected {{"text_id": 1, "text": "..."}}.')
        said[str(row["text_id"])] = row["text"]  # as that split is read
    return said


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with their lines; raises StoreError for a line that holds something else."""
    for number, _, row in _lines(path):
        yield number, row


def _lines(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            end += len(line)
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise StoreError(
                    f"{path}:{number}: not JSON in UTF-8 ({error}): the file is damaged or cut."
                ) from error
            if not isinstance(row, dict):
                raise StoreError(f"{path}:{number}: found {_short(row)}, expected an object.")
            yield number, end, row


def _blocks(files: dict[str, Path], captions: dict[str, str], foreign: Foreign) -> Iterator[Block]:
    before = 0
    for side, path in files.items():
        lines = _lines(path)
        while chunk := list(islice(lines, LINES)):
            numbers = [number for number, _, _ in chunk]
            rows = [_feature(path, number, row, IDS[side], chunk[0][2]) for number, _, row in chunk]
            ids = [as_ids([row[IDS[side]]], str(path), "line", number)[0] for number, _, row in chunk]
            keys = ids if side == "image" else [_said(path, *pair, captions) for pair in zip(numbers, ids, strict=True)]
            origin = Origin(path, "line", numbers)
            done = before + chunk[-1][1]
            yield Block("image" if side == "image" else "text", keys, np.asarray(rows, np.float32), origin, done)
        before += path.stat().st_size


def _feature(path: Path, number: int, row: dict[str, Any], id_name: str, first: dict[str, Any]) -> list[float]:
    feature = row.get("feature")
    numbers = isinstance(feature, list) and all(type(value) in (float, int) for value in feature)
    if id_name not in row or not isinstance(feature, list) or not numbers or not feature:
        raise StoreError(f'{path}:{number}: found {_short(row)}, expected {{"{id_name}": 1, "feature": [0.1, ...]}}.')
    if len(feature) != len(first["feature"]):
        raise StoreError(f"{path}:{number}: the feature has {len(feature)} numbers, others {len(first['feature'])}.")
    return feature


def _said(path: Path, number: int, text_id: str, captions: dict[str, str]) -> str:
    if text_id not in captions:
        raise StoreError(f"{path}:{number}: the split's texts have no text_id {text_id}: they are of other data.")
    return captions[text_id]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
