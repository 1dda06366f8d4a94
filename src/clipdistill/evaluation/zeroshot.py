"""Zero-shot classification: pictures against class names put into sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import ConfigError, DataError, did_you_mean
from clipdistill.evaluation.metrics import Indices, Rows, best_ranks, unit

#: Sentences a class name is put into, of the kind CLIP and Chinese-CLIP use: bare, photographed, drawn, near, far.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "en": (
        "{}",
        "a {}.",
        "a photo of a {}.",
        "a photo of the {}.",
        "a close-up photo of a {}.",
        "a photo of one {}.",
        "a photo of a small {}.",
        "a photo of a large {}.",
        "a cropped photo of a {}.",
        "a blurry photo of a {}.",
        "a dark photo of a {}.",
        "a bright photo of a {}.",
        "a drawing of a {}.",
        "a painting of a {}.",
        "an icon of a {}.",
        "clip art of a {}.",
    ),
    "zh": (
        "{}",
        "一张{}的照片。",
        "一张{}的图片。",
        "{}的特写照片。",
        "一个{}的照片。",
        "一张小{}的照片。",
        "一张大{}的照片。",
        "一张裁剪过的{}的照片。",
        "一张模糊的{}的照片。",
        "一张昏暗的{}的照片。",
        "一张明亮的{}的照片。",
        "一幅{}的素描。",
        "一幅{}的油画。",
        "{}的图标。",
        "{}的剪贴画。",
        "图中有{}。",
    ),
}


@dataclass(frozen=True)
class Classes:
    """The classes that pictures are told apart by, ``C`` of them.

    ``labels [C]`` are what samples call them, all different; ``names [C]`` are put into each of ``templates``,
    sentences with ``{}`` in them. Where classifiers have heads for a benchmark, ``published [K]`` names all of its
    classes in their order, and ``numbers [C]`` are the places of these among them.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    templates: tuple[str, ...]
    numbers: tuple[int, ...] = ()
    published: tuple[str, ...] = ()

    @property
    def prompts(self) -> list[list[str]]:
        """Every name in every template: one list of prompts per class."""
        return [[template.replace("{}", name) for template in self.templates] for name in self.names]


def prompts_for(classnames: Sequence[str], language: str) -> list[list[str]]:
    """Put every class name into every template of a language ("en" or "zh"): one list of prompts per class.

    Raises :class:`ConfigError` for a language without templates.
    """
    if language not in TEMPLATES:
        raise ConfigError(f"there are no prompt templates in '{language}'.{did_you_mean(language, TEMPLATES)}")
    return [[template.format(name) for template in TEMPLATES[language]] for name in classnames]


def class_embeddings(prompts: Rows, sizes: Sequence[int]) -> NDArray[np.float32]:
    """Make one row per class: the mean of its prompts' unit rows, brought to unit length, ``[C, D]``.

    ``prompts [P, D]`` are the prompts' embeddings, class after class, and ``sizes [C]`` how many each class has.
    """
    if sum(sizes) != len(prompts) or min(sizes, default=0) < 1:
        raise DataError(f"{len(prompts)} prompts cannot be {len(sizes)} classes of {list(sizes)[:8]}... prompts.")
    starts = np.cumsum(sizes) - np.asarray(sizes)
    means = np.add.reduceat(unit(prompts, "prompts"), starts, axis=0) / np.asarray(sizes)[:, None]
    return unit(means, "class embeddings")


def classify(images: Rows, class_embeddings: Rows, labels: Sequence[int] | Indices) -> dict[str, float]:
    """Return ``zeroshot_acc1``, ``zeroshot_acc5`` and ``zeroshot_mean_per_class_recall``, in percent.

    ``images [N, D]``, ``class_embeddings [C, D]``, ``labels [N]`` the index of each picture's class. A class that is
    exactly as similar as the true one counts against it; of classes with the very same embedding, as two of ImageNet's
    names give, the first is the answer. The mean per-class recall is over the classes that ``labels`` holds. With five
    classes or fewer, top 5 is 100.
    """
    labels = np.asarray(labels, np.intp)
    classes = len(class_embeddings)
    if len(labels) != len(images):
        raise DataError(f"there are {len(images)} pictures but {len(labels)} labels; give one each.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(f"labels go from {labels.min()} to {labels.max()}, but there are {classes} classes.")
    twins = _later_twins(class_embeddings)
    ranks = best_ranks((images, class_embeddings), [twins[label] for label in labels])
    sizes = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[ranks <= 1], minlength=classes)
    return {
        "zeroshot_acc1": 100.0 * float(np.mean(ranks <= 1)),
        "zeroshot_acc5": 100.0 * float(np.mean(ranks <= 5)),
        "zeroshot_mean_per_class_recall": 100.0 * float(np.mean(hits[sizes > 0] / sizes[sizes > 0])),
    }


def _later_twins(class_embeddings: Rows) -> list[NDArray[np.intp]]:
    """For each class itself and the later ones that have the same embedding: those it wins against."""
    members: dict[bytes, list[int]] = {}
    places = []
    for number, row in enumerate(np.ascontiguousarray(class_embeddings)):
        same = members.setdefault(row.tobytes(), [])
        places.append((same, len(same)))
        same.append(number)
    return [np.array(same[place:], np.intp) for same, place in places]
