"""The benchmarks by name, known without importing any."""

from __future__ import annotations

#: One module of this folder each, the quick ones first.
NAMES = (
    *("precision", "transform", "store", "latency", "step", "search"),
    *("loss", "embed-kd", "search-soak", "soak"),
)
