"""Benchmarks by name: how each lies on disk, what it asks, and the figures that papers give for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clipdistill.data.samples import Source
from clipdistill.errors import DataError, did_you_mean
from clipdistill.evaluation import cifar, class_folders, retrieval
from clipdistill.evaluation.captioned import each_text, open_chinese, open_karpathy, own_picture
from clipdistill.evaluation.evaluate import Evaluation, Tasks, evaluate
from clipdistill.models.encoder import DualEncoder
from clipdistill.progress import console

Figures = dict[str, float]

_IMAGENET = ("val", "validation", "ILSVRC2012_img_val")
_V2 = ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency")
#: Data sets of which ELEVATER counts the mean accuracy per class, by how their names begin; of all others top 1.
_PER_CLASS = ("caltech-101", "fgvc-aircraft", "oxford-flower", "oxford-iiit-pet")
#: What makes a folder one of ELEVATER's data sets.
_OF_DATA_SETS = ("test", "train", "label.txt", "label_cn.txt")
#: COCO 1K is the mean over so many galleries of so many pictures.
_FOLDS, _FOLD = 5, 1_000


@dataclass(frozen=True)
class Suite:
    """A benchmark: ``open`` gives the tasks of each of its data sets, ``tell`` the papers' figures of one model.

    Data sets are called as CLIP_benchmark does. ``pictures`` is how many it has, 0 where that is not one number;
    ``shown`` whether the figures are those of one gallery, which a report can show.
    """

    open: Callable[[Path], dict[str, Tasks]]
    pictures: int
    tell: Callable[[Mapping[str, Evaluation]], Figures]
    shown: bool = True


@dataclass(frozen=True)
class Outcome:
    """A suite's figures, an evaluation per model; and ``parts``, the same by data set as it was measured."""

    evaluations: list[Evaluation]
    parts: dict[str, list[Evaluation]]


def open_suite(name: str, folder: Path) -> dict[str, Tasks]:
    """Open the data sets of a benchmark, without reading a picture.

    Raises :class:`DataError` for an unknown name, and with the file or folder that is missing or not as it should be.
    """
    if name not in SUITES:
        raise DataError(f"there is no suite '{name}'.{did_you_mean(name, SUITES)}")
    if not folder.is_dir():
        raise DataError(f"suite {name}: there is no folder {folder}.")
    return SUITES[name].open(folder)


def evaluate_suite(name: str, parts: Mapping[str, Tasks], models: Mapping[str, DualEncoder]) -> Outcome:
    """Evaluate models on what :func:`open_suite` gave.

    Every picture must be readable: figures over fewer are not the benchmark's. Another number of pictures than the
    benchmark has is said. Raises :class:`DataError` for a picture that cannot be read.
    """
    suite = SUITES[name]
    count = sum(len(source) for tasks in parts.values() if (source := tasks.retrieval or tasks.zeroshot))
    if suite.pictures not in (0, count):
        console.print(
            f"{name}: found {count:,} pictures, the benchmark has {suite.pictures:,}; published figures are of those",
            markup=False,
        )
    measured = {part: evaluate(models, tasks, max_broken=0) for part, tasks in parts.items()}
    evaluations = []
    for number, found in enumerate(next(iter(measured.values()))):
        figures = suite.tell({part: several[number] for part, several in measured.items()})
        told = replace(found, metrics=figures)
        evaluations.append(told if suite.shown else replace(told, galleries={}, texts=None))
    return Outcome(evaluations, measured)


def _classified(
    dataset: str, splits: tuple[str, ...], chinese: bool = False, every: bool = True
) -> Callable[[Path], dict[str, Tasks]]:
    """ImageNet or one of its kin."""

    def open_folders(root: Path) -> dict[str, Tasks]:
        source, classes = class_folders.open_classes(root, splits, class_folders.imagenet(chinese), every)
        return {dataset: Tasks(zeroshot=source, classes=classes)}

    return open_folders


def _cifar100(chinese: bool) -> Callable[[Path], dict[str, Tasks]]:
    """The archive of pickles, or a folder per class."""

    def open_either(root: Path) -> dict[str, Tasks]:
        vocabulary = class_folders.cifar100(chinese)
        archive = cifar.find_archive(root)
        if archive:
            source, classes = cifar.open_archive(root, archive, vocabulary)
        elif (packed := root / f"{cifar.ARCHIVE}.tar.gz").is_file():
            raise DataError(f"{packed} is packed: unpack it there (tar xzf), which makes the folder {cifar.ARCHIVE}.")
        else:
            source, classes = class_folders.open_classes(root, ("test",), vocabulary, every=True)
        return {"cifar100": Tasks(zeroshot=source, classes=classes)}

    return open_either


def _elevater(chinese: bool) -> Callable[[Path], dict[str, Tasks]]:
    """Data sets side by side, each with its label file and a folder ``test``."""

    def open_all(root: Path) -> dict[str, Tasks]:
        folders = [one for one in sorted(root.iterdir()) if any((one / name).exists() for name in _OF_DATA_SETS)]
        if not folders:
            raise DataError(f"{root}: there are no data sets; expected a folder for each, as mnist/test/0/12.png.")
        parts = {}
        for folder in folders:
            if not (folder / "test").is_dir():
                raise DataError(f"{folder}: there is no folder test, which holds the pictures of this data set.")
            vocabulary = class_folders.numbered(folder, chinese)
            source, classes = class_folders.open_classes(folder, ("test",), vocabulary, every=True)
            parts[folder.name] = Tasks(zeroshot=source, classes=classes)
        return parts

    return open_all


