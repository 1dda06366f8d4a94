"""Measure in a process of its own: what it holds at its peak is then its own, whatever ran before."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

from clipdistill.errors import TrainingError

_SECONDS_TO_END = 10.0


def run_module(module: str, *words: str, within: float | None = None, **environment: str) -> str:
    """Run ``python -m module words``, with more in its ``environment``; return what it printed.

    Whatever it has started ends with it, also where it is interrupted or takes longer than ``within`` seconds.

    Raises:
        TrainingError: it failed; with the end of what it said.
        TimeoutExpired: it did not finish ``within`` so many seconds.
    """
    command = [sys.executable, "-m", module, *words]
    # -m would look for packages in the user's folder first; this program, as a command, does not.
    safe = {**os.environ, "PYTHONSAFEPATH": "1", **environment}
    pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=safe, start_new_session=True, **pipes) as process:
        try:
            printed, errors = process.communicate(timeout=within)
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        killed = " It was killed, perhaps for lack of memory: close other programs." if process.returncode < 0 else ""
        raise TrainingError(
            f"a part of the benchmark ended with status {process.returncode}: {' '.join(command[1:3])}.{killed} "
            f"Its last words:\n{errors[-2000:].strip()}"
        )
    return str(printed)


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started; torchrun, whose processes are in groups of their own, passes it on."""
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_SECONDS_TO_END)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def ask(module: str, within: float | None = None, **arguments: Any) -> dict[str, Any]:
    """Run a module that answers one JSON object with another, as its last line; see :func:`run_module`."""
    return _answer(run_module(module, json.dumps(arguments), within=within))


def ask_several(processes: int, module: str, within: float | None = None, **arguments: Any) -> dict[str, Any]:
    """The same of a module that torchrun starts in several processes, of which the first one answers."""
    words = ["--standalone", f"--nproc-per-node={processes}", "-m", module, json.dumps(arguments)]
    # Torchrun would give each process one thread, however many cores there are.
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    return _answer(run_module("torch.distributed.run", *words, within=within, OMP_NUM_THREADS=threads))


def _answer(printed: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answer
