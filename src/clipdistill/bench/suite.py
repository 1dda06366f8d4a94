"""Run benchmarks by name, tell what they found, and write it down."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipdistill.bench import latency, loss, search
from clipdistill.bench.machine import machine
from clipdistill.bench.names import NAMES
from clipdistill.bench.result import Result
from clipdistill.errors import ConfigError, TrainingError, did_you_mean
from clipdistill.files import write_text
from clipdistill.models.bundle import versions


def run(
    names: Sequence[str],
    file: Path | None,
    tell: Callable[[str], object],
    minutes: float = 10.0,
    towers: Sequence[str] = (),
    rows: int = search.ROWS,
) -> None:
    """Run the benchmarks ``names``, all of them if none is named; ``tell`` each one's text as soon as it is done.

    A soak, which has no end of its own, takes so many ``minutes``, and the loss no more; latency and search are of
    ``towers``, the latter among so many ``rows``.

    ``file`` gets the ratios of all, everything each has measured, the machine and the versions, as JSON.

    Raises:
        ConfigError: a name is unknown, or there is no folder for ``file``; nothing has been run.
        TrainingError: a soak has found violations; everything is written down.
    """
    chosen = list(dict.fromkeys(names)) or list(NAMES)
    for name in chosen:
        if name not in NAMES:
            raise ConfigError(f"there is no benchmark '{name}'." + did_you_mean(name, NAMES))
    if file is not None and not file.parent.is_dir():
        raise ConfigError(f"--json {file}: there is no folder {file.parent}. Make it, or name another file.")
    given: dict[str, Any] = {"soak": minutes, "search-soak": minutes, "loss": loss.Scope(seconds=60 * minutes)}
    given |= {"latency": latency.choose(towers)} if "latency" in chosen else {}
    given |= {"search": search.choose(towers, rows)} if "search" in chosen else {}
    found: dict[str, Result] = {}
    for name in chosen:
        module = importlib.import_module(f"clipdistill.bench.{name.replace('-', '_')}")
        found[name] = module.run(given[name]) if name in given else module.run()
        tell(found[name].text)
    if file is not None:
        write_text(file, json.dumps(as_dict(found), indent=2, allow_nan=False) + "\n")
    if violations := [told for result in found.values() for told in result.measured.get("violations", [])]:
        raise TrainingError(f"the soak has found {len(violations)} violations, the first: {violations[0]}")


def as_dict(found: Mapping[str, Result]) -> dict[str, Any]:
    """The results as one plain object; no two benchmarks have a ratio of the same name.

    Where nothing but the search was measured, its models are also at the top.
    """
    return {
        **(found["search"].measured if list(found) == ["search"] else {}),
        "ratios": {name: ratio for result in found.values() for name, ratio in result.ratios.items()},
        "benchmarks": {name: result.measured for name, result in found.items()},
        "machine": machine(),
        "versions": versions(),
    }
