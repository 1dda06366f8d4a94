"""Claim: whatever ends a training run, and on however many processes it goes on, it computes what it would have.

For some minutes, runs are killed at random moments and resumed until they finish, then compared with one that nothing
interrupted. Anything else found, such as a process that outlives its run, is a violation.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from clipdistill.bench import soak_lives
from clipdistill.bench.process import run_module
from clipdistill.bench.result import Result
from clipdistill.bench.soak_checks import Found, compare, last_words, look
from clipdistill.errors import ConfigError, TrainingError
from clipdistill.progress import progress
from clipdistill.training.run_folder import STUDENT

TEACHERS = ("live", "stored")
#: By whether a run stays on as many processes: under Muon, in bfloat16, another order of sums grows to another run.
OPTIMIZERS = {True: "muon", False: "adamw"}
#: The whole number of batches in an epoch, so that every sample is in one of them.
SAMPLES, BATCH, STEPS = 96, 16, 240
#: One life in so many is ended while it starts, the others while they train.
_EARLY = 4
#: No life that is to end lasts longer than this part of an uninterrupted run's training.
_LATEST = 0.5
_SIZES = {"preset": "scenes-student", "width": 16, "layers": 1, "text_layers": 1, "embed_dim": 16}


@dataclass
class Reference:
    """A run that nothing has interrupted, and the seconds until it trained, and that it trained."""

    found: Found
    starting: float
    training: float


@dataclass
class Story:
    """A run from its first start to its end: the number of processes and the end of each life."""

    teacher: str
    alike: bool
    processes: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    peak_bytes: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    @property
    def run(self) -> str:
        """The name of its run file, and of what it is compared with."""
        return _name(self.teacher, self.alike)


def run(minutes: float = 10.0, steps: int = STEPS) -> Result:
    """Kill and resume runs of ``steps`` steps for so many minutes, beside those that the runs to compare with take, and
    the last one.

    Raises:
        ConfigError: this is not Linux, where processes can be found by their environment.
        TrainingError: an uninterrupted run fails.
    """
    if not Path("/proc/self/environ").exists():
        raise ConfigError(f"bench soak looks for processes in /proc, which {sys.platform} has not. Run it on Linux.")
    draw, stories, total = random.Random(), list[Story](), round(60 * minutes)
    with (
        tempfile.TemporaryDirectory(prefix="clipdistill-bench-") as name,
        progress("bench soak", total, "s") as advance,
    ):
        folder = Path(name)
        write_inputs(folder, steps)
        references = {name: refer(folder, name) for name in map(_name, TEACHERS * 2, (True, True, False, False))}
        began = time.monotonic()
        until = began + 60 * minutes
        while time.monotonic() < until:
            story = Story(TEACHERS[len(stories) % len(TEACHERS)], alike=draw.random() < 0.5)
            stories.append(live_on(folder, story, references[story.run], draw, until))
            advance(min(round(time.monotonic() - began), total), f"{len(stories)} runs")
    return _result(minutes, stories)


def write_inputs(folder: Path, steps: int) -> None:
    """A teacher, its store, and the run file of each way to have it."""
    data, teacher = f"scenes:train?n={SAMPLES}", folder / "teacher" / STUDENT
    train = {"batch_size": BATCH, "precision": "float32", "device": "cpu", "workers": 1}
    made = {"recipe": "clip", "data": data, "student": {**_SIZES, "width": 32, "vocab_size": 520}}
    (folder / "teacher.yaml").write_text(
        yaml.safe_dump({**made, "train": {**train, "steps": 20}, "out": str(folder / "teacher")})
    )
    run_module("clipdistill", "distill", str(folder / "teacher.yaml"))
    words = ["--model", str(teacher), "--out", str(folder / "store")]
    run_module("clipdistill", "embed", data, *words)
    train |= {"steps": steps, "log_every": 1, "checkpoint_every": 10, "lr": 1e-4}
    for name, uri in zip(TEACHERS, (teacher, folder / "store"), strict=True):
        told = {"recipe": "clip-kd", "data": data, "teachers": {"T": str(uri)}, "student": _SIZES, "augment": "whole"}
        for alike, optimizer in OPTIMIZERS.items():
            run = {**told, "train": {**train, "optimizer": optimizer}, "out": "runs"}
            (folder / f"{_name(name, alike)}.yaml").write_text(yaml.safe_dump(run))


def _name(teacher: str, alike: bool) -> str:
    return f"{teacher}-{OPTIMIZERS[alike]}"


def refer(folder: Path, run: str) -> Reference:
    """Let a run go to its end, in two processes."""
    out, notes = folder / f"{run}-whole", folder / "notes" / f"{run}-whole"
    began = time.monotonic()
    life = soak_lives.start(folder / f"{run}.yaml", out, notes / "0", 2)
    soak_lives.wait(life, lambda: _trains(life))
    between = time.monotonic()
    soak_lives.wait(life, lambda: False)
    ended = time.monotonic()
    if life.started.returncode or soak_lives.left(life):
        raise TrainingError(f"bench soak: a run that nothing interrupted has failed:\n{last_words(life.notes)}")
    return Reference(look(out, notes, life.peak), between - began, ended - between)


def live_on(folder: Path, story: Story, reference: Reference, draw: random.Random, until: float) -> Story:
    """Start, end and resume a run until it is finished, nothing ending it after ``until``; then compare it."""
    out, notes, began = folder / "run", folder / "notes" / "run", time.monotonic()
    while not (out / STUDENT).is_dir():
        processes = 2 if story.alike else draw.randint(1, 3)
        life = soak_lives.start(folder / f"{story.run}.yaml", out, notes / str(len(story.ends)), processes)
        _moment(life, reference, draw, until)
        way = soak_lives.end(life, draw) if time.monotonic() < until else ""
        if not way:
            soak_lives.wait(life, lambda: False)
        story.processes.append(processes)
        story.ends.append(way)
        _after(story, life, way)
        if story.violations and not way:
            break  # it would fail again
    story.seconds = time.monotonic() - began
    if (out / STUDENT).is_dir():
        story.violations += compare(look(out, notes, story.peak_bytes), reference.found, story.alike, SAMPLES, BATCH)
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(notes)
    return story


def _moment(life: soak_lives.Life, reference: Reference, draw: random.Random, until: float) -> None:
    """Wait for a moment to end a life at, or until it is over."""
    early = draw.randrange(_EARLY) == 0
    if not early and not soak_lives.wait(life, lambda: _trains(life)):
        return
    moment = time.monotonic() + draw.uniform(0, reference.starting if early else _LATEST * reference.training)
    soak_lives.wait(life, lambda: time.monotonic() >= min(moment, until))


def _after(story: Story, life: soak_lives.Life, way: str) -> None:
    """What is wrong when a life is over."""
    number, orphans = len(story.ends), soak_lives.left(life)
    story.peak_bytes = max(story.peak_bytes, life.peak)
    if orphans:
        story.violations.append(f"life {number}: {orphans} processes were left {soak_lives.SECONDS_TO_END:g} s later")
    if not way and life.started.returncode:
        story.violations.append(
            f"life {number} ended with status {life.started.returncode}, and nobody had ended it: "
            f"{last_words(life.notes)}"
        )
    shared = [path.name for pid in life.seen for path in Path("/dev/shm").glob(f"torch_{pid}_*")]
    if shared:
        story.violations.append(f"life {number}: {len(shared)} blocks of shared memory were left ({shared[0]}, ...)")


def _trains(life: soak_lives.Life) -> bool:
    return any(life.notes.glob("*.jsonl"))


def _result(minutes: float, stories: list[Story]) -> Result:
    ends = Counter(end for story in stories for end in story.ends if end)
    lives = sum(len(story.ends) for story in stories)
    violations = [f"run {at}: {told}" for at, story in enumerate(stories, start=1) for told in story.violations]
    measured = {
        "minutes": minutes,
        "runs": len(stories),
        "runs_alike": sum(story.alike for story in stories),
        "resumes": lives - len(stories),
        "ends": {way: ends[way] for way in soak_lives.WAYS},
        "peak_bytes": [story.peak_bytes for story in stories],
        "violations": violations,
        "stories": [asdict(story) for story in stories],
    }
    told = ", ".join(f"{ends[way]} times {way}" for way in soak_lives.WAYS)
    lines = [
        f"{len(stories)} runs finished in {minutes:g} minutes, {measured['runs_alike']} of them on 2 processes "
        f"throughout, the others on 1 to 3; {lives - len(stories)} resumes",
        f"ended: {told}; violations: {len(violations)}",
    ]
    return Result({}, measured, "\n".join([*lines, *violations]))
