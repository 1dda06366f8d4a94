"""Checkpoints: a folder per step, written beside and renamed, its manifest with checksums last.

::

    checkpoints/step-00000200/
        student.safetensors  graph.safetensors  [ema.safetensors]  optimiser.pt
        manifest.json        step, random state, checksums of the other files
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipdistill.errors import TrainingError

MANIFEST = "manifest.json"


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], optimiser: Any, keep: int) -> Path:
    """Write the checkpoint of ``step`` whole or not at all, then remove all but the newest ``keep``.

    ``tensors`` maps a part (``student``, ``graph``, ``ema``) to its state.
    """
    target = folder / f"step-{step:08d}"
    fresh = folder / f".{target.name}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for part, state in tensors.items():
        # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
        save_file(
            {name: value.detach().contiguous().clone() for name, value in state.items()}, fresh / f"{part}.safetensors"
        )
    torch.save({"optimiser": optimiser, "random": torch.get_rng_state()}, fresh / "optimiser.pt")
    manifest = {"step": step, "checksums": {path.name: _checksum(path) for path in sorted(fresh.iterdir())}}
    (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    _flush(fresh)
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def newest(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint, or None; damaged ones are skipped."""
    return next((path for path in sorted(folder.glob("step-*"), reverse=True) if _is_whole(path)), None)


def load(path: Path, parts: list[str], device: torch.device) -> tuple[int, dict[str, dict[str, Tensor]], Any]:
    """Read a checkpoint: step, the state of each part, the optimiser's state; restores torch's random state.

    Raises:
        TrainingError: a part is missing, because the run was of another kind when it was written.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for part in parts:
        file = path / f"{part}.safetensors"
        if not file.is_file():
            raise TrainingError(f"the checkpoint {path} has no {file.name}: it was written by another configuration.")
        states[part] = load_file(file, device=str(device))
    rest = torch.load(path / "optimiser.pt", map_location="cpu", weights_only=True)
    torch.set_rng_state(rest["random"])
    return int(json.loads((path / MANIFEST).read_text())["step"]), states, rest["optimiser"]


def _is_whole(path: Path) -> bool:
    try:
        checksums = json.loads((path / MANIFEST).read_text())["checksums"]
        return all(_checksum(path / name) == checksum for name, checksum in checksums.items())
    except (OSError, ValueError, KeyError):
        return False


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file.read())
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _flush(folder: Path) -> None:
    """Force the files to disk before the rename makes them count."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
