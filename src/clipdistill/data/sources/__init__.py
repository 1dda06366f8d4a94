"""Every kind of data behind one function: ``pairs(uri)``."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import fields
from pathlib import Path
from urllib.parse import parse_qsl

from clipdistill.data.remote import is_remote
from clipdistill.data.samples import Sample, Source
from clipdistill.data.sources.annotations import is_annotations, read_annotations, refuse_links
from clipdistill.data.sources.chinese_clip import find_split, read_split
from clipdistill.data.sources.folder import read_folder
from clipdistill.data.sources.hf_datasets import find_dataset, hub_files, is_hub, open_dataset, open_hub
from clipdistill.data.sources.lines import read_lines
from clipdistill.data.sources.listed import Samples, from_samples, without_captions
from clipdistill.data.sources.mix import MIX_SUFFIXES, open_mix
from clipdistill.data.sources.remote_parquet import find_parquet, is_parquet, open_parquet
from clipdistill.data.sources.shard_names import find_shards
from clipdistill.data.sources.tables import NONE, TABLES, Columns, read_table
from clipdistill.data.sources.webdataset import open_shards
from clipdistill.errors import DataError, did_you_mean

__all__ = ["Samples", "from_samples", "pairs"]

KINDS = (
    "a folder of pictures (with metadata.jsonl, .csv or .parquet, sidecar .txt files, or a folder per class)",
    f"a table ({', '.join(sorted(TABLES))})",
    "a text file with one caption per line (.txt)",
    "webdataset shards (shards/{00000..00099}.tar, a.tar::b.tar, or their folder; s3://bucket/{00000..00099}.tar)",
    "an annotation file of COCO, Karpathy, Flickr30k, COCO-CN or Flickr30k-CN (captions_val2017.json?images=val2017)",
    "a split of Chinese-CLIP's layout (photos/train for photos/train_imgs.tsv and photos/train_texts.jsonl)",
    "a dataset on the Hugging Face hub (hf:org/name?split=train), saved to disk, or parquet files that hold pictures "
    "(photos/*.parquet, https://host/{00000..00003}.parquet)",
    "a mix of several, with weights (mix.yaml)",
    "scenes:train (made on the spot)",
)
#: Choices that are no columns, and what they are for.
_CHOICES = {
    "images": "annotation files only, such as captions_val2017.json",
    "split": "Karpathy's annotation files and datasets of Hugging Face only",
    "id": "datasets of Hugging Face only, saved to disk or such as hf:org/name",
    "config": "datasets of Hugging Face only, such as hf:org/name",
    "revision": "datasets on the Hugging Face hub only, such as hf:org/name",
    "streaming": "datasets on the Hugging Face hub only, such as hf:org/name",
}


def pairs(uri: str | Path) -> Source:
    """Open a folder, a table, shards, a Hugging Face dataset, annotations, Chinese-CLIP's layout or made-up scenes.

    A URI is a path, optionally with choices: ``photos?caption=title``, ``list.csv?image=path&sep=tab``; the keys
    are ``image``, ``caption``, ``synthetic``, ``label`` and ``group`` (columns) and ``sep`` (``tab`` or ``comma``).
    Annotation files take ``images``, the folder of their pictures, and Karpathy's ``split``; datasets ``split``,
    ``id``, a column, and on the hub ``config``, ``revision`` and ``streaming=true``, which converts nothing.
    ``caption=none`` opens pictures without their captions, ``image=none`` the captions of a table without pictures.
    Pictures are not opened: those that cannot be read are met later. Raises :class:`DataError` for everything else.
    """
    text = os.fspath(uri)
    scheme = re.match(r"([A-Za-z][\w+.-]+):(?!:)", text)  # two colons stand between shards
    if scheme and not is_remote(text) and not is_hub(text) and not Path(text).exists():
        return _made(scheme[1], text)
    name, choices = _split(_from_home(text))
    columns = Columns(**{key: value for key, value in choices.items() if key not in _CHOICES})
    if is_hub(name):
        _refuse_others(choices, {"split", "id", "config", "revision", "streaming"}, text)
        if choices.get("streaming") == "true":
            return open_parquet(hub_files(name, choices, text), columns, choices.get("id"), text)
        return open_hub(name, columns, choices, text)
    if is_parquet(name):
        return open_parquet({"": find_parquet(name)}, columns, choices.get("id"), text)
    if not is_remote(name) and (dataset := find_dataset(name, columns)):
        _refuse_others(choices, {"split", "id", "config"}, text)
        return open_dataset(dataset, columns, choices, text)
    path, shards = Path(name), find_shards(name)
    if not shards and path.is_file() and is_annotations(path, choices.get("images")):
        _refuse_others(choices, {"images", "split"}, text)
        return from_samples(_annotated(path, columns, choices, text), text)
    _refuse_others(choices, set(), text)
    if shards:
        return open_shards(shards, columns, text)
    if path.is_file() and path.suffix.lower() in MIX_SUFFIXES:
        if columns != Columns():
            raise DataError(f"{text}: a mix has no columns to choose; choose them in its parts")
        return open_mix(path, pairs, text)
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
        refuse_links(path, columns)
        return from_samples(read_table(path, columns), text)
    near = _closest(path)
    raise DataError(f"{path}: there is no such file or folder." + (near or f" Data can be {'; '.join(KINDS)}."))


def _refuse_others(choices: dict[str, str], allowed: set[str], uri: str) -> None:
    """Raise :class:`DataError` for choices that are for other kinds of data."""
    for key, value in choices.items():
        if key in _CHOICES and key not in allowed:
            raise DataError(f"{uri}: {key}={value} is for {_CHOICES[key]}")


def _made(scheme: str, uri: str) -> Source:
    if scheme != "scenes":
        hint = did_you_mean(scheme, ["scenes"]).split(" Known")[0]
        raise DataError(f"{uri}: unknown kind of data '{scheme}:'.{hint} Data can be {'; '.join(KINDS)}.")
    from clipdistill.data.scenes import open_scenes

    return open_scenes(uri)


def _annotated(path: Path, columns: Columns, choices: dict[str, str], uri: str) -> list[Sample]:
    if columns not in (Columns(), Columns(caption=NONE)):
        raise DataError(f"{uri}: an annotation file has no columns to choose, only images, split and caption={NONE}")
    samples = read_annotations(path, choices.get("images"), choices.get("split"))
    return without_captions(samples) if columns.caption else samples


def _split(text: str) -> tuple[str, dict[str, str]]:
    """Separate a path from the choices behind its question mark, unless a file has that very name."""
    head, mark, query = text.rpartition("?")
    if not mark or ("::" not in text and not is_remote(text) and Path(text).exists()):
        return text, {}
    choices = dict(parse_qsl(query, keep_blank_values=True))
    known = [*(field.name for field in fields(Columns)), *_CHOICES]
    ours = {field.name for field in fields(Columns)} | ({"id"} if is_parquet(head) else set())
    if is_remote(text) and not (choices and choices.keys() <= ours):
        return text, {}  # the question is the server's
    for key in choices:
        if key not in known:
            raise DataError(f"{text}: unknown choice '{key}'.{did_you_mean(key, known)}")
    if choices.get("streaming", "true") not in ("true", "false"):
        raise DataError(f"{text}: streaming is '{choices['streaming']}', expected true or false")
    if choices.get("sep", "tab") not in ("tab", "comma"):
        raise DataError(f"{text}: sep is '{choices['sep']}', expected tab or comma")
    if choices.get("image") == choices.get("caption") == NONE:
        raise DataError(f"{text}: image={NONE} and caption={NONE} leave nothing to read; choose one of them")
    if "images" in choices:
        choices["images"] = _from_home(choices["images"])
    return head, choices


def _from_home(paths: str) -> str:
    """Write out the ``~`` that a path, or one of several with ``::`` between them, begins with."""
    return "::".join(map(os.path.expanduser, paths.split("::")))


def _closest(path: Path) -> str:
    """Name the neighbour that the first missing part of a path resembles."""
    while not path.parent.exists():
        path = path.parent
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f" Did you mean {path.parent / close[0]}?" if close else ""
