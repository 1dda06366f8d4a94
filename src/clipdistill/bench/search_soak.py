"""Claim: whatever happens beside it, a search answers from one published version of the index, the old or the new.

For some minutes clients ask two servers of a folder of drawn pictures, while pictures come, change and go, the index is
brought up to date, that is killed outright at random moments and done again, and one of the servers is stopped and
started. Every answer is compared with what its version holds, worked out by hand; the server that stays is watched for
leaks.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipdistill.bench import search_models, search_server
from clipdistill.bench.process import ask, run_module
from clipdistill.bench.result import Result
from clipdistill.bench.search_soak_checks import TOLERANCE, Sample, leaks, wrong
from clipdistill.bench.search_soak_clients import KINDS, Crowd, Target
from clipdistill.bench.search_soak_gallery import Gallery, Held, Ledger, Pool, Version
from clipdistill.bench.search_towers import write_captions
from clipdistill.errors import ConfigError, TrainingError, need
from clipdistill.progress import progress
from clipdistill.search.index import Index
from clipdistill.search.manifest import Manifest
from clipdistill.search.rescoring import matrix
from clipdistill.search.runtime import Runtime

MODELS = "clipdistill.bench.search_models"
#: Violations that are told.
_TOLD = 50
_FIRST_REQUEST = search_server.search_body(texts=["a red circle"])


@dataclass(frozen=True)
class Pace:
    """How many clients ask, how often (seconds) a server is started anew and memory is looked at.

    A sync in so many is killed; servers see a new version after ``lag`` seconds at most, slow machines included. Leaks
    are looked for where a server has lived ``grown`` seconds.
    """

    clients: int = 4
    restart: float = 90.0
    sample: float = 2.0
    kill: float = 0.4
    lag: float = 20.0
    grown: float = 300.0


@dataclass
class Soak:
    """Everything that goes on: servers, clients, the folder and its index, and what was found."""

    folder: Path
    model: Path
    pace: Pace
    draw: random.Random = field(default_factory=random.Random)
    ledger: Ledger = field(default_factory=Ledger)
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    typical: float = 5.0
    looked: float = 0.0

    def __post_init__(self) -> None:
        self.pool = Pool.draw(Runtime.open(self.model, threads=1))
        self.gallery = Gallery(self.folder / "photos", self.pool, self.draw)
        self.index = self.folder / "photos.index"
        self.steady, self.restarted = (Target(name, "photos") for name in ("steady", "restarted"))
        self.crowd = Crowd(self.pool, self.ledger, [self.steady, self.restarted], random.Random(self.draw.random()))

    def begin(self) -> None:
        """Make the index of the first pictures."""
        self.gallery.begin()
        earliest = time.monotonic()
        words = ("--model", str(self.model), "--out", str(self.index), "--workers", "0")
        run_module("clipdistill", "index", str(self.gallery.folder), *words)
        self._look(self.gallery.held(), earliest)

    def live(self, seconds: float) -> None:
        """Serve, ask, change, sync, kill and restart for so many seconds, and until one sync is done; then look at what
        is left.
        """
        with (
            search_server.serving([str(self.index), "--threads", "1"], self.folder / "steady.txt") as server,
            progress("bench search-soak", round(seconds), "s") as advance,
        ):
            self.steady.port = server.port
            search_server.first_answer(server, "/api/search", _FIRST_REQUEST)
            threads = self._start(server)
            began = time.monotonic()
            try:
                while time.monotonic() - began < seconds or not self.counts["syncs"]:
                    self._cycle()
                    self._judge()
                    note = f"{sum(self.counts[kind] for kind in _kinds(self.counts)):,} answers"
                    advance(min(round(time.monotonic() - began), round(seconds)), note)
            finally:
                self.over.set()
                self.crowd.over.set()
                for thread in threads:
                    thread.join()
            self.looked = time.monotonic()  # nothing has been published since
            self._judge()
            if self.samples and self.samples[-1].at > self.pace.grown:
                self.violations += leaks(self.samples)
            self._ended("steady", server.stop())
        self._look_back()

    def _start(self, server: search_server.Server) -> list[threading.Thread]:
        other = self._serve()
        works = [(self._watch, (server,)), (self._restart, (other,))]
        threads = [threading.Thread(target=work, args=words) for work, words in works]
        for thread in threads:
            thread.start()
        return [*threads, *self.crowd.start(self.pace.clients)]

    def _serve(self) -> search_server.Server:
        server = search_server.start([str(self.index), "--threads", "1"], self.folder / "restarted.txt")
        try:
            search_server.first_answer(server, "/api/search", _FIRST_REQUEST)
        except BaseException:
            server.stop()
            raise
        self.restarted.port = server.port
        return server

    def _watch(self, server: search_server.Server) -> None:
        """Look at the memory and the open files of the server that stays."""
        began = time.monotonic()
        while not self.over.wait(self.pace.sample):
            if server.process.poll() is not None:
                self.violations.append(f"the server that was to stay has ended: {server.words()}")
                return
            taken = server.memory()
            self.samples.append(Sample(time.monotonic() - began, taken["rss"], server.open_files()))

    def _restart(self, server: search_server.Server) -> None:
        """Stop and start the other server; nobody is surprised that it does not answer meanwhile."""
        while not self.over.wait(self.pace.restart):
            begun = time.monotonic()
            self.restarted.down.append((begun, float("inf")))
            self._ended("restarted", server.stop())
            try:
                server = self._serve()
            except TrainingError as error:
                self.violations.append(f"a server did not start again: {error}")
                return
            self.restarted.down[-1] = (begun, time.monotonic())
            self.counts["restarts"] += 1
        self.restarted.down.append((time.monotonic(), float("inf")))
        self._ended("restarted", server.stop())

    def _cycle(self) -> None:
        """Change the folder and sync the index, or be killed in the middle of it."""
        self.gallery.change()
        held, earliest = self.gallery.held(), time.monotonic()
        told = self.folder / "sync.txt"
        with told.open("wb") as file:
            words = [sys.executable, "-m", "clipdistill", "index", "sync", str(self.index), "--workers", "0"]
            environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
        killed = False
        if self.draw.random() < self.pace.kill:
            try:
                process.wait(self.draw.uniform(0, self.typical))
            except subprocess.TimeoutExpired:
                process.kill()
                killed = True
        status = process.wait()
        published = self._look(held, earliest)
        self.counts["killed syncs" if killed else "syncs"] += 1
        self.counts["killed syncs that had published"] += killed and published
        if not killed:
            self.typical = time.monotonic() - earliest
            if status or not published:
                last = told.read_text(encoding="utf-8", errors="replace")[-1000:].strip()
                self.violations.append(f"a sync ended with status {status} and published {published}: {last}")

    def _look(self, held: Held, earliest: float) -> bool:
        """Note a new version, if there is one, and compare it with the folder that it is of."""
        number, latest = Manifest.read(self.index).version, time.monotonic()
        self.looked = latest
        before = self.ledger.newest if self.ledger.versions else 0
        if number == before:
            return False
        if number != before + 1:
            self.violations.append(f"version {number} came after version {before}")
        self.ledger.add(number, Version(held, earliest, latest))
        self.violations += [f"version {number}: {told}" for told in self._differs(held)]
        self.counts["versions"] += 1
        return True

    def _differs(self, held: Held) -> list[str]:
        """Compare the index's rows with those of the folder."""
        index = Index.open(self.index)
        batches = list(index.table.scan(["id", "caption", "vector"]))
        index.close()
        ids = [name for batch in batches for name in batch["id"].to_pylist()]
        words = {name: text for batch in batches for name, text in zip(*_names(batch), strict=True)}
        if sorted(ids) != sorted(held.pictures):
            return [f"it holds {len(ids)} pictures, {len(set(ids) & set(held.pictures))} of {len(held.pictures)}"]
        rows = dict(zip(ids, np.concatenate([matrix(batch["vector"]) for batch in batches]), strict=True))
        expected = dict(zip(held.pictures, held.rows(self.pool), strict=True))
        captions = held.captions(self.pool)
        return [f"{name} has another caption" for name in ids if words[name] != captions[name]] + [
            f"{name} has the row of another picture"
            for name in ids
            if np.abs(rows[name] - expected[name]).max() > TOLERANCE
        ]

    def _judge(self) -> None:
        """Check the answers that came before the last look at the versions, and what did not answer."""
        later = []
        while not self.crowd.answers.empty():
            answered = self.crowd.answers.get()
            if answered.received > self.looked:
                later.append(answered)
                continue
            self.counts[answered.asked.kind] += 1
            self.counts["refused"] += answered.status == 429
            if told := wrong(answered, self.ledger, self.pool, self.pace.lag):
                self.violations.append(f"{answered.asked.kind}: {told}")
        for answered in later:
            self.crowd.answers.put(answered)
        while self.crowd.failures:
            target, sent, received, told = self.crowd.failures.pop()
            self.counts["requests to a server that was down"] += target.was_down(sent, received)
            if not target.was_down(sent, received):
                self.violations.append(f"{target.name} did not answer: {told}")

    def _ended(self, name: str, status: int) -> None:
        if status not in search_server.ENDED:
            self.violations.append(f"the server {name} was asked to end, and did with status {status}")
        said = (self.folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace")
        if "Traceback" in said:
            self.violations.append(f"the server {name} has failed inside: {said[-1000:].strip()}")

    def _look_back(self) -> None:
        """The index must be whole, and nothing left beside it."""
        done = subprocess.run(
            [sys.executable, "-m", "clipdistill", "index", "check", str(self.index)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            self.violations.append(f"the index is not whole: {(done.stdout + done.stderr).strip()[-1000:]}")
        for path in [*self.index.glob("*.tmp"), *self.index.glob(".*.tmp")]:
            self.violations.append(f"{path.name} was left in the index")


def run(minutes: float = 10.0) -> Result:
    """Soak for so many minutes, beside the one or two that making a model and an index takes.

    Raises :class:`ConfigError` where processes cannot be looked at as on Linux, or a package of ``serve`` is missing.
    """
    need("uvicorn", "serve")
    if not Path("/proc/self/smaps_rollup").exists():
        raise ConfigError(f"bench search-soak looks at processes in /proc, which {sys.platform} has not; use Linux.")
    with tempfile.TemporaryDirectory(prefix="clipdistill-bench-") as name:
        folder = Path(name)
        captions = write_captions(folder / "captions.json")
        ask(MODELS, tower="scenes-student", folder=str(folder / "models"), captions=str(captions))
        soak = Soak(folder, folder / "models" / search_models.FLOAT32, Pace())
        soak.begin()
        soak.live(60 * minutes)
    return result(minutes, soak)


def result(minutes: float, soak: Soak) -> Result:
    """Sum it up."""
    answers = {kind: soak.counts[kind] for kind in _kinds(soak.counts)}
    others = {name: count for name, count in soak.counts.items() if name not in answers}
    first, last = (soak.samples[place] for place in (len(soak.samples) // 3, -1)) if soak.samples else (None, None)
    measured: dict[str, Any] = {
        "minutes": minutes,
        "answers": answers,
        **{name.replace(" ", "_"): count for name, count in others.items()},
        "resident_mb": [round(one.megabytes, 1) for one in (first, last) if one],
        "open_files": [one.files for one in (first, last) if one],
        "violations": soak.violations[:_TOLD],
        "violations_found": len(soak.violations),
    }
    lines = [
        f"{sum(answers.values()):,} answers in {minutes:g} minutes: "
        + ", ".join(f"{count:,} {kind}" for kind, count in answers.items()),
        ", ".join(f"{count:,} {name}" for name, count in others.items()),
    ]
    if first and last:
        lines.append(
            f"the server that stayed: {first.megabytes:.0f} MB and {first.files} open files after a third of its life, "
            f"{last.megabytes:.0f} MB and {last.files} at its end"
        )
    lines.append(f"violations: {len(soak.violations)}")
    return Result({}, measured, "\n".join([*lines, *soak.violations[:_TOLD]]))


def _kinds(counts: Counter[str]) -> list[str]:
    return [kind for kind in KINDS if counts[kind]]


def _names(batch: Any) -> tuple[list[str], list[str]]:
    return batch["id"].to_pylist(), batch["caption"].to_pylist()
