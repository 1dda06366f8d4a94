"""Checkpoints: a folder per step, written beside and renamed, its manifest with checksums last.

::

    checkpoints/step-00000200/
        student.safetensors  graph.safetensors  [ema.safetensors]  [pruning.safetensors]  optimiser.pt
        manifest.json        step, random state, checksums of the other files
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipdistill.errors import TrainingError
from clipdistill.files import checksum, flush
from clipdistill.progress import console

MANIFEST = "manifest.json"


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    optimiser: Any,
    random: list[Tensor],
    keep: int,
) -> Path:
    """Write the checkpoint of ``step`` whole or not at all, then remove all but the newest ``keep``.

    ``tensors`` maps a part (``student``, ``graph``, ``ema``, ``pruning``) to its state; ``random`` is torch's random
    state in each process of the run.
    """
    target = folder / f"step-{step:08d}"
    fresh = folder / f".{target.name}.tmp"
    for half in folder.glob(".step-*.tmp"):  # a process that was killed was writing it
        shutil.rmtree(half)
    try:
        fresh.mkdir(parents=True)
        _fill(fresh, step, tensors, optimiser, random)
    except Exception as error:  # a full disk shows itself in each library's own class
        shutil.rmtree(fresh, ignore_errors=True)
        raise TrainingError(
            f"the checkpoint of step {step} could not be written to {folder}: {error}. Free some space, then go on "
            "with the same command and --resume."
        ) from error
    shutil.rmtree(target, ignore_errors=True)
    fresh.replace(target)
    for old in [path for path in sorted(folder.glob("step-*")) if path != target][: -keep + 1 or None]:
        shutil.rmtree(old)
    return target


def _fill(
    fresh: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], optimiser: Any, random: list[Tensor]
) -> None:
    for part, state in tensors.items():
        # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
        clones = {name: value.detach().contiguous().clone() for name, value in state.items()}
        save_file(clones, fresh / f"{part}.safetensors")
    torch.save({"optimiser": optimiser, "random": random}, fresh / "optimiser.pt")
    manifest = {"step": step, "checksums": {path.name: checksum(path) for path in sorted(fresh.iterdir())}}
    (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    flush(fresh)


def newest(folder: Path) -> Path | None:
    """Return the newest undamaged checkpoint, or None if there is none at all; damaged newer ones are removed.

    Raises:
        TrainingError: there are checkpoints, and all of them are damaged.
    """
    found = sorted(folder.glob("step-*"), reverse=True)
    whole = next((path for path in found if _is_whole(path)), None)
    if found and whole is None:
        raise TrainingError(
            f"every checkpoint in {folder} is damaged ({', '.join(path.name for path in found)}). "
            "Remove the folder to start from the first step, or start anew in another out."
        )
    for damaged in found[: found.index(whole)] if whole else []:
        console.print(f"the checkpoint {damaged} is damaged and removed; going back to the one before", markup=False)
        shutil.rmtree(damaged)
    return whole


def load(
    path: Path, parts: list[str], device: torch.device
) -> tuple[int, dict[str, dict[str, Tensor]], Any, list[Tensor]]:
    """Read a checkpoint: step, the state of each part, the optimiser's state, and the random state of each process.

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
    return int(json.loads((path / MANIFEST).read_text())["step"]), states, rest["optimiser"], rest["random"]


def _is_whole(path: Path) -> bool:
    try:
        checksums = json.loads((path / MANIFEST).read_text())["checksums"]
        return all(checksum(path / name) == expected for name, expected in checksums.items())
    except (OSError, ValueError, KeyError):
        return False
