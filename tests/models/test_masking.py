"""Masked pictures: what is hidden has no influence, what is shown has, in every kind of tower."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from clipdistill.models import masking
from clipdistill.models.masking import masked_images
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer


@pytest.fixture(scope="module")
def student() -> object:
    spec = StudentSpec(preset="scenes-student", width=16, text_width=16)
    return build(spec, train_tokenizer(["a red circle"], 520, 32), 16, 0)


def drawing(patches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "_draw", lambda count, total, ratio: torch.tensor([patches] * count))


def test_a_vision_transformer_sees_only_the_patches_kept(student: object, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.randn(2, 3, 48, 48)
    drawing([0, 5, 6], monkeypatch)
    shown = masked_images(student, {"pixel_values": pixels}, 0.8)  # type: ignore[arg-type]
    hidden = pixels.clone()
    hidden[:, :, 36:, 36:] += 1  # patch 15 of the 4 x 4 grid of 12 pixels
    assert torch.equal(masked_images(student, {"pixel_values": hidden}, 0.8), shown)  # type: ignore[arg-type]
    hidden[:, :, :12, :12] += 1  # patch 0
    assert not torch.allclose(masked_images(student, {"pixel_values": hidden}, 0.8), shown)  # type: ignore[arg-type]


def test_keeping_every_patch_is_the_whole_picture(student: object) -> None:
    pixels = {"pixel_values": torch.randn(2, 3, 48, 48)}
    whole = student.images(pixels)  # type: ignore[attr-defined]
    assert torch.allclose(masked_images(student, pixels, 1e-9), whole, atol=1e-6)  # type: ignore[arg-type]
    assert not torch.allclose(masked_images(student, pixels, 0.75), whole, atol=1e-3)  # type: ignore[arg-type]
    assert torch.equal(student.images(pixels), whole)  # type: ignore[attr-defined]


def test_pictures_that_are_not_square_lose_patches_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=(32, 64),
        patch_size=8,
    )
    tower = ViTModel(config, add_pooling_layer=False).eval()
    counts: list[int] = []
    monkeypatch.setattr(masking, "_draw", lambda count, total, ratio: counts.append(total) or torch.arange(4)[None])

    class Tower:
        patch_tokens = tower.embeddings

        def images(self, pixels: dict[str, Tensor]) -> Tensor:
            return tower(**pixels).last_hidden_state

    rows = masked_images(Tower(), {"pixel_values": torch.randn(1, 3, 32, 64)}, 0.9)  # type: ignore[arg-type]
    assert (counts, rows.shape[1]) == ([4 * 8], 1 + 4)


class Convolutional:
    """The least of a tower without patches."""

    patch_tokens = None

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def images(self, pixels: dict[str, Tensor]) -> Tensor:
        self.seen = pixels
        return nn.functional.adaptive_avg_pool2d(pixels["pixel_values"], 1).flatten(1)


def test_any_other_tower_sees_the_mean_colour_there() -> None:
    tower = Convolutional()
    masked_images(tower, {"pixel_values": torch.ones(3, 3, 64, 50)}, 0.75)  # type: ignore[arg-type]
    seen = tower.seen["pixel_values"]
    assert seen.shape == (3, 3, 64, 50)
    squares = seen[:, 0, ::16, ::16].flatten(1)
    assert squares.sum(dim=1).tolist() == [4.0, 4.0, 4.0]


def test_patches_in_a_mask_are_taken_out_of_it() -> None:
    tower = Convolutional()
    mask = torch.zeros(2, 20, dtype=torch.int32)
    mask[:, :12] = 1
    pixels = {"pixel_values": torch.ones(2, 3, 4, 4), "pixel_attention_mask": mask}
    masked_images(tower, pixels, 0.75)  # type: ignore[arg-type]
    found = tower.seen["pixel_attention_mask"]
    assert ((found == 1) <= (mask == 1)).all()
    assert (found.sum(dim=1) >= 1).all()
    assert found.sum() < mask.sum()
