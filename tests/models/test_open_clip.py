"""Models of open_clip: its own rows to the bit, from its own layouts, by every way that names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from clipdistill.data.views import Transform
from clipdistill.errors import ModelError
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.loading import load, look_up, tokenizer_of
from clipdistill.models.masking import masked_images
from clipdistill.models.open_clip import OpenClipEncoder, _transform
from tiny_open_clip import CONFIGS, check_same, make


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path]) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("open_clip")
    return {kind: make(root / kind, kind, model_folders) for kind in CONFIGS}


@pytest.mark.parametrize("kind", CONFIGS)
def test_pictures_and_captions_give_its_rows_to_the_bit(
    kind: str, folders: dict[str, Path], pictures: list[Image.Image], captions: list[str]
) -> None:
    encoder = load(str(folders[kind]))
    assert isinstance(encoder, OpenClipEncoder)
    assert not encoder.module.training
    assert {parameter.dtype for parameter in encoder.module.parameters()} == {torch.float32}
    check_same(encoder, f"local-dir:{folders[kind]}", pictures, captions)


def test_loading_leaves_the_random_state_alone(folders: dict[str, Path]) -> None:
    before = torch.get_rng_state()
    load(str(folders["clip"]))
    assert torch.equal(before, torch.get_rng_state())


def test_pickled_weights_by_every_name_of_a_folder(
    tmp_path: Path, folders: dict[str, Path], model_folders: dict[str, Path]
) -> None:
    folder = make(tmp_path / "model", "clip", model_folders, "open_clip_pytorch_model.bin")
    expected = load(str(folders["clip"])).module.state_dict()
    for uri in (f"{folder}", f"file:{folder}", f"local-dir:{folder}"):
        look_up(uri)
        found = load(uri).module.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_a_folder_of_both_libraries_is_that_of_transformers_unless_named(
    tmp_path: Path, folders: dict[str, Path], model_folders: dict[str, Path]
) -> None:
    both = tmp_path / "both"
    shutil.copytree(model_folders["clip"], both)
    shutil.copytree(folders["clip"], both, dirs_exist_ok=True)
    assert isinstance(load(str(both)), HuggingFaceEncoder)
    assert isinstance(load(f"local-dir:{both}"), OpenClipEncoder)


@pytest.mark.parametrize("kind", ["clip", "siglip", "mobileclip", "bert"])
def test_saved_it_is_a_folder_of_open_clip_with_the_same_rows(
    kind: str, tmp_path: Path, folders: dict[str, Path], pictures: list[Image.Image], captions: list[str]
) -> None:
    encoder = load(str(folders[kind]))
    encoder.save(tmp_path / "run" / "student", {"name": "Saved"})
    check_same(encoder, f"local-dir:{tmp_path / 'run' / 'student'}", pictures, captions)
    assert load(str(tmp_path / "run")).fingerprint == encoder.fingerprint
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "library_name: open_clip" in card
    assert 'open_clip.get_tokenizer("local-dir:.")' in card


def test_what_training_and_losses_need(folders: dict[str, Path]) -> None:
    clip, siglip = load(str(folders["clip"])), load(str(folders["siglip"]))
    assert clip.scale == pytest.approx(1 / 0.07)
    assert clip.bias is None
    assert siglip.bias is not None
    assert siglip.bias.item() == -10
    assert {name.split(".")[0] for name, _ in clip.module.named_parameters()} == {"visual", "text", "logit_scale"}
    with pytest.raises(ModelError, match="no classifier head"):
        clip.images_and_logits({})


def test_the_fingerprint_follows_weights_and_settings(folders: dict[str, Path]) -> None:
    encoder = load(str(folders["clip"]))
    before = encoder.fingerprint
    assert before != load(str(folders["quickgelu"])).fingerprint
    with torch.no_grad():
        next(encoder.module.parameters()).add_(1.0)
    assert encoder.fingerprint != before


def test_students_take_over_its_vocabulary(folders: dict[str, Path], captions: list[str]) -> None:
    encoder = load(str(folders["clip"]))
    for caption, row in zip(captions, encoder.tokenize(captions)["input_ids"], strict=True):
        ids = encoder.tokenizer(caption)["input_ids"][:20]
        assert row[: len(ids)].tolist()[:-1] == ids[:-1]
    assert tokenizer_of(str(folders["clip"])).get_vocab() == encoder.tokenizer.get_vocab()
    assert tokenizer_of(str(folders["siglip"])).get_vocab() == load(str(folders["siglip"])).tokenizer.get_vocab()


@pytest.mark.parametrize(("kind", "tokens"), [("clip", 17), ("siglip", 101)])
def test_a_transformer_drops_hidden_patches(kind: str, tokens: int, folders: dict[str, Path]) -> None:
    encoder, seen = load(str(folders[kind])), []
    side = encoder.transform.size[0] if encoder.transform else 0
    pixels = {"pixel_values": torch.randn(2, 3, side, side)}
    assert encoder.patch_tokens is not None
    tower: Any = encoder.module.visual
    blocks = tower.transformer if kind == "clip" else tower.trunk.blocks
    blocks.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
    with torch.no_grad():
        masked_images(encoder, pixels, 0.75)
        encoder.images(pixels)
    assert seen == [1 + (tokens - 1) // 4, tokens]
    assert load(str(folders["mobileclip"])).patch_tokens is None
    assert load(str(folders["resnet"])).patch_tokens is None


PREPARING = [
    {"size": 32, "resize_mode": "shortest", "interpolation": "bicubic"},
    {"size": (32, 32), "resize_mode": "shortest", "interpolation": "bilinear"},
    {"size": (24, 40), "resize_mode": "shortest", "interpolation": "bilinear"},
    {"size": 33, "resize_mode": "longest", "interpolation": "bicubic", "fill_color": 0},
    {"size": (24, 40), "resize_mode": "longest", "interpolation": "bilinear", "fill_color": 200},
    {"size": (24, 40), "resize_mode": "squash", "interpolation": "bicubic"},
    {"size": 32, "resize_mode": "squash", "interpolation": "bilinear", "mean": (0.0,) * 3, "std": (1.0,) * 3},
]


@pytest.mark.parametrize("given", PREPARING, ids=lambda given: "-".join(map(str, given.values())))
def test_pictures_are_prepared_as_open_clip_does_to_the_bit(given: dict[str, Any]) -> None:
    module = open_clip.transform
    config = module.PreprocessCfg(**given)
    theirs = module.image_transform_v2(config, is_train=False)
    ours = Transform.from_dict(json.loads(json.dumps(_transform(module.asdict(config), "it").to_dict())))
    noise = np.random.default_rng(0)
    for _ in range(60):  # margins of every remainder, larger and smaller than what is asked for
        shape = (*noise.integers(5, 150, 2), 3)
        picture = Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8))
        np.testing.assert_array_equal(ours(picture)["pixel_values"], theirs(picture).numpy())
