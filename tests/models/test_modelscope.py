"""ModelScope's folders give the rows of the models they hold; names are found in its cache; the rest is explained."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from torch import Tensor

from clipdistill.errors import ModelError
from clipdistill.models import hub
from clipdistill.models.chinese_clip_layout import to_original
from clipdistill.models.loading import load

TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def module(model_folders: dict[str, Path]) -> Any:
    """A random ChineseCLIPModel whose image tower has one head of 64, as the code of TEAM and RLEG cuts it."""
    words = len((model_folders["chinese_clip"] / "vocab.txt").read_text(encoding="utf-8").splitlines())
    vision = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = TEXT | {"vocab_size": words, "pad_token_id": 0}
    vision |= {"image_size": 32, "patch_size": 16}
    torch.manual_seed(5)
    module = hf.ChineseCLIPModel(hf.ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.eval()


@pytest.fixture
def vocabulary(model_folders: dict[str, Path]) -> str:
    return (model_folders["chinese_clip"] / "vocab.txt").read_text(encoding="utf-8")


@pytest.fixture
def clip_folder(module: Any, vocabulary: str, tmp_path: Path) -> Path:
    """The files of damo/multi-modal_clip-vit-*_zh."""
    folder = tmp_path / "multi-modal_clip-vit-tiny_zh"
    vision = {"embed_dim": 24, "image_resolution": 32, "vision_layers": 2, "vision_width": 64, "vision_patch_size": 16}
    text = {
        "vocab_size": len(vocabulary.splitlines()),
        "text_hidden_act": "gelu",
        **{f"text_{key}": value for key, value in TEXT.items()},
        **{"text_max_position_embeddings": 512, "text_type_vocab_size": 2, "text_initializer_range": 0.02},
    }
    weights = {f"module.{name}": value for name, value in to_original(module.state_dict()).items()}
    task = "multi-modal-embedding"
    write(folder, task, {"vision_model_config.json": vision, "text_model_config.json": text}, {"state_dict": weights})
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    return folder


def write(folder: Path, task: str, configs: dict[str, Any], weights: Any) -> None:
    folder.mkdir(parents=True)
    configs = configs | {"configuration.json": {"framework": "pytorch", "task": task}}
    for name, value in configs.items():
        (folder / name).write_text(json.dumps(value))
    torch.save(weights, folder / "pytorch_model.bin")


def team_folder(folder: Path, module: Any, vocabulary: str) -> Path:
    """The files that TEAM's code opens, its cross-attention included."""
    weights: dict[str, Tensor] = {"text_model.bert.embeddings.position_ids": torch.arange(512)[None]}
    for name, value in to_original(module.state_dict()).items():
        if name.startswith("visual."):
            weights[name.replace("visual.", "image_model.vision_transformer.")] = value
        elif name.startswith("bert."):
            weights[f"text_model.{name}"] = value
    weights["text_model.projector.weight"] = module.text_projection.weight.detach()
    weights["text_model.projector_token_embeds.weight"] = torch.ones(2, 2)
    weights["cross_model.0.norm1.weight"] = weights["image_tensor_fc.weight"] = torch.ones(3)
    write(folder, "multi-modal-similarity", {"text_config.json": TEXT | {"layer_norm_eps": 1e-12}}, weights)
    (folder / "vocab.txt").write_text(vocabulary, encoding="utf-8")
    return folder


def rleg_folder(folder: Path, module: Any) -> Path:
    """The files that RLEG's code opens, less its text tower's vocabulary."""
    weights = {"text_encoder.ln_final.weight": torch.ones(4), "logit_scale": torch.tensor(4.6)}
    for name, value in to_original(module.state_dict()).items():
        if name.startswith("visual."):
            weights[f"image_encoder.{name}"] = value
    config = {"RLEG-tiny": [24, 32, 2, 64, 16, 77, 49408, 64, 1, 2]}
    write(folder, "generative-multi-modal-embedding", {"encoder_config.json": config}, weights)
    return folder


def expected_rows(module: Any, transform: Any, pictures: list[Image.Image], tokens: Any) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.stack([transform(picture)["pixel_values"] for picture in pictures]))
    with torch.no_grad():
        images = module.get_image_features(pixel_values=pixels).pooler_output
        return images, module.get_text_features(**tokens).pooler_output


def rows(encoder: Any, pictures: list[Image.Image], captions: list[str]) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.stack([encoder.transform(picture)["pixel_values"] for picture in pictures]))
    with torch.no_grad():
        return encoder.images({"pixel_values": pixels}), encoder.texts(encoder.tokenize(captions))


def test_a_folder_gives_the_rows_of_its_model(
    module: Any, clip_folder: Path, pictures: list[Image.Image], captions: list[str]
) -> None:
    encoder = load(str(clip_folder))
    processor = hf.ChineseCLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    transform = lambda picture: {"pixel_values": processor(picture, return_tensors="np")["pixel_values"][0]}  # noqa: E731
    tokens = hf.BertTokenizer(vocab=str(clip_folder / "vocab.txt"))(captions, padding=True, return_tensors="pt")
    expected = expected_rows(module, transform, pictures, tokens)
    for got, wanted in zip(rows(encoder, pictures, captions), expected, strict=True):
        assert wanted.std() > 0.05
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert encoder.scale == pytest.approx(math.exp(module.logit_scale.item()), rel=1e-6)


