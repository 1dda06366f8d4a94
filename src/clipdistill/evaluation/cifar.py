"""CIFAR-100 as its authors give it out: pickles of the days of Python 2, of which plain values alone are read.

::

    cifar-100-python/meta      {"fine_label_names": ["apple", ...], "coarse_label_names": [...]}
    cifar-100-python/test      {"data": uint8 [10000, 3072], "fine_labels": [49, ...], "filenames": [...], ...}

A picture's row is its 1,024 red values, then the green, then the blue.
"""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.samples import Sample, Source
from clipdistill.data.sources import from_samples
from clipdistill.errors import DataError
from clipdistill.evaluation.class_folders import Vocabulary, sentences
from clipdistill.evaluation.zeroshot import Classes

ARCHIVE = "cifar-100-python"
_SIDE = 32
#: What an array is made of when it is unpickled; nothing else is called or looked up.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def find_archive(root: Path) -> Path | None:
    """Return the folder of the pickles, ``root`` or below it; None if there is none."""
    return next((folder for folder in (root, root / ARCHIVE) if (folder / "meta").is_file()), None)


def open_archive(root: Path, folder: Path, vocabulary: Vocabulary) -> tuple[Source, Classes]:
    """Open the test pictures, and the classes in the order of ``meta``; raises :class:`DataError` for a bad file."""
    keys = _get(folder / "meta", "fine_label_names", list)
    numbers = _get(folder / "test", "fine_labels", list)
    pixels = _pixels(_get(folder / "test", "data", np.ndarray), len(numbers), folder / "test")
    name_of = dict(zip(vocabulary.keys, vocabulary.names or (), strict=True))
    if unknown := [key for key in keys if key not in name_of]:
        raise DataError(f"{folder / 'meta'}: {unknown[0]!r} is no class of CIFAR-100. Download the archive again.")
    if bad := [number for number in numbers if not isinstance(number, int) or not 0 <= number < len(keys)]:
        raise DataError(f"{folder / 'test'}: found the label {bad[0]!r}, but meta names {len(keys)} classes.")
    places = [vocabulary.keys.index(key) for key in keys]
    classes = vocabulary.classes(places, [name_of[key] for key in keys], sentences(root, folder, vocabulary))
    samples = [
        Sample(f"{index:05d}", picture, {}, classes.labels[number])
        for index, (number, picture) in enumerate(zip(numbers, pixels, strict=True))
    ]
    return from_samples(samples, str(folder)), classes


def _pixels(rows: Any, count: int, where: Path) -> NDArray[np.uint8]:
    """Turn rows of planes into pictures, ``uint8 [N, 32, 32, 3]``."""
    if rows.dtype != np.uint8 or rows.shape != (count, 3 * _SIDE * _SIDE):
        raise DataError(
            f"{where}: found data {rows.dtype} {list(rows.shape)}, expected uint8 [{count}, 3072] for {count} labels."
        )
    return np.ascontiguousarray(rows.reshape(count, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))


def _get(path: Path, key: str, kind: type) -> Any:
    content = _read(path)
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, kind):
        found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}: found {found[:80]}, expected {key}. Unpack the archive of CIFAR-100 again.")
    return value


def _read(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; the archive of CIFAR-100 has meta, test and train.")
    try:
        with path.open("rb") as file:
            return _Plain(file, encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). Unpack the archive of CIFAR-100 again."
        ) from error


class _Plain(pickle.Unpickler):
    """Reads plain values and arrays; the name of anything else in a pickle is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise DataError(
                f"it asks for {module}.{name}, which could run code and is not opened; arrays and plain values are. "
                "Download the archive of CIFAR-100 again."
            )
        if name == "_reconstruct":  # the module moved with numpy 2
            return np.ndarray.__reduce__(np.empty(0))[0]
        return getattr(importlib.import_module(module), name)
