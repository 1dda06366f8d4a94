"""Rows for files in other people's layouts, and what an import must make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.teachers.store import EmbeddingStore


def random_rows(count: int, width: int = 8, seed: int = 0, dtype: str = "float32") -> NDArray[Any]:
    """Rows of any length."""
    return np.random.default_rng(seed).normal(size=(count, width)).astype(dtype)


def unit_rows(count: int, width: int = 8, seed: int = 0) -> NDArray[np.float16]:
    """Rows as most programs store them: unit length, then float16."""
    rows = random_rows(count, width, seed)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def naive_unit(row: Any) -> NDArray[np.float16]:
    """One row at unit length."""
    values = np.asarray(row, np.float64)
    return (values / np.sqrt((values**2).sum())).astype(np.float16)


def stored(store: EmbeddingStore, side: str) -> dict[str, NDArray[Any]]:
    """All rows of a side by key, view 0; read in stored order."""
    rows = np.concatenate(list(store.blocks(side)))
    found: dict[str, NDArray[Any]] = {}
    for key, row in zip(store.keys(side), rows, strict=True):
        found.setdefault(key, row)
    return found


def close(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Equal but for the rounding of float16."""
    return bool(np.allclose(one.astype(np.float32), other.astype(np.float32), atol=1e-3))
