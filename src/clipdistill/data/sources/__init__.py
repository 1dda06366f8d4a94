"""Every kind of data behind one function: ``pairs(uri)``."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import fields
from pathlib import Path
from urllib.parse import parse_qsl

from clipdistill.data.samples import Source
from clipdistill.data.sources.chinese_clip import find_split, read_split
from clipdistill.data.sources.folder import read_folder
from clipdistill.data.sources.lines import read_lines
from clipdistill.data.sources.listed import Samples, from_samples, without_captions
from clipdistill.data.sources.tables import NONE, TABLES, Columns, read_table
from clipdistill.errors import DataError, did_you_mean

__all__ = ["Samples", "from_samples", "pairs"]

KINDS = (
    "a folder of pictures (with metadata.jsonl, .csv or .parquet, sidecar .txt files, or a folder per class)",
    f"a table ({', '.join(sorted(TABLES))})",
    "a text file with one caption per line (.txt)",
    "a split of Chinese-CLIP's layout (photos/train for photos/train_imgs.tsv and photos/train_texts.jsonl)",
    "scenes:train (made on the spot)",
)


def pairs(uri: str | Path) -> Source:
    """Open a folder, a table, captions in a text file, a split in Chinese-CLIP's layout or made-up scenes.

    A URI is a path, optionally with choices: ``photos?caption=title``, ``list.csv?image=path&sep=tab``; the keys
    are ``image``, ``caption``, ``synthetic``, ``label`` and ``group`` (columns) and ``sep`` (``tab`` or ``comma``).
    ``caption=none`` opens pictures without their captions, ``image=none`` the captions of a table without pictures.
    Pictures are not opened: those that cannot be read are met later. Raises :class:`DataError` for everything else.
    """
    text = os.fspath(uri)
    scheme = re.match(r"([A-Za-z][\w+.-]+):", text)
    if scheme and not Path(text).exists():
        return _made(scheme[1], text)
    path, columns = _split(text)
    if split := find_split(path):
        if columns not in (Columns(), Columns(caption=NONE)):
            raise DataError(f"{text}: a split in Chinese-CLIP's layout has no columns to choose; name {path}")
        samples = read_split(split)
        return from_samples(without_captions(samples) if columns.caption else samples, text)
    if path.is_dir():
        return from_samples(read_folder(path, columns), text)
    if path.is_file() and path.suffix.lower() == ".txt":
        if columns != Columns():
            raise DataError(f"{text}: a text file of captions has no columns to choose; name {path}")
        return read_lines(path, text)
    if path.is_file():
        return from_samples(read_table(path, columns), text)
    raise DataError(f"{path}: there is no such file or folder.{_closest(path)} Data can be {'; '.join(KINDS)}.")


def _made(scheme: str, uri: str) -> Source:
    if scheme != "scenes":
        hint = did_you_mean(scheme, ["scenes"]).split(" Known")[0]
        raise DataError(f"{uri}: unknown kind of data '{scheme}:'.{hint} Data can be {'; '.join(KINDS)}.")
    from clipdistill.data.scenes import open_scenes

    return open_scenes(uri)


def _split(text: str) -> tuple[Path, Columns]:
    """Separate a path from the choices behind its question mark, unless a file has that very name."""
    head, mark, query = text.rpartition("?")
    if not mark or Path(text).exists():
        return Path(text), Columns()
    choices = dict(parse_qsl(query, keep_blank_values=True))
    known = [field.name for field in fields(Columns)]
    for key in choices:
        if key not in known:
            raise DataError(f"{text}: unknown choice '{key}'.{did_you_mean(key, known)}")
    if choices.get("sep", "tab") not in ("tab", "comma"):
        raise DataError(f"{text}: sep is '{choices['sep']}', expected tab or comma")
    if choices.get("image") == choices.get("caption") == NONE:
        raise DataError(f"{text}: image={NONE} and caption={NONE} leave nothing to read; choose one of them")
    return Path(head), Columns(**choices)


def _closest(path: Path) -> str:
    """Name the neighbour that the first missing part of a path resembles."""
    while not path.parent.exists():
        path = path.parent
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {path.parent / close[0]}?" if close else ""
