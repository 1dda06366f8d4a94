"""Automatic weight inheritance within a run: masks learn beside the student, then are folded into it.

The Lagrangian's multipliers ascend while the masks descend, both by Adam at a rate of 0.02, towards a sparsity that
rises linearly over the warm-up (TinyCLIP, arXiv 2309.12314, section 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clipdistill.config import Plan, PruneConfig
from clipdistill.errors import ConfigError
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.inherit import Sizes
from clipdistill.models.prune import TOWERS, TowerMasks, attach, check_prunable, fold, folded_sizes

LEARNING_RATE = 0.02


class Pruning:
    """The masks of a run's student: learning until step ``at``, folded from then on.

    Raises :class:`ConfigError` for times that do not fit the run, and :class:`ModelError` for a student that cannot
    be pruned, or not so far.
    """

    def __init__(self, student: DualEncoder, config: PruneConfig, plan: Plan) -> None:
        self.encoder = encoder = check_prunable(student)
        self.config = config
        self.at, self.warmup = config.at.steps(plan), config.warmup.steps(plan)
        if not 0 < self.at < plan.steps:
            raise ConfigError(f"prune.at={config.at} is step {self.at} of {plan.steps}; expected one in between.")
        device = next(encoder.module.parameters()).device
        self.towers = {name: TowerMasks(_sizes(encoder, name), config.layers).to(device) for name in TOWERS}
        for masks in self.towers.values():
            folded_sizes(masks, config.sparsity)
        logits = [part for masks in self.towers.values() for part in masks.logits]
        multipliers = [masks.multipliers for masks in self.towers.values()]
        self._optimisers = [
            torch.optim.AdamW(logits, lr=LEARNING_RATE, weight_decay=0.0),
            torch.optim.AdamW(multipliers, lr=LEARNING_RATE, weight_decay=0.0, maximize=True),
        ]
        self._hooks = attach(encoder, self.towers)
        self.folded = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns: masks and multipliers."""
        return [p for optimiser in self._optimisers for group in optimiser.param_groups for p in group["params"]]

    def target(self, step: int) -> float:
        """Return the sparsity asked for at ``step`` (0-based)."""
        return self.config.sparsity * min(1.0, (step + 1) / max(1, self.warmup))

    def sparsity(self) -> dict[str, float]:
        """Return each tower's expected sparsity, for the log."""
        return {name: float(masks.expected_sparsity().detach()) for name, masks in self.towers.items()}

    def step(self, step: int) -> None:
        """Add the Lagrangian's gradients to those the loss gave the masks, and move masks and multipliers."""
        for masks in self.towers.values():
            masks.lagrangian(self.target(step)).backward()  # type: ignore[no-untyped-call]
        for optimiser in self._optimisers:
            optimiser.step()
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Drop what backward left on masks and multipliers."""
        for optimiser in self._optimisers:
            optimiser.zero_grad()

    def fold(self) -> HuggingFaceEncoder:
        """Freeze the masks and return the student without what they close."""
        for hook in self._hooks:
            hook.remove()
        self.folded = True
        return fold(self.encoder, self.towers, self.config.sparsity)

    def tensors(self) -> dict[str, Tensor]:
        """Return masks, multipliers and the phase, for a checkpoint."""
        return {**nn.ModuleDict(self.towers).state_dict(), "folded": torch.tensor(self.folded)}

    def optimisers(self) -> list[dict[str, Any]]:
        """Return the optimisers' states, for a checkpoint."""
        return [optimiser.state_dict() for optimiser in self._optimisers]

    def restore(self, tensors: Mapping[str, Tensor], optimisers: list[dict[str, Any]]) -> bool:
        """Take back what :meth:`tensors` and :meth:`optimisers` gave; returns whether the masks were folded then."""
        states = dict(tensors)
        folded = bool(states.pop("folded"))
        nn.ModuleDict(self.towers).load_state_dict(states)
        for optimiser, state in zip(self._optimisers, optimisers, strict=True):
            optimiser.load_state_dict(state)
        return folded


def _sizes(encoder: HuggingFaceEncoder, tower: str) -> Sizes:
    return Sizes.of(getattr(encoder.module.config, f"{tower}_config"))
