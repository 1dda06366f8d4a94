"""Run benchmarks by name."""

from __future__ import annotations

import importlib

from clipdistill.bench.versus import Verdict
from clipdistill.errors import ConfigError, did_you_mean

#: One module of this folder each.
NAMES = ("precision", "transform")


def run(names: list[str]) -> list[Verdict]:
    """Run the benchmarks ``names``, all of them if none is named.

    Raises:
        ConfigError: a name is unknown.
    """
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"there is no benchmark '{name}'." + did_you_mean(name, NAMES))
    found: list[Verdict] = []
    for name in names or NAMES:
        found += importlib.import_module(f"clipdistill.bench.{name}").run()
    return found
