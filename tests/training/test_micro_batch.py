"""Batches in parts: the losses and gradients of the whole, with what lies inside the towers kept of one part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipdistill.algebra.recipe import available
from clipdistill.config import RunConfig
from clipdistill.errors import ConfigError
from clipdistill.training.loop import distill
from clipdistill.training.preflight import first_batch
from clipdistill.training.run_folder import read_log
from clipdistill.training.setup import Setup, prepare
from tiny_runs import tiny_run


def one_step(config: RunConfig) -> tuple[Setup, dict[str, Tensor]]:
    """The losses of the first batch, and all gradients."""
    setup = prepare(config)
    torch.manual_seed(0)
    losses = setup.all_losses([first_batch(setup)], 0)
    losses.total.backward()
    modules = {"student": setup.student.module, "graph": setup.graph}
    found = {
        f"{m} {n}": p.grad for m, module in modules.items() for n, p in module.named_parameters() if p.grad is not None
    }
    return setup, {**losses.terms, "total": losses.total, **found}


@pytest.mark.parametrize("name", sorted(available()))
def test_parts_change_nothing(name: str, tmp_path: Path, recipe_run: Any) -> None:
    expected = one_step(recipe_run(name, tmp_path / "whole", {}))[1]
    found = one_step(recipe_run(name, tmp_path / "parts", {"micro_batch": 5}))[1]  # of 16: the last part has one
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=2e-4, atol=2e-6, msg=f"{name}, {key}")


def test_what_is_drawn_at_random_is_drawn_again_for_the_gradient(tmp_path: Path, recipe_run: Any) -> None:
    """Hidden patches: the gradient is that of the loss that was told, so a small step down lowers it so much."""
    config = recipe_run("clip-kd-mfd", tmp_path / "run", {"micro_batch": 5})
    setup, found = one_step(config)
    weights = [p for p in setup.student.module.parameters() if p.grad is not None]
    slope = sum(float(p.grad.square().sum()) for p in weights if p.grad is not None)
    with torch.no_grad():
        for p in weights:
            assert p.grad is not None
            p -= 1e-4 / slope * p.grad
    torch.manual_seed(0)
    after = setup.all_losses([first_batch(setup)], 0)
    assert float((found["total"] - after.total).detach()) == pytest.approx(1e-4, rel=0.1)


def test_no_more_than_a_part_is_held(tmp_path: Path, recipe_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the towers save for the backward pass at any moment, in numbers."""
    most = {}
    for size in (None, 4):
        setup = prepare(recipe_run("clip-kd", tmp_path / f"{size}", {"micro_batch": size}))
        batch, held, peak = first_batch(setup), [0], [0]

        def save(tensor: Tensor, held: list[int] = held, peak: list[int] = peak) -> Any:
            held[0] += tensor.numel()
            peak[0] = max(peak[0], held[0])
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            setup.all_losses([batch], 0)
        most[size] = peak[0]
    assert most[4] < most[None] / 4


def test_a_run_in_parts_goes_as_one_in_wholes(tmp_path: Path, recipe_run: Any) -> None:
    losses = []
    for size in (None, 3):
        result = distill(recipe_run("clip-kd", tmp_path / f"{size}", {"micro_batch": size, "steps": 6}))
        losses.append([entry["loss"] for entry in read_log(result.folder / "log.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_batch_normalisation_is_refused(tmp_path: Path) -> None:
    student = {"preset": "scenes-cnn", "vocab_size": 520}
    with pytest.raises(ConfigError, match=r"train.micro_batch=4: the student normalises over the batch in \d+ layers"):
        prepare(tiny_run(tmp_path / "run", student=student, train={"micro_batch": 4}))
    frozen = prepare(tiny_run(tmp_path / "run", student={**student, "freeze": "image"}, train={"micro_batch": 4}))
    assert torch.isfinite(frozen.all_losses([first_batch(frozen)], 0).total)
