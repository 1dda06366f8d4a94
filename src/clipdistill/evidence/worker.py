"""A process that trains runs one after another: torch is imported once, and started once.

It is asked on its standard input and answers on its standard output, a line of JSON each; what runs say goes to files.

    {"file": RUN.yaml, "resume": false, "threads": 1, "log": FILE}    ->  {"status": 0}, as of a command
    {"measure": [RUN.yaml, ...], "threads": 1, "log": FILE}           ->  {"status": 0, "peak": BYTES}
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipdistill.errors import ClipdistillError, InterruptedRunError

#: The status of what Ctrl-C stopped.
INTERRUPTED = 130
#: Gradients are counted in what was measured; AdamW keeps two more numbers per weight, of four bytes.
_BYTES_PER_WEIGHT = 8


def serve() -> int:
    """Answer until nobody asks any more; returns the exit status."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    try:
        for line in iter(sys.stdin.readline, ""):
            request = json.loads(line)
            with _said_to(request["log"]):
                answer = _answer(request)
            print(json.dumps(answer), file=answers, flush=True)
    except (KeyboardInterrupt, BrokenPipeError):  # whoever asks is stopped, too
        return INTERRUPTED
    return 0


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Do what is asked; an error is told like a command's, on standard error."""
    try:
        import torch

        torch.set_num_threads(request["threads"])
        if "measure" in request:
            return {"status": 0, "peak": _peak(request["measure"])}
        _train(request["file"], request["resume"])
    except (InterruptedRunError, KeyboardInterrupt) as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return {"status": INTERRUPTED}
    except (ClipdistillError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return {"status": 1}
    except Exception:  # whatever happens, the next run can be asked for
        traceback.print_exc()
        return {"status": 1}
    return {"status": 0}


def _train(file: str, resume: bool) -> None:
    from clipdistill.config import load_run
    from clipdistill.training.stages import distill

    distill(load_run(file), resume)


def _peak(files: Sequence[str]) -> int:
    """The most memory that a first step of any of these runs takes, in bytes, with its optimiser's; writes nothing."""
    from clipdistill.config import load_run
    from clipdistill.models.device import choose_device, choose_precision
    from clipdistill.training.preflight import count, peak_memory, preflight
    from clipdistill.training.setup import prepare
    from clipdistill.training.stages import stage_runs

    peak = 0
    for file in files:
        config = load_run(file)
        config = stage_runs(config)[0] if config.stages else config  # the others need the student before them
        precision = choose_precision(choose_device(config.train.device), config.train.precision)
        train = config.train.model_copy(update={"precision": precision})
        setup = prepare(config.model_copy(update={"train": train}))
        preflight(setup, Path(config.out))
        state = _BYTES_PER_WEIGHT * (count(setup.student.module) + count(setup.graph))
        peak = max(peak, peak_memory(setup.device) + state)
    return peak


@contextmanager
def _said_to(log: str) -> Iterator[None]:
    """Let everything that this process and those it starts say go to a file."""
    before = os.dup(1), os.dup(2)
    with Path(log).open("w", encoding="utf-8") as file:
        _speak(file.fileno(), file.fileno())
        try:
            yield
        finally:
            _speak(*before)
            for descriptor in before:
                os.close(descriptor)


def _speak(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)


if __name__ == "__main__":
    sys.exit(serve())
