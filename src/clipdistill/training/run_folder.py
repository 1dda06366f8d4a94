"""The run folder: everything needed to know what a run was, to go on with it, and to read how it went.

::

    config.yaml      the resolved configuration, every default spelled out
    run.json         fingerprints of data and teachers, package versions, machine
    log.jsonl        one line per logged step
    trackers.json    the runs of trackers that are told the same, if any
    skipped.jsonl    samples that could not be read, with the reason
    checkpoints/     see ``checkpoint``
    student/         the finished model, a standard Hugging Face folder
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clipdistill.algebra.recipe import Recipe
from clipdistill.config import RunConfig, load_run
from clipdistill.errors import ConfigError
from clipdistill.files import write_text
from clipdistill.models.bundle import versions

CONFIG, RECORD, LOG, SKIPPED, STUDENT = "config.yaml", "run.json", "log.jsonl", "skipped.jsonl", "student"
TRACKERS, LOCK = "trackers.json", ".lock"
#: Seconds to wait for a folder: the processes of a run that was killed need a few to notice.
PATIENCE = 30.0
#: What may differ between a run and its continuation: data and teachers are compared by their content, and the rest
#: changes no weight.
FREE = {
    ("data",),
    ("evaluate", "retrieval"),
    ("evaluate", "image_retrieval"),
    ("evaluate", "zeroshot"),
    ("train", "max_broken"),
    ("out",),
    ("track",),
    ("train", "workers"),
    ("train", "log_every"),
    ("train", "checkpoint_every"),
    ("train", "keep_checkpoints"),
}
#: What a student is made from, by name: such as the student of an earlier stage, or a grid's own teacher.
_PATHS = (("student", "pretrained"), ("student", "inherit_from"), ("student", "tokenizer"))


def create(config: RunConfig, record: Mapping[str, Any]) -> Path:
    """Make the run folder and write down what the run is."""
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / CONFIG, config.to_yaml())
    return folder


def resolved(config: RunConfig) -> RunConfig:
    """The same run with its recipe spelled out: a name or a file could mean something else tomorrow."""
    return config.model_copy(update={"recipe": Recipe.load(config.recipe).to_dict()})


def check_new(config: RunConfig) -> None:
    """Refuse an output folder that holds anything; raises ConfigError with the two ways on."""
    folder = Path(config.out)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        kind = "cannot be written to" if above.is_dir() else "is a file"
        raise ConfigError(f"out={folder}: {above} {kind}. Name a folder that can be made.")
    if folder.is_dir() and any(folder.iterdir()):
        hint = "Add --resume to go on with the run in it, or name" if (folder / CONFIG).is_file() else "Name"
        raise ConfigError(f"out={folder} is not empty. {hint} another folder.")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder; a process that is killed lets go of it.

    Raises:
        ConfigError: another process has held it for :data:`PATIENCE` seconds.
    """
    try:
        with FileLock(folder / LOCK, timeout=PATIENCE):
            yield
    except Timeout:
        raise ConfigError(
            f"out={folder}: another process is training in it. Wait for its end, or name another folder."
        ) from None


def check_there(config: RunConfig) -> Path:
    """The recorded configuration of a run to resume; raises ConfigError if there is none."""
    path = Path(config.out) / CONFIG
    if not path.is_file():
        raise ConfigError(f"--resume: there is no run in {config.out} (no {CONFIG}). Start it without --resume.")
    return path


