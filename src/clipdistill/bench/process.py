"""Measure in a process of its own: what it holds at its peak is then its own, whatever ran before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from clipdistill.errors import TrainingError


def run_module(module: str, *words: str) -> str:
    """Run ``python -m module words``; return what it printed.

    Raises:
        TrainingError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-m", module, *words]
    # -m would look for packages in the user's folder first; this program, as a command, does not.
    safe = {**os.environ, "PYTHONSAFEPATH": "1"}
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
    answer: dict[str, Any] = json.loads(run_module(module, json.dumps(arguments)).splitlines()[-1])
    return answer
