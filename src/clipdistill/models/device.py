"""Where models compute and in which precision."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from clipdistill.errors import ConfigError

#: What can be asked for; ``meta`` computes nothing.
_DEVICES = ("cpu", "cuda", "mps", "meta")


def choose_device(name: str) -> torch.device:
    """Read ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; raises ConfigError for a device that is not there."""
    if name == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    if name.partition(":")[0] not in _DEVICES:
        raise ConfigError(f"device={name} is unknown. Expected auto, cpu, cuda, cuda:1 (the second GPU) or mps.")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={name}: this machine or this torch cannot use it ({error}).") from error


def choose_precision(device: torch.device, precision: str) -> str:
    """Resolve ``auto``: bfloat16 where the device has it and it is faster, measured on a CPU by a small product."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if device.type == "cpu" and _bfloat16_pays() else "float32"


def make_autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The context that model code runs in."""
    if precision == "float32":
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype=torch.bfloat16)
    return context


def _bfloat16_pays() -> bool:
    """Whether a matrix product in bfloat16 takes less than two thirds of the time it takes in float32."""

    def fastest(dtype: torch.dtype) -> float:
        rows, weight = torch.ones(512, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
        return min(_seconds(rows, weight) for _ in range(10))

    return fastest(torch.bfloat16) < fastest(torch.float32) * 2 / 3


def _seconds(rows: Tensor, weight: Tensor) -> float:
    start = time.perf_counter()
    for _ in range(4):
        F.linear(rows, weight)
    return time.perf_counter() - start
