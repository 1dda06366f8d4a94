"""What a run of a soak has left, and how it must agree with one that nothing interrupted."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from clipdistill.files import checksum
from clipdistill.training.run_folder import LOG, STUDENT, read_log

#: Another number of processes adds up the same numbers in another order.
TOLERANCE = 1e-3
#: So much more may a run take than the uninterrupted one, on disk and in memory.
MORE = {"bytes on disk": 1.05, "bytes of memory": 1.5}

#: How torchrun begins to tell of a process that has failed, in the middle of a line.
_ACCOUNT = "torch/distributed/elastic/multiprocessing/api.py"

#: What a batch was made of by its number, as one life has noted it, and whether all its processes have.
Batches = dict[int, tuple[list[str], bool]]


@dataclass(frozen=True)
class Found:
    """What a finished run has left: losses by step, the student's weights, the files beside whole checkpoints, and the
    batches of each life.
    """

    losses: list[tuple[int, float]]
    student: str
    files: list[str]
    size: int
    peak: int
    lives: list[Batches]


def look(out: Path, notes: Path, peak: int) -> Found:
    """Read a finished run's folder and its notes, a folder for each life."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return Found(
        [(entry["step"], entry["loss"]) for entry in read_log(out / LOG) if "loss" in entry],
        checksum(out / STUDENT / "model.safetensors"),
        [name for name in (str(path.relative_to(out)) for path in files) if not name.startswith("checkpoints/step-")],
        sum(path.stat().st_size for path in files),
        peak,
        [read_batches(life) for life in sorted(notes.iterdir(), key=lambda path: int(path.name))],
    )


def read_batches(notes: Path) -> Batches:
    """The batches that one life has noted."""
    parts = [{entry["batch"]: entry["ids"] for entry in read_log(path)} for path in notes.glob("*.jsonl")]
    numbers = sorted(set().union(*parts))
    return {
        number: (
            sorted(name for part in parts for name in part.get(number, [])),
            all(number in part for part in parts),
        )
        for number in numbers
    }


def compare(found: Found, expected: Found, alike: bool, samples: int, batch: int) -> list[str]:
    """What is wrong with a run: nothing, if it is as the ``expected`` one, to the bit where ``alike``."""
    steps = [step for step, _ in expected.losses]
    told = []
    if [step for step, _ in found.losses] != steps:
        told.append(f"the log has steps {_gaps(found, steps)}")
    else:
        told += _compare_losses(found, expected, alike)
    if alike and found.student != expected.student:
        told.append("the student's weights are others")
    told += check_batches(found.lives, len(steps), samples, batch)
    if extra := sorted(set(found.files) ^ set(expected.files)):
        told.append(f"files differ: {', '.join(extra[:5])}")
    sizes = {"bytes on disk": (found.size, expected.size), "bytes of memory": (found.peak, expected.peak)}
    for what, (mine, theirs) in sizes.items():
        if mine > MORE[what] * theirs:
            told.append(f"{mine:,} {what} instead of {theirs:,}")
    return told


def check_batches(lives: list[Batches], steps: int, samples: int, batch: int) -> list[str]:
    """Every batch is the same in all lives, and every epoch has every sample once."""
    told, batches = [], dict[int, list[str]]()
    for life in lives:
        batches |= {number: ids for number, (ids, whole) in life.items() if whole}
    for at, life in enumerate(lives, start=1):
        for number, (ids, _) in life.items():
            if not set(ids) <= set(batches.get(number, [])):
                told.append(f"batch {number} was made of other samples in life {at}")
    size = samples // batch
    for epoch in range(steps // size):
        ids = [name for number in range(epoch * size, (epoch + 1) * size) for name in batches.get(number, [])]
        if not len(ids) == len(set(ids)) == samples:
            told.append(f"epoch {epoch} has {len(ids)} samples, {len(set(ids))} of {samples} different ones")
    return told


def last_words(notes: Path) -> str:
    """The end of what a life has printed, without torchrun's own account of it."""
    told = (notes / "told.txt").read_text(encoding="utf-8", errors="replace")
    if _ACCOUNT in told:
        told = told.partition(_ACCOUNT)[0].rpartition("\n")[0]
    return told[-1000:].strip()


def _compare_losses(found: Found, expected: Found, alike: bool) -> list[str]:
    pairs = zip(found.losses, expected.losses, strict=True)
    for (step, mine), (_, theirs) in pairs:
        if mine != theirs and (alike or not math.isclose(mine, theirs, rel_tol=TOLERANCE)):
            return [f"from step {step} losses differ: {mine!r} instead of {theirs!r}"]
    return []


def _gaps(found: Found, steps: list[int]) -> str:
    have = [step for step, _ in found.losses]
    lost, twice = sorted(set(steps) - set(have)), sorted({step for step in have if have.count(step) > 1})
    return json.dumps({"missing": lost[:5], "twice": twice[:5]})
