"""TinyCLIP's own weight inheritance and sparsity, executed by its authors' code: ours must agree."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from clipdistill.models.inherit import Sizes, cut_tensors, first_channels
from clipdistill.models.prune import TowerMasks, weights_in

GOLDEN = Path(__file__).parent.parent / "golden"


def test_manual_inheritance_is_tinyclips_bit_for_bit() -> None:
    golden = load_file(GOLDEN / "tinyclip-weightinherit-l4w16_to_l2w8.safetensors")
    teacher = {name.removeprefix("teacher."): golden[name] for name in golden if name.startswith("teacher.")}
    expected = {name.removeprefix("inherited."): golden[name] for name in golden if name.startswith("inherited.")}
    cut = first_channels(Sizes(layers=4, hidden=16, heads=4, mlp=64), Sizes(layers=2, hidden=8, heads=2, mlp=32))
    found = cut_tensors({name: value.shape for name, value in expected.items()}, teacher, cut)
    assert len(found) == 17
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def lagrangian_file() -> tuple[dict[str, torch.Tensor], TowerMasks]:
    golden = load_file(GOLDEN / "tinyclip-l0lagrangian-target75.safetensors")
    masks = TowerMasks(Sizes(layers=3, hidden=16, heads=4, mlp=64)).double()
    for name, part in (("hidden", masks.hidden), ("heads", masks.heads), ("intermediate", masks.mlp)):
        part.data.copy_(golden[f"loga.{name}"])
    return golden, masks


def test_expected_sparsity_is_tinyclips() -> None:
    golden, masks = lagrangian_file()
    sparsity = masks.expected_sparsity()
    whole = golden["prunable_model_size"]
    assert weights_in(masks.sizes) == whole
    torch.testing.assert_close(sparsity, golden["expected_sparsity"], rtol=1e-12, atol=0)
    torch.testing.assert_close((1 - sparsity) * whole, golden["num_parameters"], rtol=1e-12, atol=0)


def test_the_lagrangian_and_its_gradients_are_tinyclips() -> None:
    """Already sparser than asked at that step, so value and gradients are zero: the penalty has one side."""
    golden, masks = lagrangian_file()
    loss = masks.lagrangian(float(golden["target_sparsity_now"]))
    loss.backward()
    torch.testing.assert_close(loss, golden["loss"], rtol=1e-10, atol=1e-12)
    found = {"hidden": masks.hidden.grad, "heads": masks.heads.grad, "intermediate": masks.mlp.grad}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, golden[f"d_loga.{name}"], rtol=1e-9, atol=1e-12)
    expected = torch.stack([golden["d_lambda_1"], golden["d_lambda_2"]])
    torch.testing.assert_close(masks.multipliers.grad, expected, rtol=1e-9, atol=1e-12)


def test_a_tower_that_is_too_dense_is_penalised_as_published() -> None:
    """Above the file's sparsity: l1 gap + l2 gap^2, and d/d log a by the logistic density, by hand."""
    golden, masks = lagrangian_file()
    loss = masks.lagrangian(0.75)
    loss.backward()
    gap = 0.75 - golden["expected_sparsity"]
    torch.testing.assert_close(loss, 10 * gap + 10 * gap.square(), rtol=1e-10, atol=0)
    torch.testing.assert_close(masks.multipliers.grad, torch.stack([gap, gap.square()]), rtol=1e-9, atol=0)
    shift = torch.log(torch.tensor(0.1 / 1.1, dtype=torch.float64)) * 2 / 3
    opened = {name: 1 - torch.sigmoid(shift - golden[f"loga.{name}"]) for name in ("hidden", "heads", "intermediate")}
    left = (opened["heads"].sum() * 17 + opened["intermediate"].sum() * 2) / golden["prunable_model_size"]
    density = opened["hidden"] * (1 - opened["hidden"])
    torch.testing.assert_close(masks.hidden.grad, (10 + 20 * gap) * density * left, rtol=1e-9, atol=0)
