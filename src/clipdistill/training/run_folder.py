"""The run folder: everything needed to know what a run was, to go on with it, and to read how it went.

::

    config.yaml      the resolved configuration, every default spelled out
    run.json         fingerprints of data and teachers, package versions, machine
    log.jsonl        one line per logged step
    skipped.jsonl    samples that could not be read, with the reason
    checkpoints/     see ``checkpoint``
    student/         the finished model, a standard Hugging Face folder
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipdistill.config import RunConfig, load_run
from clipdistill.errors import ConfigError
from clipdistill.models.bundle import versions

CONFIG, RECORD, LOG, SKIPPED, STUDENT = "config.yaml", "run.json", "log.jsonl", "skipped.jsonl", "student"
#: What may differ between a run and its continuation, because it changes no number.
_FREE = {
    ("out",),
    ("train", "workers"),
    ("train", "log_every"),
    ("train", "checkpoint_every"),
    ("train", "keep_checkpoints"),
}


def create(config: RunConfig, record: Mapping[str, Any]) -> Path:
    """Make the run folder and write down what the run is."""
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / CONFIG, config.to_yaml())
    return folder


def check_new(config: RunConfig) -> None:
    """Refuse an output folder that holds anything; raises ConfigError with the two ways on."""
    folder = Path(config.out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out={folder} is a file. Name a folder that does not exist yet.")
    if folder.is_dir() and any(folder.iterdir()):
        hint = "Add --resume to go on with the run in it, or name" if (folder / CONFIG).is_file() else "Name"
        raise ConfigError(f"out={folder} is not empty. {hint} another folder.")


def check_same(config: RunConfig) -> RunConfig:
    """Return the configuration to resume with: the recorded one, which must agree with ``config``.

    Raises:
        ConfigError: there is no run to resume, or a setting that changes numbers differs; all are listed.
    """
    path = Path(config.out) / CONFIG
    if not path.is_file():
        raise ConfigError(f"--resume: there is no run in {config.out} (no {CONFIG}). Start it without --resume.")
    recorded = load_run(path)
    was, now = _leaves(recorded.model_dump()), _leaves(config.model_dump())
    if config.train.precision == "auto":
        now["train", "precision"] = was["train", "precision"]
    changed = [
        f"{'.'.join(key)}: was {was.get(key)}, now {now.get(key)}"
        for key in sorted(was.keys() | now.keys())
        if key not in _FREE and str(was.get(key)) != str(now.get(key))
    ]
    if changed:
        raise ConfigError(
            f"--resume: the run in {config.out} was started with other settings ({'; '.join(changed)}). "
            "Resume with the old ones, or start anew in another folder."
        )
    train = config.train.model_copy(update={"precision": recorded.train.precision})
    return config.model_copy(update={"train": train})


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
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def cut(self, step: int) -> None:
        """Forget what was logged after ``step``, and a last line that was only half written."""
        kept = [
            json.dumps(entry, ensure_ascii=False) + "\n"
            for entry in read_log(self.path)
            if entry.get("step", 0) <= step
        ]
        write_text(self.path, "".join(kept))


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a JSONL file; none if it does not exist."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _leaves(tree: Mapping[str, Any], at: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    leaves: dict[tuple[str, ...], Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and (*at, key) != ("recipe",):
            leaves |= _leaves(value, (*at, key))
        else:
            leaves[(*at, key)] = value
    return leaves
