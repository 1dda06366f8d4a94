"""Optimisers: AdamW, and Muon on the matrices inside a tower with AdamW on the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clipdistill.config import TrainConfig

#: A matrix inside a layer of a tower, as opposed to embeddings, projections and adapters.
_LAYER = re.compile(r"(^|\.)(layers?|blocks?|resblocks|stages)\.\d+\.")


class Optimiser:
    """One or two torch optimisers that step together under one schedule.

    Weight decay is applied to matrices only: never to norms, biases or logit scales. With ``muon``, the matrices
    inside the layers and the kernels of convolutions that mix channels (a ViT's patches among them), flattened to
    ``[out, in h w]``, are orthogonalised (``torch.optim.Muon``); embeddings, projections, adapters, depthwise kernels
    and vectors stay with AdamW.
    """

    def __init__(self, modules: Iterable[nn.Module], config: TrainConfig) -> None:
        named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
        self.parameters = list({id(p): p for _, p in named}.values())
        matrices, kernels, rest = _sort(named, config.optimizer)
        decayed, plain = [p for p in rest if p.ndim >= 2], [p for p in rest if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        filled = [group for group in groups if group["params"]]
        # Fused: one pass over the memory instead of a dozen, a fifth of the time on a CPU.
        adamw = torch.optim.AdamW(filled, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [(adamw, config.lr)]
        # A flat view shares the kernel's memory: stepping the view steps the kernel.
        self.kernels = [(kernel, nn.Parameter(_flat(kernel.detach(), kernel))) for kernel in kernels]
        hidden = matrices + [flat for _, flat in self.kernels]
        if hidden:
            muon = torch.optim.Muon(
                hidden,
                lr=config.muon_lr,
                weight_decay=config.weight_decay,
                momentum=config.muon_momentum,
            )
            self.parts.append((muon, config.muon_lr))

    def step(self, factor: float) -> None:
        """Take one step at ``factor`` times the peak learning rates, and forget the gradients."""
        for kernel, flat in self.kernels:
            flat.grad = None if kernel.grad is None else _flat(kernel.grad, kernel)
        for optimiser, peak in self.parts:
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
            optimiser.step()
        for parameter in (*self.parameters, *(flat for _, flat in self.kernels)):
            parameter.grad = None

    def clip(self, limit: float | None) -> Tensor:
        """Scale all gradients so that their joint norm is at most ``limit``; return the norm before, ``[]``."""
        return nn.utils.clip_grad_norm_(self.parameters, limit if limit is not None else float("inf"))

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of every part, for a checkpoint."""
        return [optimiser.state_dict() for optimiser, _ in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Restore what :meth:`state_dict` returned for the same model and configuration."""
        for (optimiser, _), state in zip(self.parts, states, strict=True):
            optimiser.load_state_dict(state)


def _flat(values: Tensor, kernel: Tensor) -> Tensor:
    """Flatten ``[out, in, h, w]`` in the order in which the kernel lies in memory; for a step all orders are equal."""
    return (values if kernel.is_contiguous() else values.permute(0, 2, 3, 1)).flatten(1)


def _sort(named: list[tuple[str, nn.Parameter]], optimizer: str) -> tuple[list[Any], list[Any], list[Any]]:
    """Split parameters into Muon's matrices, Muon's kernels, and AdamW's rest."""
    matrices: list[nn.Parameter] = []
    kernels: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    seen: set[int] = set()
    for name, parameter in named:
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        if optimizer == "muon" and parameter.ndim == 2 and _LAYER.search(name):
            matrices.append(parameter)
        elif optimizer == "muon" and parameter.ndim == 4 and parameter.shape[1] > 1:
            kernels.append(parameter)
        else:
            rest.append(parameter)
    return matrices, kernels, rest
