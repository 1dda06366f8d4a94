"""Benchmarks of text-image retrieval on disk: the test split, and who asks for what.

::

    flickr30k/dataset_flickr30k.json    Karpathy's splits, the pictures in flickr30k/flickr30k-images
    MUGE/valid_imgs.tsv                 Chinese-CLIP's layout, with MUGE/valid_texts.jsonl; or MUGE/lmdb/valid
    coco-cn/coco-cn_test.txt            COCO-CN as its authors give it out: the names of the test pictures, beside
                                        imageid.human-written-caption.txt
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from clipdistill.data.samples import Source
from clipdistill.data.sources import from_samples, pairs
from clipdistill.data.sources.annotations import IMAGE_FOLDERS, read_annotations
from clipdistill.data.sources.tables import read_text
from clipdistill.errors import DataError
from clipdistill.evaluation.evaluate import Gallery, Questions

HUMAN = "imageid.human-written-caption.txt"


def open_karpathy(root: Path, file: str) -> Source:
    """Open the test split of Karpathy's ``file``, in ``root`` or its ``annotations``."""
    found = next((place for place in (root / file, root / "annotations" / file) if place.is_file()), None)
    if found is None:
        raise DataError(
            f"{root}: there is no {file}, here or in {root / 'annotations'}. It holds Karpathy's splits and all "
            "captions; put it there, and the pictures beside it, in the folder they are given out in."
        )
    return pairs(f"{found}?split=test&images={_images(root)}")


def open_chinese(root: Path, split: str, files: Sequence[str] = ()) -> Source:
    """Open a split in Chinese-CLIP's layout, or the first of ``files``: its captions as ``imageid#0`` and text."""
    if any((root / f"{split}{ending}").is_file() for ending in ("_imgs.tsv", "_texts.jsonl")):
        return _asking(pairs(root / split))
    if (root / "lmdb" / split).is_dir():
        return _asking(pairs(root / "lmdb" / split))
    if found := next((root / name for name in files if (root / name).is_file()), None):
        return _coco_cn(found) if (root / HUMAN).is_file() else pairs(f"{found}?images={_images(root)}")
    others = "".join(f", {name}" for name in files)
    raise DataError(f"{root}: found none of {split}_imgs.tsv with {split}_texts.jsonl, lmdb/{split}{others}.")


def own_picture(gallery: Gallery) -> Questions:
    """Every caption asks for its own picture, and nothing else answers it, as the papers count."""
    return [caption for _, caption in gallery.told], [np.array([owner], np.intp) for owner, _ in gallery.told]


def each_text(gallery: Gallery) -> Questions:
    """Every text asks once, and all pictures that have it answer: a search engine's queries."""
    owners: dict[str, list[int]] = {}
    for owner, caption in gallery.told:
        owners.setdefault(caption, []).append(owner)
    return list(owners), [np.array(own, np.intp) for own in owners.values()]


def _folder(root: Path) -> Path:
    """Where the pictures of a benchmark are looked for: below a folder with a usual name, or below its own."""
    return next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), root)


def _images(root: Path) -> str:
    """The same as it stands in a data URI."""
    return quote(str(_folder(root)))


def _asking(source: Source) -> Source:
    if not any(source[index].captions for index in range(len(source))):
        raise DataError(f"{source.uri}: no text names a picture, as in splits whose answers are kept secret.")
    return source


def _coco_cn(chosen: Path) -> Source:
    """The pictures that a list names, with the captions that people wrote for them."""
    told = chosen.with_name(HUMAN)
    samples = {sample.id: sample for sample in read_annotations(told, str(_folder(chosen.parent)))}
    names = read_text(chosen).split()
    if missing := [name for name in names if name not in samples]:
        raise DataError(f"{chosen}: names {missing[0]}, which {told} has no caption for.")
    return from_samples([samples[name] for name in names], str(chosen))
