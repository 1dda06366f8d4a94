"""Measure in a process of its own: what it holds at its peak is then its own, whatever ran before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from clipdistill.errors import TrainingError


def run_module(module: str, *words: str, **environment: str) -> str:
    """Run ``python -m module words``, with more in its ``environment``; return what it printed.

    Raises:
        TrainingError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-m", module, *words]
    # -m would look for packages in the user's folder first; this program, as a command, does not.
    safe = {**os.environ, "PYTHONSAFEPATH": "1", **environment}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=safe)
    if done.returncode:
        killed = " It was killed, perhaps for lack of memory: close other programs." if done.returncode < 0 else ""
        raise TrainingError(
            f"a part of the benchmark ended with status {done.returncode}: {' '.join(command[1:3])}.{killed} "
            f"Its last words:\n{done.stderr[-2000:].strip()}"
        )
    return done.stdout


def ask(module: str, **arguments: Any) -> dict[str, Any]:
    """Run a module that answers one JSON object with another, as its last line; see :func:`run_module`."""
    return _answer(run_module(module, json.dumps(arguments)))


def ask_several(processes: int, module: str, **arguments: Any) -> dict[str, Any]:
    """The same of a module that torchrun starts in several processes, of which the first one answers."""
    words = ["--standalone", f"--nproc-per-node={processes}", "-m", module, json.dumps(arguments)]
    # Torchrun would give each process one thread, however many cores there are.
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    return _answer(run_module("torch.distributed.run", *words, OMP_NUM_THREADS=threads))


def _answer(printed: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answer
