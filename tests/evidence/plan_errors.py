"""How far plans are from runs: ``OMP_NUM_THREADS=1 python tests/evidence/plan_errors.py`` trains a few minutes.

Plans a small run, then trains it as it was planned, in one process and in two, with its teacher live and stored, whole
and in micro-batches; prints the predicted and the measured seconds of a step and memory of a process. Seconds are those
of the processor, so that other programs on the machine do not count; alone, one thread takes as many on the clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

STEPS, PICTURES = 8, 768
TEACHER = {"preset": "vit-small-16", "image_size": 64, "layers": 6, "text_layers": 4, "vocab_size": 2000}
STUDENT = {"preset": "vit-tiny-16", "image_size": 64, "layers": 6, "text_layers": 4}
#: What is planned and trained: processes, and overrides.
CASES: dict[str, tuple[int, list[str]]] = {
    "live": (1, []),
    "stored": (1, ["teachers.T=store"]),
    "live, micro-batches of 16": (1, ["train.micro_batch=16"]),
    "live, two batches a step": (1, ["train.accumulate=2"]),
    "live, two processes": (2, []),
    "stored, two processes": (2, ["teachers.T=store"]),
    "stored, micro-batches, two processes": (2, ["teachers.T=store", "train.micro_batch=16"]),
    "live, batch of 256, micro-batches, two processes": (2, ["train.batch_size=256", "train.micro_batch=32"]),
}
#: A command on the processor's clock that tells the most memory its process has had.
PROGRAM = """
import os, re, sys, time
from pathlib import Path
time.perf_counter = time.monotonic = time.process_time
from clipdistill.cli import main
status = main(sys.argv[2:])
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
Path(f"{sys.argv[1]}-{os.environ.get('RANK', '0')}").write_text(peak)
sys.exit(status)
"""


def run(folder: Path, *words: str) -> str:
    """Run python in a folder; return what it printed."""
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def prepare(folder: Path) -> None:
    """Make a teacher, its store, and the run file."""
    train = {"batch_size": 64, "workers": 0, "precision": "float32", "log_every": 1, "checkpoint_every": "1000 steps"}
    data = f"scenes:train?n={PICTURES}"
    start = {"recipe": "clip", "data": "scenes:train?n=512", "student": TEACHER, "train": {**train, "steps": 1}}
    (folder / "teacher.yaml").write_text(json.dumps({**start, "out": "teacher"}))
    student = {"recipe": "clip-kd", "data": data, "student": STUDENT, "augment": "whole"}
    live = {**student, "teachers": {"T": "teacher/student"}, "train": {**train, "steps": STEPS}, "out": "run"}
    (folder / "run.yaml").write_text(json.dumps(live))
    (folder / "command.py").write_text(PROGRAM)
    run(folder, "-m", "clipdistill", "distill", "teacher.yaml")
    run(folder, "-m", "clipdistill", "embed", data, "--model", "teacher/student", "--out", "store")


def predicted(folder: Path, processes: int, words: Sequence[str]) -> tuple[float, float]:
    """Seconds of a step, and bytes of a process, by the plan."""
    told = run(folder, "command.py", "peak", "plan", "run.yaml", *words, "--gpus", str(processes), "--json")
    column: dict[str, Any] = json.loads(told)["plan"]["columns"][0]
    return sum(column["seconds"].values()), column["peak"]


def measured(folder: Path, number: int, processes: int, words: Sequence[str]) -> tuple[float, float]:
    """Seconds of a step, and the most bytes that a process had, by training."""
    out = f"run-{number}"
    program = ["command.py", f"peak-{number}", "distill", "run.yaml", *words, f"out={out}"]
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    run(folder, *start, *program)
    entries = [json.loads(line) for line in (folder / out / "log.jsonl").read_text().splitlines()]
    spent = [entry["samples"] / entry["samples_per_second"] for entry in entries]
    peaks = [int(path.read_text()) * 1024 for path in folder.glob(f"peak-{number}-*")]
    return median(after - before for before, after in pairwise(spent[1:])), max(peaks)


def main() -> None:
    """Print a line for each case."""
    os.environ["PYTHONSAFEPATH"] = "1"
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for number, (case, (processes, words)) in enumerate(CASES.items()):
            told, bytes_told = predicted(Path(name), processes, words)
            found, bytes_found = measured(Path(name), number, processes, words)
            in_time = f"step {told:.3f} s, measured {found:.3f} ({told / found - 1:+.0%})"
            mega = f"{bytes_told / 1e6:.0f} MB, measured {bytes_found / 1e6:.0f} ({bytes_told / bytes_found - 1:+.0%})"
            print(f"{case}: {in_time}; memory {mega}", flush=True)


if __name__ == "__main__":
    main()
