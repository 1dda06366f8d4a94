"""One embedding job: its settings, written down first, and how far it is.

The settings are in ``embed.json``; whoever goes on with a job must have the same.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from clipdistill.data.samples import Source
from clipdistill.data.secrets import redacted
from clipdistill.errors import StoreError
from clipdistill.models.encoder import DualEncoder
from clipdistill.teachers.manifest import FOLDERS, MANIFEST, ViewPlan, read_records
from clipdistill.teachers.shards import forget_lost, put
from clipdistill.teachers.store import JOB, job_of, shards_of


@dataclass
class Job:
    """What is embedded, how, and how far it is: ``broken`` pictures were met so far, by all processes."""

    folder: Path
    source: Source
    encoder: DualEncoder
    sides: str
    views: ViewPlan
    dtype: str
    shard_size: int
    batch_size: int
    workers: int
    precision: str
    autocast: AbstractContextManager[None]
    max_broken: int
    broken: list[tuple[str, str]] = field(default_factory=list)

    @property
    def shards(self) -> int:
        """How many shards each side has."""
        return shards_of(len(self.source), self.shard_size)

    def samples(self, number: int) -> range:
        """The positions of the samples in a shard."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, len(self.source)))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What makes the rows what they are: a job can be gone on with as long as this stays."""
        return {
            "model": {"uri": self.encoder.uri, "fingerprint": self.encoder.fingerprint},
            "source": {
                "uri": self.source.uri,
                "fingerprint": self.source.fingerprint,
                "samples": len(self.source),
            },
            "sides": self.sides,
            "views": asdict(self.views),
            "dtype": self.dtype,
            "shard_size": self.shard_size,
            "precision": self.precision,
        }


def look_at(folder: Path) -> dict[str, Any] | None:
    """The settings of the job in a folder; raises StoreError if the folder holds anything else."""
    if folder.is_file():
        raise StoreError(f"{folder} is a file. Name a folder for the store.")
    begun = job_of(folder)
    if begun is None and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        kind = "holds a store that no clipdistill embed made" if (folder / MANIFEST).exists() else "is not empty"
        raise StoreError(f"{folder} {kind}. Name another folder.")
    return begun


def begin(job: Job) -> None:
    """Write the settings down, or compare them with those the job was begun with, and see what is lost of it.

    Raises StoreError.
    """
    settings = redacted(json.loads(json.dumps(job.settings)))  # the store may be published
    begun = job_of(job.folder)
    if begun is None:
        job.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings, indent=1) + "\n"
        put(job.folder / JOB, lambda file: file.write(text.encode()))
        return
    changed = [
        f"{name}: was {_short(begun.get(name))}, now {_short(value)}"
        for name, value in settings.items()
        if _content(begun.get(name)) != _content(value)
    ]
    if changed:
        raise StoreError(
            f"the store {job.folder} was begun with other settings ({'; '.join(changed)}). "
            "Go on with the old ones, or start anew in another folder."
        )
    forget_lost(job.folder)


def _content(value: Any) -> Any:
    """A setting without its name: a model or data that moved are still the same."""
    return value["fingerprint"] if isinstance(value, dict) and "fingerprint" in value else value


def _short(value: Any) -> str:
    if isinstance(value, dict) and "fingerprint" in value:
        return f"{value['uri']} ({value['fingerprint'][:12]})"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def done(job: Job) -> tuple[int, int]:
    """How many shards are done, and how many there are, over both sides."""
    done = sum(len(read_records(job.folder, FOLDERS[side])) for side in job.sides)
    return done, job.shards * len(job.sides)
