"""One life of a training run after another: started as a user does, ended somehow, and nothing of it left.

What belongs to a run is found by a mark in its environment, which everything it starts inherits.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clipdistill.bench.soak_program import FOLDER
from clipdistill.training import run_folder

#: So long the processes of a run may outlive what has ended one of them, or their launcher.
SECONDS_TO_END = 60.0
_POLL = 0.1

#: What is done to a run: a process or torchrun is killed outright, or asked to stop as a scheduler does.
WAYS = {"kill": 6, "kill torchrun": 2, "stop": 2}


@dataclass
class Life:
    """The processes of a run from one start to the next: ``notes`` is a folder of its own for what they note."""

    out: Path
    notes: Path
    processes: int
    started: subprocess.Popen[bytes]
    peak: int = 0
    seen: set[int] = field(default_factory=set)

    @property
    def over(self) -> bool:
        """Whether it has ended by itself; looks at the memory of its processes on the way."""
        found = marked(self.notes)
        self.seen |= found
        for pid in found:
            self.peak = max(self.peak, resident(pid))
        return self.started.poll() is not None


def start(run: Path, out: Path, notes: Path, processes: int) -> Life:
    """Start the run of a file, or go on with it, in one process or by torchrun in several."""
    notes.mkdir(parents=True)
    resume = ["--resume"] if (out / run_folder.CONFIG).is_file() else []
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    words = ["clipdistill.bench.soak_program", "distill", str(run), f"out={out}", *resume]
    environment = {**os.environ, FOLDER: str(notes), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    with (notes / "told.txt").open("w") as told:
        started = subprocess.Popen(
            [sys.executable, "-m", *(torchrun if processes > 1 else []), *words],
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    return Life(out, notes, processes, started)


def wait(life: Life, until: Callable[[], bool]) -> bool:
    """Wait until something is so; False if the life was over before."""
    while not until():
        if life.over:
            return False
        time.sleep(_POLL)
    return True


def end(life: Life, draw: random.Random) -> str:
    """End a life in one of the :data:`WAYS`, of which it returns the name, or ``""`` if it was over already."""
    way = draw.choices(list(WAYS), list(WAYS.values()))[0]
    launcher, ranks = life.started.pid, ranks_of(life)
    if life.over:
        return ""
    if way == "kill torchrun" and life.processes > 1:
        os.kill(launcher, signal.SIGKILL)
        return way
    victims = sorted({*ranks, launcher}) if way == "stop" else sorted(ranks or {launcher})
    try:
        os.kill(draw.choice(victims), signal.SIGTERM if way == "stop" else signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return "stop" if way == "stop" else "kill"


def left(life: Life) -> int:
    """Wait for a life's processes to end, and end those that do not: how many those were."""
    until = time.monotonic() + SECONDS_TO_END
    while (found := marked(life.notes)) and time.monotonic() < until:
        life.started.poll()
        time.sleep(_POLL)
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    life.started.wait()
    return len(found)


def marked(notes: Path) -> set[int]:
    """The processes of a life, but those that have ended and are not yet waited for."""
    mark = f"{FOLDER}={notes}".encode()
    return {
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and mark in _read(path / "environ").split(b"\0")
    }


def ranks_of(life: Life) -> set[int]:
    """The processes that train: what a launcher has started."""
    if life.processes == 1:
        return {life.started.pid}
    return {pid for pid in marked(life.notes) if _status(pid, b"PPid:") == life.started.pid}


def resident(pid: int) -> int:
    """The most memory a process has taken so far, in bytes; 0 if it has ended."""
    return 1024 * _status(pid, b"VmHWM:")


def _status(pid: int, key: bytes) -> int:
    found = [line for line in _read(Path(f"/proc/{pid}/status")).splitlines() if line.startswith(key)]
    return int(found[0].split()[1]) if found else 0


def _read(path: Path) -> bytes:
    """A file of /proc, or nothing: its process may have ended, or be another user's."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
