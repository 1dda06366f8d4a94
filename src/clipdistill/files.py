"""Writing files whole or not at all: beside, flushed, then renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; several processes may do so."""
    beside = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # named by the file that was asked for
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def object_in(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file, or no object in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def mark(path: Path) -> tuple[int, ...]:
    """What changes whenever :func:`write_text` writes a file: every time it is another one."""
    found = path.stat()
    return found.st_mtime_ns, found.st_ino, found.st_size


def checksum(path: Path) -> str:
    """The SHA-256 of a file's bytes, read a megabyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def flush(folder: Path) -> None:
    """Force a folder's files to disk, before a rename makes them count."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
