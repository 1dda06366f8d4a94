"""Learning rate schedules as one factor in [0, 1] per step."""

from __future__ import annotations

import math


def factor(step: int, steps: int, warmup: int, shape: str, decay: int) -> float:
    """The share of the peak learning rate at ``step`` (0-based) of ``steps``.

    Linear warm-up over ``warmup`` steps, then by ``shape``: ``cosine`` or ``linear`` from one to zero, or
    ``constant-linear``: constant, then linear to zero over the last ``decay`` steps.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if shape == "linear":
        return 1 - done
    return min(1.0, (steps - step) / max(1, decay))