def test_a_configuration_of_other_sizes(clip_folder: Path) -> None:
    path = clip_folder / "vision_model_config.json"
    path.write_text(path.read_text().replace('"image_resolution": 32', '"image_resolution": 48'))
    with pytest.raises(ModelError, match="disagree: image_resolution is 48, in the weights 32"):
        load(str(clip_folder))
    path.write_text("{")
    with pytest.raises(ModelError, match=r"vision_model_config.json is not JSON"):
        load(str(clip_folder))


def test_team(module: Any, vocabulary: str, tmp_path: Path, pictures: list[Image.Image], captions: list[str]) -> None:
    encoder = load(str(team_folder(tmp_path / "team", module, vocabulary)))
    tokens = encoder.tokenize(captions)
    assert encoder.transform is not None
    expected = expected_rows(module, encoder.transform, pictures, tokens)
    for got, wanted in zip(rows(encoder, pictures, captions), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    assert encoder.tokenize(["a " * 99])["input_ids"].shape == (1, 30)
    assert not encoder.tokenize(["x"])["input_ids"].equal(encoder.tokenize(["X"])["input_ids"])
    assert encoder.scale == pytest.approx(1 / 0.07)


def test_rleg_teaches_pictures(module: Any, tmp_path: Path, pictures: list[Image.Image]) -> None:
    encoder: Any = load(str(rleg_folder(tmp_path / "rleg", module)))
    assert (encoder.sides, encoder.width) == ("I", 24)
    pixels = torch.from_numpy(np.stack([encoder.transform(picture)["pixel_values"] for picture in pictures]))
    small = pictures[0].resize((32, 32), Image.Resampling.BILINEAR)
    mean, deviation = np.array(encoder.transform.mean), np.array(encoder.transform.std)
    by_hand = ((np.asarray(small) / 255 - mean) / deviation).transpose(2, 0, 1)
    np.testing.assert_allclose(pixels[0], by_hand, atol=1e-5)
    with torch.no_grad():
        wanted = module.get_image_features(pixel_values=pixels).pooler_output
        torch.testing.assert_close(encoder.images({"pixel_values": pixels}), wanted, atol=1e-5, rtol=0)


def test_rleg_with_another_configuration(module: Any, tmp_path: Path) -> None:
    folder = rleg_folder(tmp_path / "rleg", module)
    (folder / "encoder_config.json").write_text('{"GEMM": {"width": 64}}')
    with pytest.raises(ModelError, match="does not describe RLEG"):
        load(str(folder))


def test_an_unknown_layout_lists_what_was_found_and_expected(tmp_path: Path) -> None:
    write(tmp_path / "other", "image-classification", {}, {"a": torch.ones(1)})
    with pytest.raises(ModelError, match=r"found: configuration.json, pytorch_model.bin.*vision_model_config.json"):
        load(str(tmp_path / "other"))


def test_what_is_missing_is_told(clip_folder: Path) -> None:
    (clip_folder / "vocab.txt").unlink()
    with pytest.raises(ModelError, match=r"Expected one of: Chinese-CLIP: .*vocab.txt"):
        load(str(clip_folder))


@pytest.mark.parametrize(
    "place",
    [
        *("damo/v1.0", "damo/v1___0", "hub/damo/v1___0", "models/damo/v1___0", "hub/models/damo/v1___0"),
        "models/damo--v1.0/snapshots/master",
    ],
)
def test_names_are_found_in_the_cache(
    clip_folder: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    (cache / place).parent.mkdir(parents=True)
    clip_folder.rename(cache / place)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(cache))
    assert hub.model_folder("ms:damo/v1.0") == cache / place
    assert load("ms:damo/v1.0").width == 24


def test_the_cache_is_in_the_home_folder(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache" / "modelscope" / "hub" / "damo").mkdir(parents=True)
    clip_folder.rename(tmp_path / ".cache" / "modelscope" / "hub" / "damo" / "name")
    assert hub.model_folder("ms:damo/name").name == "name"


def test_what_is_not_there_says_how_to_fetch_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fetch = r"modelscope download --model damo/name --local_dir FOLDER', copy FOLDER here"
    with pytest.raises(ModelError, match=rf"package modelscope, which could fetch it, is not installed.*{fetch}"):
        load("ms:damo/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=rf"HF_HUB_OFFLINE is set.*{fetch}"):
        load("ms:damo/name")
    with pytest.raises(ModelError, match="'ms:name' is no name on ModelScope"):
        load("ms:name")


def test_the_package_fetches_where_it_is_installed(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name == "damo/absent":
            raise OSError("404")
        return str(clip_folder)

    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(
        hub.importlib, "import_module", lambda name: SimpleNamespace(snapshot_download=snapshot_download)
    )
    assert hub.model_folder("ms:damo/name", weights=False) == clip_folder
    assert hub.model_folder("ms:damo/name") == clip_folder
    assert "pytorch_model*.bin" not in asked[0][1]
    small = ["*.json", "*.txt", "*.model", "README.md", "LICENSE*"]
    assert asked[1] == ("damo/name", [*small, "*.safetensors", "pytorch_model*.bin"])
    with pytest.raises(ModelError, match=r"ModelScope did not give it \(OSError: 404\)"):
        hub.model_folder("ms:damo/absent")
