"""A student of ours as a folder of open_clip: there it gives the same rows, from pictures and captions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clipdistill.errors import ModelError
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.loading import load
from clipdistill.models.open_clip_layout import save_open_clip
from clipdistill.models.preprocessing import clip_processor
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer
from tiny_open_clip import our_rows

CAPTIONS = ["a red square", "两只狗在海滩上", "A large STAR, left of a circle " * 9]
#: Changes to the configuration of a student: each is another setting on open_clip's side.
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "new student": {},
    "OpenAI's": {"vision": {"hidden_act": "quick_gelu"}, "text": {"hidden_act": "quick_gelu", "eos_token_id": 2}},
    "pruned": {"vision": {"intermediate_size": 37, "num_attention_heads": 4}, "text": {"intermediate_size": 101}},
    "other norms": {"vision": {"layer_norm_eps": 1e-3}, "text": {"layer_norm_eps": 1e-2}},
}


def student(changes: dict[str, dict[str, Any]]) -> HuggingFaceEncoder:
    """A student of random weights, with captions cut shorter than its tower could read."""
    plain = build(StudentSpec(preset="scenes-student", image_size=48), train_tokenizer(CAPTIONS, 560, 32), seed=1)
    assert isinstance(plain, HuggingFaceEncoder)
    config = copy.deepcopy(plain.module.config)
    for tower, values in changes.items():
        for key, value in values.items():
            setattr(getattr(config, f"{tower}_config"), key, value)
    torch.manual_seed(0)
    module = type(plain.module)(config)  # type: ignore[operator]
    with torch.no_grad():  # else the captions of so small a model would all look alike
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(3.0)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    plain.tokenizer.model_max_length = 24
    return HuggingFaceEncoder("runs/it/student", module.eval(), plain.tokenizer, plain.processor)


@pytest.mark.parametrize("kind", KINDS)
def test_open_clip_gives_the_same_rows(kind: str, tmp_path: Path) -> None:
    encoder, folder = student(KINDS[kind]), tmp_path / "saved"
    save_open_clip(encoder, folder, {"name": "Ours", "teachers": {"T": "hf-hub:org/teacher"}})
    module, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    # Margins of 0, 4, 13 and 42 pixels: of 3, 7, 11, ... open_clip cuts the odd one on the other side.
    pictures = [Image.effect_mandelbrot((size, 48), (-2, -1.5, 1 + size / 90, 1.5), 60) for size in (48, 52, 61, 90)]
    pictures = [Image.merge("RGB", (one, one.rotate(90).resize(one.size), one.rotate(180))) for one in pictures]
    ours = our_rows(encoder, pictures, CAPTIONS)
    module.eval()
    with torch.no_grad():
        pixels = torch.stack([preprocess(picture) for picture in pictures])
        theirs = module.encode_image(pixels), module.encode_text(tokenize(CAPTIONS))
    for mine, its in zip(ours, theirs, strict=True):
        assert F.cosine_similarity(mine, its).min() > 0.99999
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=1e-4)
        assert F.cosine_similarity(mine[0], mine[1], dim=0) < 0.999
    assert tokenize(CAPTIONS).shape == (3, 24)
    assert module.logit_scale.exp().item() == pytest.approx(encoder.scale)


def test_it_opens_here_too_and_its_card_says_what_it_is(tmp_path: Path, pictures: list[Image.Image]) -> None:
    encoder = student({})
    save_open_clip(encoder, tmp_path / "saved", {"teachers": {"T": "hf-hub:org/teacher"}})
    ours, again = (our_rows(one, pictures[2:3], CAPTIONS) for one in (encoder, load(str(tmp_path / "saved"))))
    for mine, its in zip(ours, again, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-5)
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "library_name: open_clip" in card
    assert "- org/teacher" in card
    assert json.loads((tmp_path / "saved" / "clipdistill.json").read_text())["fingerprint"] == encoder.fingerprint


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vision": {"hidden_act": "quick_gelu"}}, "activations are quick_gelu and gelu"),
        ({"vision": {"hidden_act": "relu"}, "text": {"hidden_act": "relu"}}, "activations are relu and relu"),
    ],
)
def test_activations_that_open_clip_has_not(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=reason):
        save_open_clip(student(changes), tmp_path / "saved")
    assert not any(tmp_path.iterdir())


def test_other_families_and_other_preparation_are_refused(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"it is a siglip, expected a clip\. Use it with transformers"):
        save_open_clip(load(str(model_folders["siglip"])), tmp_path / "saved")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="prepares pictures in another way"):  # 36 pixels, of which 32 are cut
        save_open_clip(load(str(model_folders["clip"])), tmp_path / "saved")  # type: ignore[arg-type]
    plain = student({})
    left = copy.deepcopy(plain.tokenizer)
    left.padding_side = "left"
    with pytest.raises(ModelError, match="padded on the left"):
        save_open_clip(HuggingFaceEncoder("left", plain.module, left, clip_processor(48)), tmp_path / "saved")


def test_models_of_pictures_alone_are_refused(tmp_path: Path) -> None:
    vit = build(StudentSpec(preset="scenes-vit"), classes=["a", "b"])
    with pytest.raises(ModelError, match="it is a vit, expected a clip"):
        save_open_clip(vit, tmp_path / "saved")  # type: ignore[arg-type]