def check_same(config: RunConfig) -> RunConfig:
    """Return the configuration to resume with: the recorded one, which must agree with ``config``.

    Raises:
        ConfigError: there is no run to resume, or a setting that changes numbers differs; all are listed.
    """
    path = check_there(config)
    recorded, config = load_run(path), resolved(config)
    was, now = _leaves(recorded.model_dump()), _leaves(config.model_dump())
    if config.augment is None:  # what the run came to show: the stored teachers' views, or the default ones
        config = config.model_copy(update={"augment": recorded.augment})
        now = _leaves(config.model_dump())
    if config.train.precision == "auto":
        now["train", "precision"] = was["train", "precision"]
    for key in _PATHS:
        if _same_place((was[key], recorded.out), (now[key], config.out)):
            now[key] = was[key]
    changed = [
        "recipe: its terms are others"
        if key == ("recipe",)
        else f"{'.'.join(key)}: was {was.get(key)}, now {now.get(key)}"
        for key in sorted(was.keys() | now.keys())
        if key not in FREE and key[0] != "teachers" and _plain(was.get(key)) != _plain(now.get(key))
    ]
    if recorded.teachers.keys() != config.teachers.keys():
        letters = (" and ".join(sorted(run.teachers)) or "none" for run in (recorded, config))
        changed.append("teachers: were {}, now {}".format(*letters))
    if changed:
        raise ConfigError(
            f"--resume: the run in {config.out} was started with other settings ({'; '.join(changed)}). "
            "Resume with the old ones, or start anew in another folder."
        )
    train = config.train.model_copy(update={"precision": recorded.train.precision})
    return config.model_copy(update={"train": train})


def _same_place(was: tuple[str | None, str], now: tuple[str | None, str]) -> bool:
    """Whether two paths, each with the run's folder, are one file, or lie alike beside a run that has moved with it."""
    (before, out_before), (path, out) = was, now
    if not (before and path):
        return False
    return Path(before).absolute() == Path(path).absolute() or (
        os.path.relpath(before, out_before) == os.path.relpath(path, out)
    )


def check_inputs(folder: Path, data: str, teachers: Mapping[str, str]) -> None:
    """Refuse to resume on other data or with other teachers than the run began with; raises ConfigError."""
    recorded = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if recorded["data"]["fingerprint"] != data:
        raise ConfigError(
            f"--resume: the data of the run in {folder} ({recorded['data']['uri']}) have changed since it was started. "
            "Put them back as they were, or start anew in another folder."
        )
    for letter, mark in teachers.items():
        if recorded["teachers"][letter]["fingerprint"] != mark:
            raise ConfigError(
                f"--resume: teacher {letter} of the run in {folder} ({recorded['teachers'][letter]['uri']}) is not the "
                "model it was. Put it back, or start anew in another folder."
            )


def record(
    config: RunConfig, data_fingerprint: str, teachers: Mapping[str, str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``run.json`` holds: what the run depends on beyond its configuration."""
    return {
        "seed": config.seed,
        "data": {"uri": config.data, "fingerprint": data_fingerprint},
        "teachers": {
            letter: {"uri": config.teachers[letter], "fingerprint": mark} for letter, mark in teachers.items()
        },
        "packages": versions(),
        "machine": {"python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count()},
        "preflight": dict(facts),
    }


class Log:
    """Append lines to a JSONL file; each is flushed, so a reader sees whole lines up to the last one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(entry))

    def cut(self, step: int) -> None:
        """Forget what was logged after ``step``, and a last line that was only half written."""
        write_text(self.path, "".join(_line(entry) for entry in read_log(self.path) if entry.get("step", 0) <= step))


def _line(entry: Mapping[str, Any]) -> str:
    """One line of JSON; bytes of a file name that are no text are escaped, so that they come back."""
    text = json.dumps(entry, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(entry)
    return text + "\n"


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a JSONL file; none if it does not exist."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").split("\n"):  # a text in it may hold what else ends a line
        try:
            if line:
                yield json.loads(line)
        except ValueError:
            return


def _plain(value: Any) -> str:
    """A value as YAML would give it back: tuples are lists."""
    return str(list(value) if isinstance(value, tuple) else value)


def _leaves(tree: Mapping[str, Any], at: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    leaves: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and (*at, key) != ("recipe",):
            leaves |= _leaves(value, (*at, key))
        else:
            leaves[(*at, key)] = value
    return leaves
