"""Processes killed outright while they write: nothing is lost, nothing is half there, and the next one goes on."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipdistill.search.build import build_index
from clipdistill.search.checking import check
from clipdistill.search.index import Index
from clipdistill.search.runtime import Runtime
from clipdistill.search.sync import sync
from search.test_index import draw
from search.test_index_sync import change

#: Says when everything is imported, then works; every chunk of pictures is written at once.
PROGRAM = """
import sys
from clipdistill.search import contents
from clipdistill.search.build import build_index
from clipdistill.search.index import Index
from clipdistill.search.sync import sync
contents.SECONDS = 0.0
import lancedb
print("ready", flush=True)
if sys.argv[1] == "build":
    build_index("photos", "model", "x.index", workers=int(sys.argv[2]))
else:
    sync(Index.open("x.index"), workers=int(sys.argv[2]))
"""


@pytest.fixture
def desk(tmp_path: Path, exported: tuple[Path, Any]) -> Path:
    (tmp_path / "model").symlink_to(exported[0])
    draw(tmp_path / "photos", 120)
    return tmp_path


def run_and_kill(desk: Path, verb: str, seconds: float, workers: int = 0) -> None:
    """Run a verb in a process of its own, and kill that some time after it began."""
    words = [sys.executable, "-c", PROGRAM, verb, str(workers)]
    with subprocess.Popen(words, cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.stdout.read()  # until whoever holds the other end, a worker, has ended too


def assert_whole(desk: Path, index: Index) -> None:
    """Every picture is there, with its own row, and nothing else."""
    lines = (desk / "photos" / "metadata.jsonl").read_text().splitlines()
    listed = [desk / "photos" / name for name in sorted({json.loads(line)["file_name"] for line in lines})]
    kept = index.vectors([file.name for file in listed])
    assert index.count == len(kept) == len(listed)
    np.testing.assert_allclose(
        [kept[file.name] for file in listed], Runtime.open(desk / "model").images(listed), atol=1e-5
    )
    assert check(index) == []


def test_an_index_whose_making_is_killed_is_made_by_the_next(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    moments = random.Random()
    for workers in (0, 2):
        run_and_kill(desk, "build", moments.uniform(0, 0.5), workers)
    assert_whole(desk, build_index("photos", "model", "x.index", workers=0))


def test_a_sync_that_is_killed_is_seen_by_nobody_and_done_by_the_next(
    desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    index = build_index("photos", "model", "x.index", workers=0)
    ids = {hit.id for hit in index.search(np.ones((1, 24), np.float32), 999)[0]}
    change(desk)
    draw(desk / "photos", 60, first=200)
    moments = random.Random()
    for _ in range(3):
        run_and_kill(desk, "sync", moments.uniform(0, 0.4))
        now = index.current()
        if now.version == 1:  # else it was through before it was killed
            assert {hit.id for hit in now.search(np.ones((1, 24), np.float32), 999)[0]} == ids
            assert check(now) == []
    sync(index.current(), workers=0)
    assert_whole(desk, index.current())
    assert len(index.search(np.ones((1, 24), np.float32), 999)[0]) == 120
