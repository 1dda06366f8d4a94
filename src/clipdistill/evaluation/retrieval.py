"""Text-to-image, image-to-text and image-to-image retrieval from embeddings.

Shapes: ``N`` pictures, ``M`` captions, ``D`` width. Rows are brought to unit length here. All results are percentages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.samples import caption_key
from clipdistill.errors import DataError
from clipdistill.evaluation.metrics import Indices, Rows, mean_average_precision, recall_at

KS = (1, 5, 10)
#: What makes a picture the same as others: one key, several of which one is enough (a tuple), or none.
Key = Hashable | None


def text_image(
    images: Rows,
    texts: Rows,
    owner: Sequence[int] | Indices,
    groups: Sequence[Key] | None = None,
    captions: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return ``text_to_image_R@k``, ``image_to_text_R@k`` for k = 1, 5, 10 and ``mean_recall``, the mean of the six.

    ``images [N, D]``, ``texts [M, D]``; ``owner [M]`` is the index of each caption's picture. A caption and a
    picture are positives of each other if the picture is the caption's own, or has its group (``groups [N]``), or
    has an equal caption (``captions [M]``, equal up to case and white space). A query with several positives
    counts as a hit when one of them is found; pictures without a caption are in the gallery but ask nothing.
    """
    owner = np.asarray(owner, np.intp)
    _check(len(images), len(texts), owner, groups, captions)
    return recalls(images, texts, pictures_of_texts(owner, groups, captions))


def recalls(images: Rows, texts: Rows, pictures_of: list[NDArray[np.intp]]) -> dict[str, float]:
    """Return what :func:`text_image` does, where it is known which pictures answer each text, ``[M]`` arrays."""
    texts_of = texts_of_pictures(pictures_of, len(images))
    found = {
        "text_to_image": recall_at((texts, images), pictures_of, KS),
        "image_to_text": recall_at((images, texts), texts_of, KS),
    }
    result = {f"{way}_R@{k}": recall for way, recalls in found.items() for k, recall in recalls.items()}
    return {**result, "mean_recall": sum(result.values()) / len(result)}


def image_image(images: Rows, keys: Sequence[Key]) -> dict[str, float]:
    """Return ``image_to_image_R@k`` for k = 1, 5, 10, ``image_to_image_mAP`` and ``image_to_image_left_out``.

    ``images [N, D]`` search themselves: pictures of the same key (a label or a group) are positives, the query
    itself is excluded. A picture without a key, or with a key of its own, has nothing to find: it stays in the gallery,
    asks nothing, and is counted in ``image_to_image_left_out``. Where all are left out, that count is all there is.
    """
    if len(keys) != len(images):
        raise DataError(f"there are {len(images)} pictures but {len(keys)} keys; give one each, or None.")
    positives = matches(keys)
    left_out = {"image_to_image_left_out": float(sum(len(own) < 2 for own in positives))}
    if left_out["image_to_image_left_out"] == len(images):
        return left_out
    own = np.arange(len(images))
    recalls = recall_at((images, images), positives, KS, exclude=own)
    precision = mean_average_precision((images, images), positives, exclude=own)
    return {
        **{f"image_to_image_R@{k}": recall for k, recall in recalls.items()},
        "image_to_image_mAP": precision,
        **left_out,
    }


def pictures_of_texts(
    owner: Sequence[int] | Indices,
    groups: Sequence[Key] | None = None,
    captions: Sequence[str] | None = None,
) -> list[NDArray[np.intp]]:
    """Return the positives of each caption, ``[M]`` arrays of picture indices, by the rule of :func:`text_image`.

    Captions with the same positives share an array: of 100,000 pictures in ten groups each would have 10,000.
    """
    folded = [caption_key(text) for text in captions or ()]
    told: dict[str, set[int]] = defaultdict(set)
    for text, picture in zip(folded, owner, strict=False):
        told[text].add(int(picture))
    alike = matches(groups or [None] * (1 + max(map(int, owner), default=-1)))
    known: dict[tuple[str, int | None], NDArray[np.intp]] = {}

    def positives(number: int, picture: int) -> NDArray[np.intp]:
        same = alike[picture]
        if not folded or len(told[folded[number]]) == 1:  # no other picture is told the same
            return same if len(same) else np.array([picture], np.intp)
        key = folded[number], id(same) if len(same) > 1 else None
        if key not in known:
            known[key] = np.array(sorted(told[folded[number]].union(same.tolist())), np.intp)
        return known[key]

    return [positives(number, int(picture)) for number, picture in enumerate(owner)]


def texts_of_pictures(pictures_of: list[NDArray[np.intp]], size: int) -> list[NDArray[np.intp]]:
    """Turn the pictures of each text into the texts of each of ``size`` pictures.

    Texts that share an array are looked at together, and pictures with the same texts share one.
    """
    asking: dict[int, list[int]] = defaultdict(list)
    for text, pictures in enumerate(pictures_of):
        asking[id(pictures)].append(text)
    found: list[list[int]] = [[] for _ in range(size)]
    for pictures in {id(pictures): pictures for pictures in pictures_of}.values():
        for picture in pictures.tolist():
            found[picture].append(id(pictures))
    known: dict[tuple[int, ...], NDArray[np.intp]] = {}
    for own in map(tuple, found):
        if own not in known:
            known[own] = np.array(sorted(text for several in own for text in asking[several]), np.intp)
    return [known[tuple(own)] for own in found]


def matches(keys: Sequence[Key]) -> list[NDArray[np.intp]]:
    """Return for each picture all pictures that share a key with it, itself among them; none for one without a key.

    Pictures that share the same keys with others share an array.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for position, several in enumerate(keys):
        for key in _each(several):
            members[key].append(position)
    arrays = {key: np.array(positions, np.intp) for key, positions in members.items()}
    shared = [tuple(k for k in _each(own) if len(members[k]) > 1) or _each(own)[:1] for own in keys]
    known: dict[tuple[Hashable, ...], NDArray[np.intp]] = {}
    for several in shared:
        if several not in known:
            own = [arrays[key] for key in several]
            known[several] = own[0] if len(own) == 1 else np.unique(np.concatenate([*own, np.empty(0, np.intp)]))
    return [known[several] for several in shared]


def _each(several: Key) -> tuple[Hashable, ...]:
    return several if isinstance(several, tuple) else () if several is None else (several,)


def _check(
    images: int,
    texts: int,
    owner: Indices,
    groups: Sequence[Key] | None,
    captions: Sequence[str] | None,
) -> None:
    for what, values, wanted in (
        ("owners", owner, texts),
        ("captions", captions, texts),
        ("groups", groups, images),
    ):
        if values is not None and len(values) != wanted:
            raise DataError(f"there are {images} pictures and {texts} texts, but {len(values)} {what}, not {wanted}.")
    if len(owner) and not 0 <= owner.min() <= owner.max() < images:
        raise DataError(f"owners go from {owner.min()} to {owner.max()}, but there are only {images} pictures.")
