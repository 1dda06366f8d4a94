"""Chinese-CLIP's layout of a split: pictures in base64 in one file, texts with the pictures they belong to in another.

::

    photos/train_imgs.tsv        11<TAB>/9j/4AAQSkZJ...
    photos/train_texts.jsonl     {"text_id": 1, "text": "高级感托特包斜挎", "image_ids": [11, 12]}
    photos/train_samples.jsonl   {"image_id": 11, "clipdistill_id": "bags/a.jpg", "label": "bag"}

The third file holds what the layout has no place for, and is written only where there is any; Chinese-CLIP does not
look at it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from array import array
from pathlib import Path

import numpy as np

from clipdistill.data.sources.chinese_clip import IMAGES, SAMPLES, TEXTS
from clipdistill.data.writers.entry import Entry, Survey, facts


def fits(name: str) -> bool:
    """Whether an id is a number as Chinese-CLIP wants it."""
    return name.isascii() and name.isdecimal() and str(int(name)) == name and len(name) <= 18


class ChineseClipWriter:
    """A split called ``name``: pictures under their ids where these are numbers, else numbered from 1.

    A text of several pictures is one line, unless that would change the order of a picture's captions. Memory grows
    with distinct texts, by a digest and two numbers for each, and not with pictures.
    """

    def __init__(self, folder: Path, survey: Survey, name: str) -> None:
        self._survey, self._split = survey, folder / name
        self._images = self._path(IMAGES).open("wb")
        self._texts = (folder / "texts.tmp").open("w+b")
        more = not survey.ids_fit or survey.labels or survey.groups or "syn" in survey.views
        self._more = self._path(SAMPLES).open("wb") if more else None
        #: The newest line of a text, by its digest.
        self._line: dict[bytes, int] = {}
        self._lines = 0
        #: Which lines belong to which pictures, one pair after another.
        self._owned, self._owners = array("q"), array("q")

    def add(self, entry: Entry) -> None:
        assert entry.data is not None
        number = int(entry.sample.id) if self._survey.ids_fit else entry.number + 1
        self._images.write(b"%d\t%s\n" % (number, base64.b64encode(entry.data)))
        told = facts(entry.sample, self._survey, "captions")
        newest = -1
        for caption in dict.fromkeys(told.pop("captions", [])):
            newest = self._told(caption, newest)
            self._owned.append(newest)
            self._owners.append(number)
        if self._more:
            given = {name: value for name, value in told.items() if value}
            self._more.write(_json({"image_id": number, **given}))

    def close(self) -> None:
        for file in (self._images, self._more):
            if file:
                file.close()
        self._write_texts()
        self._texts.close()
        Path(self._texts.name).unlink()

    def _path(self, ending: str) -> Path:
        return self._split.with_name(self._split.name + ending)

    def _told(self, caption: str, newest: int) -> int:
        """The line of a caption that comes after line ``newest``: an earlier picture's, or a new one."""
        digest = hashlib.blake2b(caption.encode(), digest_size=16).digest()
        line = self._line.get(digest, -1)
        if line > newest:
            return line
        self._line[digest] = self._lines
        self._texts.write(_json(caption))
        self._lines += 1
        return self._lines - 1

    def _write_texts(self) -> None:
        """Join each line with its pictures, in the order in which they named it."""
        lines = np.array(self._owned, np.int64)
        owners = np.array(self._owners, np.int64)[np.argsort(lines, kind="stable")]
        ends = np.cumsum(np.bincount(lines, minlength=self._lines))
        self._texts.seek(0)
        start = 0
        with self._path(TEXTS).open("wb") as file:
            for number, (line, end) in enumerate(zip(self._texts, ends.tolist(), strict=True), 1):
                row = {"text_id": number, "text": json.loads(line), "image_ids": owners[start:end].tolist()}
                file.write(_json(row))
                start = end


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
