"""What computes: cores and memory, torch, a GPU, and a torchvision that may be broken."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from clipdistill.machine.finding import Finding

_GIB = 2**30
_TRAIN = "pip install 'clipdistill[train]'"


def look() -> list[Finding]:
    """Examine cores and memory, torch with its GPU, and torchvision."""
    torch, finding = _torch()
    findings = [_cores(), finding, gpu(torch, drivers())]
    return findings if torch is None else [*findings, torchvision(importlib.import_module)]


def _cores() -> Finding:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    return Finding("ok", "processor", f"{cores()} cores, {memory:.1f} GiB of memory, {platform.machine()}")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch() -> tuple[Any, Finding]:
    """The module, where it can be imported, and what is to be said of it."""
    if not _installed("torch"):
        return None, Finding("missing", "torch", "not installed; searching does without", f"to train: {_TRAIN}")
    try:
        torch = importlib.import_module("torch")
        from clipdistill.models.device import choose_precision

        quicker = choose_precision(torch.device("cpu"), "auto") == "bfloat16"
    except Exception as error:  # a library that is missing, a half-removed install: of any class
        return None, Finding("warning", "torch", f"installed, but it does not load: {_told(error)}", f"again: {_TRAIN}")
    threads, number = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    given = f" (OMP_NUM_THREADS={number})" if number else ""
    precision = "bfloat16 is faster than float32 here" if quicker else "float32, bfloat16 is no faster here"
    return torch, Finding(
        "ok", "torch", f"{torch.__version__}, {threads} of {cores()} cores{given}; on the CPU {precision}"
    )


def drivers() -> list[str]:
    """The GPUs that NVIDIA's driver knows, as ``name, memory, driver version``."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    ask = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):  # a driver that is not there, or does not answer
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def gpu(torch: Any, known: list[str]) -> Finding:
    """What GPU torch can use, given the module (None: there is none) and what the driver knows."""
    if torch is not None and torch.cuda.is_available():
        driver = f", driver {known[0].rpartition(', ')[2]}" if known else ""
        names = [_described(torch.cuda.get_device_properties(place)) for place in range(torch.cuda.device_count())]
        precision = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        return Finding("ok", "GPU", f"{'; '.join(names)}, CUDA {torch.version.cuda}{driver}, {precision}")
    if torch is not None and torch.backends.mps.is_available():
        return Finding("ok", "GPU", "Apple's, through mps")
    if known:
        found = f"{'; '.join(known)}: torch cannot use it"
        if torch is None:
            return Finding("warning", "GPU", found, "install torch with CUDA, see https://pytorch.org/get-started")
        why = "this torch is built without CUDA" if torch.version.cuda is None else "the driver is too old for it"
        return Finding("warning", "GPU", f"{found}, {why}", "see https://pytorch.org/get-started for the right build")
    return Finding("ok", "GPU", "none; everything runs on the CPU")


def _described(properties: Any) -> str:
    return f"{properties.name}, {properties.total_memory / _GIB:.1f} GiB"


def torchvision(load: Callable[[str], Any]) -> Finding:
    """Whether torchvision, which only open_clip and timm need, loads."""
    if not _installed("torchvision"):
        return Finding("ok", "torchvision", "not installed; only open_clip and timm need it")
    try:
        module = load("torchvision")
    except Exception as error:  # built for another torch: operators that are not there, of several classes
        return Finding(
            "warning",
            "torchvision",
            f"installed, but it does not load: {_told(error)}. Harmless: only open_clip and timm need it",
            "for these, install torch and torchvision from the same index",
        )
    return Finding("ok", "torchvision", str(module.__version__))


def _installed(name: str) -> bool:
    """Whether a package is there, be it broken."""
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
