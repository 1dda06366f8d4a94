"""Optimisers and schedules: which parameter goes where, and what one step does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clipdistill.config import TrainConfig
from clipdistill.training.optimisers import Optimiser
from clipdistill.training.schedule import factor


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch_embedding = nn.Conv2d(3, 8, 4, bias=False)
        self.token_embedding = nn.Embedding(10, 8)
        self.layers = nn.ModuleList([nn.Linear(8, 8)])
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.projection = nn.Linear(8, 6, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"steps": 10, **changes})


def fill_gradients(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_weight_decay_spares_norms_biases_and_scales() -> None:
    tower = Tower()
    before = {name: p.detach().clone() for name, p in tower.named_parameters()}
    optimiser = Optimiser([tower], config(lr=0.1, weight_decay=0.5))
    for parameter in tower.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step(1.0)
    changed = {name for name, p in tower.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {
        "patch_embedding.weight",
        "token_embedding.weight",
        "depthwise.weight",
        "layers.0.weight",
        "projection.weight",
    }


def test_muon_takes_the_matrices_of_layers_and_kernels_that_mix_channels() -> None:
    tower = Tower()
    optimiser = Optimiser([tower], config(optimizer="muon"))
    (adamw, _), (muon, _) = optimiser.parts
    assert [tuple(p.shape) for p in muon.param_groups[0]["params"]] == [(8, 8), (8, 48)]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 7


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_muon_step_of_the_kernel_is_that_of_its_flat_matrix(memory: torch.memory_format) -> None:
    tower = Tower()
    tower.to(memory_format=memory)  # type: ignore[call-overload]
    flat = nn.Parameter(tower.patch_embedding.weight.detach().clone().flatten(1))
    optimiser = Optimiser([tower], config(optimizer="muon", muon_lr=0.1, weight_decay=0.0))
    before = flat.detach().clone()
    fill_gradients(tower)
    assert tower.patch_embedding.weight.grad is not None
    flat.grad = tower.patch_embedding.weight.grad.flatten(1).clone()
    optimiser.step(0.5)
    torch.optim.Muon([flat], lr=0.05, momentum=0.9, weight_decay=0.0).step()
    # What is summed first differs with the order, in bfloat16.
    assert torch.allclose(tower.patch_embedding.weight.flatten(1), flat, atol=1e-3)
    assert (flat - before).abs().max() > 1e-2
    # The step is orthogonal: all its singular values are near one, times the learning rate.
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_a_restored_optimiser_goes_on_equally() -> None:
    towers = [Tower(), Tower()]
    optimisers = [Optimiser([tower], config(optimizer="muon")) for tower in towers]
    for tower, optimiser in zip(towers, optimisers, strict=True):
        fill_gradients(tower)
        optimiser.step(1.0)
    fresh = Optimiser([towers[1]], config(optimizer="muon"))
    fresh.load_state_dict(optimisers[1].state_dict())
    for tower, optimiser in ((towers[0], optimisers[0]), (towers[1], fresh)):
        fill_gradients(tower)
        optimiser.step(1.0)
    for a, b in zip(towers[0].parameters(), towers[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_clipping_scales_the_joint_norm() -> None:
    tower = Tower()
    optimiser = Optimiser([tower], config())
    fill_gradients(tower)
    norm = optimiser.clip(1.0)
    assert float(norm) > 1
    gradients = torch.cat([p.grad.flatten() for p in tower.parameters() if p.grad is not None])
    assert float(gradients.norm()) == pytest.approx(1.0, rel=1e-4)
    assert float(optimiser.clip(None)) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant-linear"])
def test_schedules_warm_up_and_end_near_zero(shape: str) -> None:
    values = [factor(step, 100, 10, shape, 40) for step in range(100)]
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(values) == 1.0
    assert 0 < values[-1] < 0.03
    assert values[10:] == sorted(values[10:], reverse=True)


def test_schedules_at_half_time() -> None:
    assert factor(50, 100, 0, "cosine", 0) == pytest.approx(0.5)
    assert factor(50, 100, 0, "linear", 0) == pytest.approx(0.5)
    assert factor(50, 100, 0, "constant-linear", 40) == 1.0
    assert factor(80, 100, 0, "constant-linear", 40) == pytest.approx(0.5)
