"""Chinese-CLIP's layout: pictures in base64 in one file, texts and who belongs to whom in another.

::

    photos/train_imgs.tsv       1076345<TAB>/9j/4AAQSkZJ...
    photos/train_texts.jsonl    {"text_id": 8428, "text": "高级感托特包斜挎", "image_ids": [1076345, 517602]}
    photos/train_samples.jsonl  {"image_id": 1076345, "clipdistill_id": "bags/a.jpg", "label": "bag"}

The third file is ours, and seldom there: ids that are no numbers, labels, groups and ``syn_text`` of converted data.
Their LMDB folders (``photos/lmdb/train``) are made from these two files, and are read where the files are not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipdistill.data.samples import Base64Line, Sample
from clipdistill.data.sources.chinese_clip_lmdb import is_lmdb, read_lmdb
from clipdistill.data.sources.tables import OWN_ID
from clipdistill.errors import DataError

IMAGES, TEXTS, SAMPLES = "_imgs.tsv", "_texts.jsonl", "_samples.jsonl"


def find_split(path: Path) -> Path | None:
    """Return the split that ``path`` means, as ``photos/train``, or None where it is not Chinese-CLIP's layout.

    Understood are ``photos/train``, either of its files, ``photos/lmdb/train``, and ``photos`` if it holds one split.
    Where there is nothing but LMDB it is the folder ``photos/lmdb/train``. Raises :class:`DataError` if a file of the
    two is missing, or the split is not said.
    """
    for ending in (IMAGES, TEXTS):
        named = path.with_name(path.name.removesuffix(ending)) if path.name.endswith(ending) else path
        if named != path and path.is_file() and all(_file(named, one).is_file() for one in (IMAGES, TEXTS)):
            return named
    if path.parent.name == "lmdb" and _begun(split := path.parent.parent / path.name):
        return _whole(split)
    if not path.is_dir() and _begun(path):
        return _whole(path)
    database = path if path.is_dir() else path.parent / "lmdb" / path.name
    if is_lmdb(database):
        return database
    if not path.is_dir():
        return None
    splits = sorted(path / name for name in _split_names(path)) or _lmdb_splits(path)
    if len(splits) > 1:
        raise DataError(f"{path}: found several splits. Did you mean {' or '.join(map(str, splits))}?")
    if not splits:
        return None
    return splits[0] if is_lmdb(splits[0]) else _whole(splits[0])


def read_split(split: Path) -> list[Sample]:
    """Read the pictures of a split, in the order of their file, each with all texts that name it.

    Pictures stay in the file until they are asked for; one that no text names has no caption. Raises
    :class:`DataError` with file and line.
    """
    if is_lmdb(split):
        return read_lmdb(split)
    pictures = dict(_pictures(_file(split, IMAGES)))
    captions: dict[str, dict[str, None]] = {name: {} for name in pictures}
    for where, text, names in _texts(_file(split, TEXTS)):
        for name in names:
            if name not in captions:
                raise DataError(f"{where}: image_ids names {name}, which {_file(split, IMAGES)} does not hold.")
            captions[name][text] = None
    besides = dict(_besides(_file(split, SAMPLES)))
    return [_sample(name, picture, list(captions[name]), besides.get(name, {})) for name, picture in pictures.items()]


def _sample(name: str, picture: Base64Line, captions: list[str], facts: dict[str, Any]) -> Sample:
    texts = {"": captions} | ({"syn": facts["syn_text"]} if facts.get("syn_text") else {})
    return Sample(facts.get(OWN_ID) or name, picture, texts, facts.get("label"), facts.get("group"))


def _file(split: Path, ending: str) -> Path:
    return split.with_name(split.name + ending)


def _split_names(folder: Path) -> Iterator[str]:
    return (file.name.removesuffix(IMAGES) for file in folder.glob(f"?*{IMAGES}"))


def _lmdb_splits(folder: Path) -> list[Path]:
    inside = folder if folder.name == "lmdb" else folder / "lmdb"
    return sorted(path for path in inside.glob("*") if is_lmdb(path))


def _whole(split: Path) -> Path:
    """Check that both files of a split are there."""
    for ending, other in ((IMAGES, TEXTS), (TEXTS, IMAGES)):
        if not _file(split, ending).is_file():
            raise DataError(
                f"{_file(split, other)} needs {_file(split, ending).name} beside it, which is not there. Both files "
                "make a split of Chinese-CLIP's data."
            )
    return split


def _begun(split: Path) -> bool:
    return any(_file(split, ending).is_file() for ending in (IMAGES, TEXTS))


def _pictures(path: Path) -> Iterator[tuple[str, Base64Line]]:
    """Yield ids and where their pictures are, without decoding them."""
    seen: dict[str, int] = {}
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                name, offset, size = _fields(line, f"{path}:{number}")
                if name in seen:
                    raise DataError(
                        f"{path}:{number}: the image id {name} is that of line {seen[name]}; ids must differ"
                    )
                seen[name] = number
                yield name, Base64Line(path, number, start + offset, size)
            start += len(line)


def _fields(line: bytes, where: str) -> tuple[str, int, int]:
    """Split a line into its image id, and where in it the picture begins and how long it is."""
    name, tab, picture = line.rstrip().partition(b"\t")
    if not tab or not name.strip() or not picture or b"\t" in picture:
        found = line[:40].decode("utf-8", "replace").rstrip()
        raise DataError(f"{where}: found {found!r}, expected an image id, a tab and the picture in base64")
    return name.strip().decode("utf-8", "replace"), len(name) + 1, len(picture)


def _texts(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield where a text stands, the text, and the ids of its pictures."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}:{number}"
                row = _row(line, where)
                yield where, row["text"], [str(name) for name in row["image_ids"]]


def _besides(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield image ids and what else is said of these pictures, if the file is there."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = _json(line, f"{path}:{number}")
                if not isinstance(row, dict) or "image_id" not in row or not _is_told(row):
                    found = line[:60].decode("utf-8", "replace").strip()
                    raise DataError(
                        f'{path}:{number}: found {found}, expected {{"image_id": 1}} with texts under {OWN_ID}, '
                        "label and group, and a list of them under syn_text"
                    )
                yield str(row["image_id"]), row


def _is_told(row: dict[str, Any]) -> bool:
    words = [row[name] for name in (OWN_ID, "label", "group") if name in row]
    made = row.get("syn_text", [])
    return isinstance(made, list) and all(isinstance(word, str) for word in (*words, *made))


def _json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON in UTF-8 ({error}); expected one object per line") from error


def _row(line: bytes, where: str) -> dict[str, Any]:
    row = _json(line, where)
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not isinstance(row.get("image_ids"), list):
        found = line[:60].decode("utf-8", "replace").strip()
        raise DataError(f'{where}: found {found}, expected {{"text_id": 1, "text": "...", "image_ids": [1, 2]}}')
    return row