def _karpathy(dataset: str, file: str) -> Callable[[Path], dict[str, Tasks]]:
    return lambda root: _asked(dataset, open_karpathy(root, file))


def _coco_1k(root: Path) -> dict[str, Tasks]:
    """COCO, whose five galleries are not defined for other pictures than all."""
    source = open_karpathy(root, "dataset_coco.json")
    if len(source) != _FOLDS * _FOLD:
        raise DataError(
            f"{root}: found {len(source):,} test pictures; coco-1k is the mean over {_FOLDS} galleries of {_FOLD:,} "
            f"and needs all {_FOLDS * _FOLD:,}. Take the suite coco, which measures what is there."
        )
    return _asked("mscoco_captions-1k", source)


def _chinese(dataset: str, *files: str) -> Callable[[Path], dict[str, Tasks]]:
    return lambda root: _asked(dataset, open_chinese(root, "test", files))


def _muge(root: Path) -> dict[str, Tasks]:
    """The split whose answers are public."""
    return {"muge": Tasks(retrieval=open_chinese(root, "valid"), ask=each_text)}


def _asked(dataset: str, source: Source) -> dict[str, Tasks]:
    return {dataset: Tasks(retrieval=source, ask=own_picture)}


def _all(parts: Mapping[str, Evaluation]) -> Figures:
    """What was measured, of the one data set there is."""
    (found,) = parts.values()
    return found.metrics


def _text_to_image(parts: Mapping[str, Evaluation]) -> Figures:
    """Queries find pictures, and the mean of the three recalls: MUGE has no other direction."""
    recalls = {name: value for name, value in _all(parts).items() if name.startswith("text_to_image_R@")}
    return {**recalls, "text_to_image_mean_recall": sum(recalls.values()) / len(recalls)} if recalls else {}


def _folds(parts: Mapping[str, Evaluation]) -> Figures:
    """The mean over five galleries, one for each fifth of the pictures in their order."""
    (found,) = parts.values()
    if found.texts is None:
        return found.metrics
    gallery = found.galleries["retrieval"]
    owners = np.array([int(own[0]) for own in gallery.questions[1]])
    each = []
    for fold in np.array_split(np.arange(len(gallery.images)), _FOLDS):
        asked = np.flatnonzero(np.isin(owners, fold))
        own = [np.array([owner - fold[0]], np.intp) for owner in owners[asked]]
        each.append(retrieval.recalls(gallery.images[fold], found.texts[asked], own))
    return {name: float(np.mean([recalls[name] for recalls in each])) for name in each[0]}


def _mean(parts: Mapping[str, Evaluation]) -> Figures:
    """Each data set's own figure, and their mean."""
    figures = {f"zeroshot_{name}": _figure(name, found.metrics) for name, found in parts.items() if found.metrics}
    return {"zeroshot_mean": sum(figures.values()) / len(figures), **figures} if figures else {}


def _figure(dataset: str, metrics: Figures) -> float:
    per_class = dataset.lower().replace("_", "-").startswith(_PER_CLASS)
    own = "zeroshot_mean_per_class_recall" if per_class else "zeroshot_acc1"
    return metrics[own] if own in metrics else metrics["classify_top1"]


#: Every suite by name.
SUITES: dict[str, Suite] = {
    "imagenet": Suite(_classified("imagenet1k", _IMAGENET), 50_000, _all),
    "imagenet-cn": Suite(_classified("imagenet1k", _IMAGENET, chinese=True), 50_000, _all),
    "imagenet-v2": Suite(_classified("imagenetv2", _V2), 10_000, _all),
    "imagenet-r": Suite(_classified("imagenet-r", ("imagenet-r",), every=False), 30_000, _all),
    "imagenet-a": Suite(_classified("imagenet-a", ("imagenet-a",), every=False), 7_500, _all),
    "imagenet-sketch": Suite(_classified("imagenet_sketch", ("sketch", "ImageNet-Sketch")), 50_889, _all),
    "cifar100": Suite(_cifar100(chinese=False), 10_000, _all),
    "cifar100-cn": Suite(_cifar100(chinese=True), 10_000, _all),
    "elevater": Suite(_elevater(chinese=False), 0, _mean, shown=False),
    "elevater-cn": Suite(_elevater(chinese=True), 0, _mean, shown=False),
    "flickr30k": Suite(_karpathy("flickr30k", "dataset_flickr30k.json"), 1_000, _all),
    "coco": Suite(_karpathy("mscoco_captions", "dataset_coco.json"), 5_000, _all),
    "coco-1k": Suite(_coco_1k, 5_000, _folds, shown=False),
    "flickr30k-cn": Suite(_chinese("flickr30k", "flickr30k-cn_test.txt", "flickr30k_cn_test.txt"), 1_000, _all),
    "coco-cn": Suite(_chinese("mscoco_captions", "coco-cn_test.txt"), 1_000, _all),
    "muge": Suite(_muge, 29_806, _text_to_image),
}
