"""Benchmarks of classification on disk: a folder per class, names and sentences from files.

::

    imagenet/val/n01440764/ILSVRC2012_val_00000293.JPEG      classes by WordNet id
    imagenetv2-matched-frequency-format-val/0/1d8f.jpeg      classes by number, from 0
    elevater/mnist/test/0/12.png                             the same, named by the lines of elevater/mnist/label.txt

Beside the folders of a benchmark may lie ``classnames.txt``, a name per line for each folder, and ``templates.txt``, a
sentence with ``{}`` per line: they take the place of the names and sentences it is known by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from clipdistill.data.images import IMAGE_SUFFIXES
from clipdistill.data.samples import Sample, Source
from clipdistill.data.sources import from_samples
from clipdistill.data.sources.tables import read_text
from clipdistill.errors import DataError
from clipdistill.evaluation.zeroshot import TEMPLATES, Classes

NAMES, CHINESE_NAMES, SENTENCES = "classnames.txt", "label_cn.txt", "templates.txt"


@dataclass(frozen=True)
class Vocabulary:
    """A benchmark's classes in its order: ``keys`` are what folders are called, ``names`` what that means.

    ``names`` is None where only a file beside the folders can tell, ``label_cn.txt``. ``published`` are English
    names in the order in which classifiers of the benchmark have their classes, none where there is no such order.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...] | None
    templates: tuple[str, ...]
    published: tuple[str, ...] = ()

    def classes(self, numbers: Sequence[int], names: Sequence[str], templates: Sequence[str]) -> Classes:
        """Return the classes with these numbers."""
        labels = distinct(names, [self.keys[number] for number in numbers])
        return Classes(labels, tuple(names), tuple(templates), tuple(numbers), self.published)


def imagenet(chinese: bool = False) -> Vocabulary:
    """ImageNet's 1,000 classes by WordNet id."""
    keys, names = _columns("imagenet.tsv")
    return Vocabulary(keys, None if chinese else names, _templates("imagenet-templates.txt", chinese), names)


def cifar100(chinese: bool = False) -> Vocabulary:
    """CIFAR-100's classes by the names in its archive."""
    keys, english, own = _columns("cifar100.tsv")
    return Vocabulary(keys, own if chinese else english, _templates("cifar-templates.txt", chinese), english)


def numbered(folder: Path, chinese: bool) -> Vocabulary:
    """As many classes as the label file of ``folder`` has lines, called by their number."""
    file = folder / (CHINESE_NAMES if chinese else "label.txt")
    if not file.is_file():
        raise DataError(f"{folder}: there is no {file.name}, which names the classes, one per line in their order.")
    names = _lines(file)
    return Vocabulary(tuple(map(str, range(len(names)))), names, _templates("imagenet-templates.txt", chinese))


def split_folder(root: Path, splits: Sequence[str]) -> Path:
    """Return the first of the usual folders of a split that is in ``root``, or ``root`` itself."""
    return next((root / name for name in splits if (root / name).is_dir()), root)


def open_classes(root: Path, splits: Sequence[str], vocabulary: Vocabulary, every: bool) -> tuple[Source, Classes]:
    """Open a folder per class, in ``root`` or one of its ``splits``, and the classes its pictures are told apart by.

    With ``every`` these are all of the vocabulary, which must all be there; otherwise the folders decide.
    Raises :class:`DataError` for a folder that is no class, an empty one, one that is missing, and pictures outside.
    """
    folder = split_folder(root, splits)
    pictures = _pictures(folder)
    numbers = _numbers(pictures, vocabulary, every, folder)
    own = _beside(root, folder, NAMES)
    if every and own is None:
        _check_every(numbers, vocabulary, folder, root)
    told = sorted(numbers)
    names = _lines(own) if own else tuple(_all_names(vocabulary, root, folder)[number] for number in told)
    if len(names) != len(told):
        raise DataError(f"{own}: found {len(names)} names for the {len(told)} folders of {folder}; give one each.")
    classes = vocabulary.classes(told, names, sentences(root, folder, vocabulary))
    samples = [
        Sample(f"{numbers[number]}/{path.name}", path, {}, label)
        for number, label in zip(told, classes.labels, strict=True)
        for path in pictures[numbers[number]]
    ]
    return from_samples(samples, str(folder)), classes


