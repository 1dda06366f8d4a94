"""Annotation files that name pictures in another folder: COCO, Karpathy's splits, Flickr30k and their Chinese kin.

::

    annotations/captions_val2017.json   {"images": [{"id": 42, "file_name": "000000000042.jpg"}],
                                         "annotations": [{"image_id": 42, "caption": "A dog."}]}
    dataset_coco.json                   {"images": [{"filepath": "val2014", "filename": "...", "split": "test",
                                         "sentences": [{"raw": "A dog."}]}]}
    results_20130124.token              1000092795.jpg#0<tab>Two men.
    coco-cn_test.txt                    COCO_val2014_000000000042#zhm#0<tab>一只狗
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from clipdistill.data.images import IMAGE_SUFFIXES
from clipdistill.data.samples import Sample
from clipdistill.data.sources.splits import choose_splits
from clipdistill.data.sources.tables import IMAGE_COLUMNS, Columns, read_text
from clipdistill.errors import DataError

_NUMBERED = re.compile(r"(\S+?)(?:#[A-Za-z]+)?#\d+\s+(\S.*)")
_PLAIN = re.compile(r"([^\s#]+)\s+(\S.*)")
#: What the folder of the pictures is usually called.
IMAGE_FOLDERS = ("images", "Images", "flickr30k-images", "flickr30k_images", "coco")
_URL = re.compile(r"https?://", re.IGNORECASE)


@dataclass
class _Entry:
    """A picture: where it is named, under which paths it may lie, and its captions."""

    where: str
    paths: list[str]
    captions: dict[str, None] = field(default_factory=dict)


def is_annotations(path: Path, images: str | None) -> bool:
    """Whether a file is read here: by its ending, a text file by its first line or because ``images`` are given."""
    suffix = path.suffix.lower()
    return suffix in (".json", ".token") or (suffix == ".txt" and (images is not None or _begins_numbered(path)))


def read_annotations(path: Path, images: str | None = None, split: str | None = None) -> list[Sample]:
    """Read the pictures an annotation file names, each with all its captions, in the order of the file.

    Pictures lie in the folder ``images``, or in one with a usual name beside the file or one above; a picture that is
    not there is met when it is read. ``split`` chooses of Karpathy's: ``test``, or several as ``train,restval``.
    Raises :class:`DataError` with the number of a bad line or entry, for an unknown split, and if no picture is there.
    """
    if path.suffix.lower() == ".json":
        entries, usual = _from_json(path, split)
    elif split is not None:
        raise DataError(f"{path}: split={split} is for Karpathy's dataset_coco.json and dataset_flickr30k.json only")
    else:
        entries, usual = _from_lines(path, _PLAIN if images is not None else None), IMAGE_FOLDERS
    if not entries:
        raise DataError(f"{path}: it names no pictures")
    folder = _folder(path, images, usual)
    places = _places(entries, folder, path)
    return [Sample(name, places[name], {"": list(entry.captions)}) for name, entry in entries.items()]


def refuse_links(path: Path, columns: Columns) -> None:
    """Raise :class:`DataError` for a table of captions and links, as CC3M and CC12M are given out."""
    if path.suffix.lower() not in (".csv", ".tsv") or columns.image is not None:
        return
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        rows = [re.split("[\t,]" if path.suffix.lower() == ".csv" else "\t", file.readline().strip()) for _ in range(2)]
    linked = any(len(row) > 1 and any(_URL.match(value.strip('" ')) for value in row) for row in rows)
    if linked and not set(rows[0]) & set(IMAGE_COLUMNS):
        raise DataError(
            f"{path}: found captions and links, as CC3M and CC12M are given out, but no pictures; links are not "
            "followed. Download them with img2dataset (--output_format webdataset), then name its shards: "
            "cc3m/{00000..00331}.tar, or their folder."
        )


def _begins_numbered(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = next((line.strip() for line in file if line.strip()), "")
    return _NUMBERED.fullmatch(first) is not None


def _from_lines(path: Path, other: re.Pattern[str] | None) -> dict[str, _Entry]:
    """Read ``imageid#N<space or tab>caption``; with the pattern ``other`` also lines without a number."""
    entries: dict[str, _Entry] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        text = line.strip()
        if not text:
            continue
        found = _NUMBERED.fullmatch(text) or (other.fullmatch(text) if other else None)
        if found is None:
            raise DataError(f"{path}:{number}: found {text[:60]!r}, expected 1000092795.jpg#0, a tab and a caption")
        name = found[1]
        entries.setdefault(name, _Entry(f"{path}:{number}", [name])).captions[found[2]] = None
    return entries


