"""From a request over HTTP to the answer: a small model beside a ViT-B/16, each encoding queries and searching.

Weights and rows are made up: times, memory and recall of the search are what they are, what is found means nothing.
Models, indexes, servers and clients are processes of their own, on one machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdistill.bench import search_load, search_models, search_server, search_tables
from clipdistill.bench.process import ask
from clipdistill.bench.result import Result, columns
from clipdistill.bench.search_towers import ALL, BESIDE, DEFAULT, EVERY, SPECS, write_captions
from clipdistill.errors import ClipdistillError, ConfigError, did_you_mean, need
from clipdistill.progress import progress

MODELS, TABLES, LOAD = (f"clipdistill.bench.{name}" for name in ("search_models", "search_tables", "search_load"))
#: Rows of the index, where nobody says how many.
ROWS = 100_000
#: Widths that the search alone is measured at, beside those of the models.
WIDTHS = (512, 256)
#: Figures of the text, by the names that JSON has for them.
_SHOWN = {
    "text_p50_ms": "text p50",
    "text_p99_ms": "p99",
    "filter_p50_ms": "filter p50",
    "image_p50_ms": "image p50",
    "image_p99_ms": "p99",
    "recall@10": "recall@10",
    "memory_mb": "MB",
    "cold_start_s": "cold s",
    "clients32_per_s": "32 clients/s",
    "clients32_p99_ms": "p99",
    "errors": "errors",
}
_INDEX = ("recall@10", "search_p50_ms", "search_p99_ms", "ef", "build_s", "disk_mb")


@dataclass(frozen=True)
class Scope:
    """Which ``towers`` search ``rows`` rows, how often each asks, and for how many seconds 32 clients do."""

    towers: Sequence[str] = DEFAULT
    rows: int = ROWS
    rounds: int = 300
    longest: float = 90.0
    clients: int = 32
    seconds: float = 10.0
    widths: Sequence[int] = WIDTHS


def choose(names: Sequence[str], rows: int = ROWS) -> Scope:
    """Return the scope of these towers, of the usual ones if none is named; raises :class:`ConfigError`."""
    chosen = list(EVERY) if ALL in names else list(dict.fromkeys(names)) or list(DEFAULT)
    for name in chosen:
        if name not in SPECS:
            raise ConfigError(f"there are no towers '{name}'.{did_you_mean(name, SPECS)}")
    return Scope(towers=chosen, rows=rows)


def run(scope: Scope | None = None) -> Result:
    """Measure all towers; one that cannot be made or does not answer is told, and the others go on.

    Raises :class:`ConfigError` where memory cannot be read as Linux tells it, or a package of ``serve`` is missing.
    """
    need("uvicorn", "serve")
    if not Path("/proc/self/smaps_rollup").exists():
        raise ConfigError(f"bench search reads memory from /proc, which {sys.platform} has not. Run it on Linux.")
    scope = scope or Scope()
    found: dict[str, dict[str, Any]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="clipdistill-bench-") as name,
        progress("bench search", len(scope.towers), "models") as advance,
    ):
        bench = Bench(scope, Path(name))
        for done, tower in enumerate(scope.towers):
            advance(done, tower)
            try:
                found[tower] = bench.measure(tower)
            except (ClipdistillError, subprocess.TimeoutExpired) as error:
                found[tower] = {"left_out": str(error).strip().splitlines()[-1]}
        for width in scope.widths:
            bench.table(width)
        advance(len(scope.towers), "")
    widths = {str(width): about for width, about in sorted(bench.tables.items())}
    measured = {tower: {**about, "widths": widths} for tower, about in found.items()}
    return Result(_ratios(found), measured, _text(scope, found, widths))


class Bench:
    """A folder with the captions, and the indexes that were made so far, one of each width."""

    def __init__(self, scope: Scope, folder: Path) -> None:
        self.scope, self.folder = scope, folder
        self.tables: dict[int, dict[str, Any]] = {}
        self.captions = write_captions(folder / "captions.json")

    def table(self, width: int) -> dict[str, Any]:
        """Make the index of a width, if there is none yet, and return what its search alone takes."""
        if width not in self.tables:
            words: dict[str, Any] = {"folder": str(self._index(width)), "width": width, "captions": str(self.captions)}
            self.tables[width] = ask(TABLES, rows=self.scope.rows, **words)
        return self.tables[width]

    def measure(self, tower: str) -> dict[str, Any]:
        """Export a model and serve the index of its width with it, in int8 and then in float32."""
        models = self.folder / tower
        about = ask(MODELS, tower=tower, folder=str(models), captions=str(self.captions))
        table, index = self.table(about["width"]), self._index(about["width"])
        search_tables.give(index, models / search_models.INT8)
        found = {"rows": self.scope.rows, "width": about["width"], "precision": search_models.INT8}
        found |= {"recall@10": table["recall@10"], **self._serve(index, models / search_models.INT8, about["sides"])}
        with self._server(index, models / search_models.FLOAT32) as server:
            found["float32"] = self._one_at_a_time(server, about["sides"])
        shutil.rmtree(models)
        return found

    def _serve(self, index: Path, model: Path, sides: str) -> dict[str, Any]:
        kinds = ["text", "image"] if "T" in sides else ["image"]
        with self._server(index, model) as server:
            found: dict[str, Any] = {"cold_start_s": self._first(server, kinds[0])}
            found |= self._one_at_a_time(server, sides)
            presses = {kind: self._press(server, kind) for kind in kinds}
            memory = server.memory()
        main = presses[kinds[0]]
        found |= {"memory_mb": memory["pss"], "resident_mb": memory["rss"]}
        found |= {"clients32_per_s": main["per_s"], "clients32_p99_ms": main["p99_ms"]}
        found |= {"clients32_image_per_s": presses["image"]["per_s"]}
        found |= {name: sum(press[name] for press in presses.values()) for name in ("refused", "errors")}
        return found | {"first_error": next((one["first_error"] for one in presses.values() if one["errors"]), "")}

    def _server(self, index: Path, model: Path) -> Any:
        return search_server.serving([str(index), "--model", str(model)], self.folder / "told.txt")

    def _first(self, server: search_server.Server, kind: str) -> float:
        asked = {"text": {"texts": ["two dogs on a beach"]}, "image": {"images": [search_load.picture_uri(99)]}}
        return search_server.first_answer(server, search_load.PATH, search_server.search_body(**asked[kind]))

    def _one_at_a_time(self, server: search_server.Server, sides: str) -> dict[str, float]:
        kinds = ["text", "filter", "image"] if "T" in sides else ["image"]
        words: dict[str, Any] = {"port": server.port, "captions": str(self.captions), "kinds": kinds}
        times = ask(LOAD, rounds=self.scope.rounds, longest=self.scope.longest, **words)
        return {f"{kind}_{name}_ms": times[kind][name] for kind in kinds for name in ("p50", "p99")}

    def _press(self, server: search_server.Server, kind: str) -> dict[str, Any]:
        words: dict[str, Any] = {"port": server.port, "captions": str(self.captions), "kind": kind}
        return ask(LOAD, clients=self.scope.clients, seconds=self.scope.seconds, **words)

    def _index(self, width: int) -> Path:
        return self.folder / f"rows-{width}.index"


def _ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times as fast as the model beside each other model answers, by the medians."""
    base = found.get(BESIDE, {})
    return {
        f"{tower}_{kind}_search": base[name] / about[name]
        for tower, about in found.items()
        for kind in ("text", "image")
        if tower != BESIDE and (name := f"{kind}_p50_ms") in base and name in about
    }


def _text(scope: Scope, found: dict[str, dict[str, Any]], widths: dict[str, dict[str, Any]]) -> str:
    heads = [f"{scope.rows:,} rows, ms", *_SHOWN.values()]
    lines = [
        [f"{tower} {name}", *(_figure(figures.get(key)) for key in _SHOWN)]
        for tower, about in found.items()
        if "left_out" not in about
        for name, figures in (("int8", about), ("float32", about["float32"]))
    ]
    alone = [["search alone, by width", *(name.replace("_", " ") for name in _INDEX)]]
    alone += [[width, *(_figure(about[name]) for name in _INDEX)] for width, about in widths.items()]
    told = [f"{tower}: {about['left_out']}" for tower, about in found.items() if "left_out" in about]
    told += [f"{tower}: {about['first_error']}" for tower, about in found.items() if about.get("first_error")]
    return "\n".join([columns([heads, *lines]), "", columns(alone), *told])


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}" if value < 10 else f"{value:.1f}"
