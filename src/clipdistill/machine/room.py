"""Room for what is written and passed around: disks, open files, shared memory."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

from huggingface_hub import constants

from clipdistill.machine.finding import Finding

_GIB = 2**30
#: A run with checkpoints, a store or an index; a large teacher; workers that are four batches ahead.
_DISK, _CACHE, _SHARED = 5.0, 5.0, 1.0
#: Workers pass each tensor of a batch as a file.
_FILES = 1024


def look() -> list[Finding]:
    """Examine the disks of the current folder and of the models, the limit of open files, and shared memory."""
    return [
        disk("disk", Path.cwd(), _DISK, "free some, or work in another folder"),
        disk("disk of models", Path(constants.HF_HOME), _CACHE, "free some, or name another folder as HF_HOME"),
        files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        *([shared_memory()] if Path("/dev/shm").is_dir() else []),
    ]


def disk(name: str, folder: Path, enough: float, todo: str) -> Finding:
    """How many GiB are free where ``folder`` is, or will be."""
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(there).free / _GIB
    found = f"{free:.1f} GiB free in {folder}"
    return Finding("ok", name, found) if free >= enough else Finding("warning", name, found, todo)


def files(limit: int) -> Finding:
    """Whether so many open files are enough for processes that read ahead."""
    if limit == resource.RLIM_INFINITY or limit >= _FILES:
        return Finding("ok", "open files", "no limit" if limit == resource.RLIM_INFINITY else f"{limit} at most")
    todo = f"ulimit -n {4 * _FILES}, or train.workers=0"
    return Finding("warning", "open files", f"{limit} at most: too few for several workers", todo)


def shared_memory(folder: Path = Path("/dev/shm"), enough: float = _SHARED) -> Finding:
    """Whether the memory through which workers pass batches is large enough; a container has 64 MiB as it comes."""
    free = shutil.disk_usage(folder).free / _GIB
    found = f"{free:.2f} GiB free in {folder}"
    if free >= enough:
        return Finding("ok", "shared memory", found)
    return Finding("warning", "shared memory", found, "docker run --shm-size 8g, or train.workers=0")