def _from_json(path: Path, split: str | None) -> tuple[dict[str, _Entry], tuple[str, ...]]:
    """Read COCO's or Karpathy's JSON; also returns the names its folder of pictures usually has."""
    try:
        data = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    images = data.get("images") if isinstance(data, dict) else None
    if not isinstance(images, list):
        found = f"the keys {', '.join(list(data)[:8])}" if isinstance(data, dict) else f"a {type(data).__name__}"
        raise DataError(
            f"{path}: found {found}, expected COCO's captions (images, annotations) or Karpathy's splits (images with "
            "split and sentences). Other lists of pictures are read as .jsonl, .csv or .parquet."
        )
    if any(isinstance(image, dict) and "sentences" in image for image in images):
        return _karpathy(path, images, split), IMAGE_FOLDERS
    if split is not None:
        raise DataError(f"{path}: split={split} is for Karpathy's files; COCO has a file for each split")
    named = path.stem.removeprefix("captions_").removeprefix("image_info_")
    return _coco(path, images, data.get("annotations")), (named, f"images/{named}", *IMAGE_FOLDERS)


def _coco(path: Path, images: list[Any], annotations: Any) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    names: dict[Any, str] = {}
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        name = _get(image, "file_name", str, where)
        names[_get(image, "id", (int, str), where)] = name
        if name in entries:
            raise DataError(f"{where}: the file {name} is that of an earlier entry")
        entries[name] = _Entry(where, [name])
    for number, annotation in enumerate(annotations or []):
        where = f"{path}: annotations[{number}]"
        if isinstance(annotation, dict) and "caption" not in annotation and "category_id" in annotation:
            raise DataError(f"{where}: found objects, not captions; name captions_*.json instead of {path.name}")
        owner = _get(annotation, "image_id", (int, str), where)
        if owner not in names:
            raise DataError(f"{where}: image_id is {owner}, which no entry of images has")
        caption = _get(annotation, "caption", str, where).strip()
        entries[names[owner]].captions[caption] = None
    return entries


def _karpathy(path: Path, images: list[Any], split: str | None) -> dict[str, _Entry]:
    known = sorted({str(image.get("split")) for image in images if isinstance(image, dict)})
    chosen = choose_splits(known, split, str(path))
    entries: dict[str, _Entry] = {}
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        if _get(image, "split", str, where) in chosen:
            name = _get(image, "filename", str, where)
            if name in entries:
                raise DataError(f"{where}: the file {name} is that of an earlier entry")
            told = (_get(one, "raw", str, where).strip() for one in _get(image, "sentences", list, where))
            below = [f"{image['filepath']}/{name}"] if isinstance(image.get("filepath"), str) else []
            entries[name] = _Entry(where, [*below, name], dict.fromkeys(told))
    return entries


def _get(entry: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind):
        found = repr(value if isinstance(entry, dict) else entry)[:60]
        kinds = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise DataError(f"{where}: found {found} for '{key}', expected {kinds}")
    return value


def _folder(path: Path, images: str | None, usual: tuple[str, ...]) -> Path:
    """The folder of the pictures: the one given, or the first usual one that is there."""
    if images is not None:
        if not Path(images).is_dir():
            raise DataError(f"{path}: there is no folder {images}, chosen by images={images}")
        return Path(images)
    bases = [path.absolute().parent.parent, path.absolute().parent]
    for name in usual:
        for base in bases:
            if (base / name).is_dir():
                return base / name
    for base in bases:  # COCO of 2014, unpacked where its list lies
        if any((base / name).is_dir() for name in ("train2014", "val2014")):
            return base
    raise DataError(
        f"{path}: no folder of pictures found; looked for {', '.join(usual)} in {bases[0]} and {bases[1]}. Name it "
        f"with {path.name}?images=FOLDER"
    )


def _places(entries: dict[str, _Entry], folder: Path, path: Path) -> dict[str, Path]:
    """Find each picture by its path in the folder, else by its name, with or without ending, anywhere below."""
    look = _finder(folder)
    found = {name: look(entry) for name, entry in entries.items()}
    if not any(found.values()):
        first = next(iter(entries.values()))
        raise DataError(
            f"{first.where}: none of the {len(entries):,} pictures is in {folder}, the first is called "
            f"{first.paths[0]}. Name their folder with {path.name}?images=FOLDER"
        )
    return {name: folder / (place or _usual_path(entries[name])) for name, place in found.items()}


def _usual_path(entry: _Entry) -> str:
    path = entry.paths[0]
    return path if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES else f"{path}.jpg"


def _finder(folder: Path) -> Callable[[_Entry], str | None]:
    exact = dict.fromkeys(_pictures(folder))
    called: dict[str, list[str]] = {}
    for place in exact:
        path = PurePosixPath(place)
        called.setdefault(path.name, []).append(place)
        called.setdefault(path.stem, []).append(place)

    def look(entry: _Entry) -> str | None:
        for path in entry.paths:
            if path in exact:
                return path
        places = called.get(PurePosixPath(entry.paths[-1]).name, [])
        if len(places) > 1:
            raise DataError(f"{entry.where}: {entry.paths[-1]} may be {places[0]} or {places[1]} in {folder}")
        return places[0] if places else None

    return look


def _pictures(folder: Path) -> Iterator[str]:
    for below, _, names in os.walk(folder, followlinks=True):
        inside = Path(below).relative_to(folder).as_posix()
        for name in sorted(names):
            if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
                yield name if inside == "." else f"{inside}/{name}"
