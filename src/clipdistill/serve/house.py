"""What is served: indexes by name, and their models, each open once."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from clipdistill.errors import did_you_mean
from clipdistill.search.index import Index
from clipdistill.search.manifest import find
from clipdistill.search.runtime import Runtime
from clipdistill.search.searcher import Searcher
from clipdistill.serve.failures import RefusedError
from clipdistill.serve.metrics import Metrics
from clipdistill.serve.settings import Settings
from clipdistill.serve.towers import Towers

_EXAMPLES, _LONGEST = 6, 80


@dataclass(frozen=True)
class Seen:
    """An index's version, and captions of it to try."""

    index: Index
    examples: tuple[str, ...]


class House:
    """Searchers and the towers they ask through. Everything here can be called from several threads at once."""

    def __init__(self, searchers: Mapping[str, Searcher], settings: Settings, metrics: Metrics) -> None:
        self.searchers, self.settings, self.metrics = dict(searchers), settings, metrics
        self.ready = False
        self._changing = threading.Lock()
        self._towers: dict[tuple[str, str], Towers] = {}
        self._gone: list[tuple[float, Towers]] = []  # since when; requests that began before may still use them
        self._seen: dict[str, Seen] = {}
        for name in self.searchers:
            self._look(name)

    def searcher(self, name: str | None) -> tuple[str, Searcher]:
        """An index by its name, the first one for None; raises :class:`RefusedError` for a name that is not known."""
        if name is None:
            name = next(iter(self.searchers))
        if name not in self.searchers:
            raise RefusedError(404, f"there is no index '{name}'.{did_you_mean(name, self.searchers)}", "index")
        return name, self.searchers[name]

    def towers(self, runtime: Runtime) -> Towers:
        """What batches the inputs of a runtime; one for all runtimes of the same model."""
        key = _key(runtime)
        with self._changing:
            if key not in self._towers:
                self._towers[key] = Towers(runtime, self.settings.batch, self.metrics)
            return self._towers[key]

    def models(self) -> dict[str, Runtime]:
        """Models by name: that of their folder, with some of the fingerprint where two are called the same."""
        found: dict[str, Runtime] = {}
        for runtime in (searcher.runtime for searcher in self.searchers.values()):
            name = runtime.folder.name
            if name in found and found[name].fingerprint != runtime.fingerprint:
                name = f"{name}-{runtime.fingerprint[:8]}"
            found.setdefault(name, runtime)
        return found

    def model(self, name: str | None) -> tuple[str, Towers]:
        """A model by its name or an index's, the first one for None; raises :class:`RefusedError` for another name."""
        models = self.models()
        if name in self.searchers:
            name = self.name_of(self.searchers[name].runtime)
        if name is None:
            name = next(iter(models))
        if name not in models:
            raise RefusedError(404, f"there is no model '{name}'.{did_you_mean(name, models)}", "model")
        return name, self.towers(models[name])

    def name_of(self, runtime: Runtime) -> str:
        """The name of a model that is served."""
        return next(name for name, one in self.models().items() if one.fingerprint == runtime.fingerprint)

    def examples(self, name: str) -> tuple[str, ...]:
        """Captions of an index to try."""
        return self._seen[name].examples

    def warm(self) -> None:
        """Load every model; then the server is ready."""
        for runtime in self.models().values():
            self.towers(runtime).warm()
        self.ready = True

    def refresh(self) -> None:
        """Go over to versions of indexes that were published since; each that cannot be opened stays as it is.

        Raises what the last of those raised.
        """
        fault: Exception | None = None
        for name, searcher in self.searchers.items():
            try:
                if searcher.reload() or self._seen[name].index is not searcher.index:
                    self._look(name)
            except Exception as error:  # the others are not to wait for this one
                fault = error
        self._drop_unused()
        if fault is not None:
            raise fault

    def hide(self, message: str) -> str:
        """Write a message without the folders that the server's things are in."""
        for searcher in self.searchers.values():
            index, model = searcher.index, searcher.runtime.folder
            for folder in (index.folder.absolute(), index.folder, model.absolute(), model):
                if len(folder.parts) > 1:
                    message = message.replace(str(folder), folder.name)
            if source := index.manifest.source:
                message = message.replace(str(find(source.root, index.folder).absolute()), "...")
        return message

    def close(self) -> None:
        """Finish what is waiting, and give everything back."""
        with self._changing:
            for towers in (*self._towers.values(), *(towers for _, towers in self._gone)):
                towers.close()
        for searcher in self.searchers.values():
            searcher.close()

    def _look(self, name: str) -> None:
        index = self.searchers[name].index
        self._seen[name] = Seen(index, _examples(index))
        self.metrics.rows.labels(name).set(index.count)
        self.metrics.version.labels(name).set(index.version)

    def _drop_unused(self) -> None:
        used = {_key(searcher.runtime) for searcher in self.searchers.values()}
        now = time.monotonic()
        with self._changing:
            self._gone += [(now, self._towers.pop(key)) for key in list(self._towers) if key not in used]
            ended = [towers for since, towers in self._gone if now - since > self.settings.seconds]
            self._gone = [(since, towers) for since, towers in self._gone if towers not in ended]
        for towers in ended:
            towers.close()


def _key(runtime: Runtime) -> tuple[str, str]:
    return str(runtime.folder.absolute()), runtime.fingerprint


def _examples(index: Index) -> tuple[str, ...]:
    """Some captions from the first rows, as different from each other as where they stand."""
    rows = next(iter(index.table.scan(["caption"], 1024)), None)
    captions = [] if rows is None else rows["caption"].to_pylist()
    known = [one for one in dict.fromkeys(captions) if one and one.strip() and len(one) <= _LONGEST]
    return tuple(islice(known[:: max(1, len(known) // _EXAMPLES)], _EXAMPLES))
