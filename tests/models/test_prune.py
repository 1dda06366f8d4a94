"""Learned masks: what they do while they learn, and that folding them changes no output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

from clipdistill.errors import ModelError
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.inherit import Sizes
from clipdistill.models.loading import load
from clipdistill.models.presets import StudentSpec
from clipdistill.models.prune import (
    TOWERS,
    TowerMasks,
    attach,
    check_prunable,
    draw,
    fold,
    folded_sizes,
    open_probability,
    settled,
    sparsity_of,
)
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer

BIG = Sizes(layers=3, hidden=32, heads=4, mlp=128)
CAPTIONS = ["a red circle", "a very large green square", "x"]


@pytest.fixture
def encoder() -> HuggingFaceEncoder:
    sizes = {"width": 32, "heads": 4, "layers": 3, "text_width": 32, "text_heads": 4, "text_layers": 3}
    spec = StudentSpec(preset="scenes-student", embed_dim=24, **sizes)
    made = build(spec, train_tokenizer(CAPTIONS, 520, 32), seed=3)
    with torch.no_grad():  # at the usual initial scale, an untrained tower hardly depends on its layers
        for parameter in made.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    return made


def outputs(encoder: HuggingFaceEncoder) -> list[torch.Tensor]:
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return [encoder.images({"pixel_values": pixels}), encoder.texts(encoder.tokenize(CAPTIONS))]


def masks_that_keep(hidden: int, heads: int, mlp: int, layers: int | None = None, seed: int = 0) -> TowerMasks:
    """Masks of 0 and 1 that keep so many of each, in each layer other ones."""
    masks, order = TowerMasks(BIG, layers is not None), torch.Generator().manual_seed(seed)
    for part, count in ((masks.hidden, hidden), (masks.heads, heads), (masks.mlp, mlp), (masks.layers, layers)):
        if part is not None and count is not None:
            ranks = torch.rand(part.shape, generator=order).argsort(-1).argsort(-1)
            part.data.copy_(torch.where(ranks < count, 20.0, -20.0))
    return masks


def reached(masks: TowerMasks, small: Sizes) -> float:
    return sparsity_of(small, masks.sizes)


def test_open_masks_change_nothing(encoder: HuggingFaceEncoder) -> None:
    before = outputs(encoder)
    handles = attach(encoder, {name: TowerMasks(BIG, True) for name in TOWERS})
    for ours, plain in zip(outputs(encoder), before, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(ours, plain) for ours, plain in zip(outputs(encoder), before, strict=True))


@pytest.mark.parametrize("layers", [None, 2])
def test_folding_masks_of_zero_and_one_changes_no_output(
    encoder: HuggingFaceEncoder, layers: int | None, tmp_path: Path
) -> None:
    small = Sizes(layers=layers or 3, hidden=16, heads=2, mlp=50)
    towers = {name: masks_that_keep(16, 2, 50, layers, seed) for seed, name in enumerate(TOWERS)}
    attach(encoder, towers)
    masked = outputs(encoder)
    folded = fold(encoder, towers, sparsity_of(small, BIG))
    assert {Sizes.of(getattr(folded.module.config, f"{name}_config")) for name in TOWERS} == {small}  # type: ignore[union-attr]
    for ours, theirs in zip(outputs(folded), masked, strict=True):
        assert theirs.std() > 1e-2
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    folded.save(tmp_path / "student")
    opened = CLIPModel.from_pretrained(tmp_path / "student").eval()
    tokens = folded.tokenize(CAPTIONS)
    with torch.no_grad():
        rows = opened.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(rows, outputs(folded)[1], atol=1e-5, rtol=1e-5)


def test_values_between_zero_and_one_are_folded_into_the_weights(encoder: HuggingFaceEncoder) -> None:
    towers = {name: TowerMasks(BIG, True) for name in TOWERS}
    for masks in towers.values():
        for part in masks.logits:
            part.data.copy_(torch.rand(part.shape, generator=torch.Generator().manual_seed(2)) * 3 - 1)
    attach(encoder, towers)
    masked = outputs(encoder)
    folded = fold(encoder, towers, 0.0)  # leaves nothing out
    for ours, theirs in zip(outputs(folded), masked, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("with_layers", [False, True])
@pytest.mark.parametrize("asked", [0.1, 0.25, 0.5, 0.75, 0.9])
def test_the_asked_sparsity_is_met_within_two_points(asked: float, with_layers: bool) -> None:
    for seed in range(5):
        masks = TowerMasks(Sizes(6, 96, 6, 384), with_layers)
        noise = torch.Generator().manual_seed(seed)
        for part in masks.logits:
            part.data.copy_(torch.randn(part.shape, generator=noise) * 2 + torch.randn(1, generator=noise))
        small = folded_sizes(masks, asked)
        assert abs(reached(masks, small) - asked) <= 0.02
        assert small.hidden == small.heads * 16
        assert 1 <= small.mlp <= 384


def test_a_sparsity_that_one_head_cannot_reach_is_refused() -> None:
    with pytest.raises(ModelError, match=r"cannot be pruned to a sparsity of 0\.8.*prune\.sparsity"):
        folded_sizes(TowerMasks(Sizes(2, 32, 1, 64)), 0.8)


def test_masks_keep_what_has_the_largest_logits(encoder: HuggingFaceEncoder) -> None:
    towers = {name: masks_that_keep(16, 2, 50) for name in TOWERS}
    folded = fold(encoder, towers, sparsity_of(Sizes(3, 16, 2, 50), BIG)).module.state_dict()
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    rows = (towers["vision"].mlp[1] > 0).nonzero().flatten()
    channels = (towers["vision"].hidden > 0).nonzero().flatten()
    assert torch.equal(folded[name], encoder.module.state_dict()[name][rows][:, channels])


def test_draws_follow_the_hard_concrete_distribution() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([-1.0, 0.0, 2.0]).expand(20000, 3)
    drawn = draw(logits)
    assert drawn.min() == 0
    assert drawn.max() == 1
    torch.testing.assert_close((drawn > 0).float().mean(0), open_probability(logits[0]), atol=0.015, rtol=0)
    assert settled(torch.tensor([-9.0, 9.0])).tolist() == [0.0, 1.0]


def test_masks_learn_which_channels_do_not_matter(encoder: HuggingFaceEncoder) -> None:
    """MLP units that write nothing lose their masks first."""
    dead = [*range(0, 128, 2)]
    with torch.no_grad():
        for layer in encoder.module.vision_model.encoder.layers:  # type: ignore[union-attr]
            layer.mlp.fc2.weight[:, dead] = 0
    wanted = outputs(encoder)[0]
    masks = TowerMasks(BIG)
    attach(encoder, {"vision": masks})
    optimiser = torch.optim.Adam([masks.mlp], lr=0.1)
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    encoder.module.train()
    for _ in range(40):
        loss = F.mse_loss(encoder.images({"pixel_values": pixels}), wanted) + masks.lagrangian(0.6)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    alive = [*range(1, 128, 2)]
    assert masks.mlp[:, dead].mean() < masks.mlp[:, alive].mean() - 0.1


def test_other_families_are_refused_by_name(model_folders: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"kind siglip; prune works on clip"):
        check_prunable(load(str(model_folders["siglip"])))