def distinct(names: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    """Return the names, with its key behind each that several classes have."""
    return tuple(f"{n} ({key})" if names.count(n) > 1 else n for n, key in zip(names, keys, strict=True))


def sentences(root: Path, folder: Path, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return the sentences of ``templates.txt``, if it is there, or those the benchmark is known by."""
    own = _beside(root, folder, SENTENCES)
    if own is None:
        return vocabulary.templates
    lines = _lines(own)
    for number, line in enumerate(lines, 1):
        if "{}" not in line:
            raise DataError(f"{own}:{number}: found {line[:60]!r}, expected a sentence with {{}} where the name goes.")
    return lines


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class folder; every picture there is must be in one, and not deeper."""
    entries = _seen(folder)
    found = {entry.name: _images(_in_class(entry)) for entry in entries if entry.is_dir()}
    if loose := _images(entries):
        raise DataError(
            f"{folder}: {len(loose)} pictures lie loose, the first is {loose[0].name}; expected a folder per class, "
            "with its pictures in it. Put them into their folders, or elsewhere."
        )
    if not found:
        raise DataError(
            f"{folder}: there is nothing to classify; expected a folder per class, with its pictures in it."
        )
    for name, pictures in found.items():
        if not pictures:
            raise DataError(f"{folder / name}: there are no pictures in the folder of this class. Put them there.")
    return found


def _in_class(folder: Path) -> list[Path]:
    """What lies in a class folder, none of it a folder of pictures."""
    entries = _seen(folder)
    for entry in entries:
        deeper = entry.suffix.lower() not in IMAGE_SUFFIXES and entry.is_dir()
        if deeper and (lost := _images(entry.rglob("*"))):
            raise DataError(
                f"{entry}: {len(lost)} pictures lie too deep, the first is {lost[0].name}; expected the pictures of a "
                f"class in its folder at once. Put them into {folder}, or elsewhere."
            )
    return entries


def _seen(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden."""
    return [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]


def _images(entries: Iterable[Path]) -> list[Path]:
    """The pictures among them; macOS puts a hidden ``._1.jpg`` beside ``1.jpg``."""
    images = (entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(entry for entry in images if not entry.name.startswith("."))


def _numbers(folders: Iterable[str], vocabulary: Vocabulary, every: bool, where: Path) -> dict[int, str]:
    """The folder of each class, by the class's number: folders are called by key or, where all are there, by number."""
    known: Mapping[str, int] = {key: number for number, key in enumerate(vocabulary.keys)}
    if every and all(name.isdecimal() for name in folders):
        known = {name: int(name) for name in folders if int(name) < len(vocabulary.keys)}
    found: dict[int, str] = {}
    for name in folders:
        number = known.get(name, known.get(name.lower().replace(" ", "_")))
        if number is None:
            first, last = vocabulary.keys[0], vocabulary.keys[-1]
            numbers = f", or numbers from 0 to {len(vocabulary.keys) - 1}" if every and first != "0" else ""
            raise DataError(f"{where}: the folder '{name}' is no class here; expected {first} to {last}{numbers}.")
        if number in found:
            raise DataError(f"{where}: the folders '{found[number]}' and '{name}' are the same class; keep one.")
        found[number] = name
    return found


def _check_every(numbers: Mapping[int, str], vocabulary: Vocabulary, folder: Path, root: Path) -> None:
    missing = [key for number, key in enumerate(vocabulary.keys) if number not in numbers]
    if missing:
        raise DataError(
            f"{folder}: found folders of {len(numbers)} of the {len(vocabulary.keys):,} classes, the first that is "
            f"missing is {missing[0]}. Add the others; or write a name for each folder, in order, into {root / NAMES}: "
            "then only these are told apart."
        )


def _all_names(vocabulary: Vocabulary, root: Path, folder: Path) -> tuple[str, ...]:
    if vocabulary.names is not None:
        return vocabulary.names
    file = _beside(root, folder, CHINESE_NAMES)
    if file is None:
        raise DataError(
            f"{root}: there is no {CHINESE_NAMES}. Chinese names of these {len(vocabulary.keys):,} classes do not come "
            f"with the package: put Chinese-CLIP's file there, one name per line in the order of the WordNet ids."
        )
    names = _lines(file)
    if len(names) != len(vocabulary.keys):
        raise DataError(f"{file}: found {len(names)} names, expected one for each of {len(vocabulary.keys):,} classes.")
    return names


def _beside(root: Path, folder: Path, file: str) -> Path | None:
    """A file in the benchmark's folder, or among the folders of its classes."""
    return next((place / file for place in (root, folder) if (place / file).is_file()), None)


def _lines(file: Path) -> tuple[str, ...]:
    """The lines of a file, none empty but at its end."""
    lines = [line.strip() for line in read_text(file).rstrip().split("\n")]
    if not all(lines):
        where = f"{file}:{lines.index('') + 1}" if any(lines) else str(file)
        raise DataError(f"{where}: found nothing, expected one name or sentence per line.")
    return tuple(lines)


def _templates(shipped: str, chinese: bool) -> tuple[str, ...]:
    return TEMPLATES["zh"] if chinese else tuple(_shipped(shipped).splitlines())


def _columns(file: str) -> tuple[tuple[str, ...], ...]:
    return tuple(zip(*(line.split("\t") for line in _shipped(file).splitlines()), strict=True))


def _shipped(file: str) -> str:
    return (files("clipdistill.evaluation") / "classnames" / file).read_text(encoding="utf-8")
