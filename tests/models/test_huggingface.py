"""Our embeddings are those of transformers' own processor and model, and a folder that is not whole is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from clipdistill.errors import ModelError
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.loading import load
from clipdistill.models.weights import attention_for

FAMILIES = ("clip", "chinese_clip", "siglip", "siglip2", "vision-text-dual-encoder")
SIGLIPS = ("siglip", "siglip2")
REFERENCE = {
    "clip": (hf.CLIPModel, hf.CLIPProcessor),
    "chinese_clip": (hf.ChineseCLIPModel, hf.ChineseCLIPProcessor),
    "siglip": (hf.SiglipModel, hf.SiglipProcessor),
    "siglip2": (hf.Siglip2Model, hf.Siglip2Processor),
    "vision-text-dual-encoder": (hf.VisionTextDualEncoderModel, hf.VisionTextDualEncoderProcessor),
}


def embed_images(encoder: HuggingFaceEncoder, pictures: list[Image.Image]) -> torch.Tensor:
    assert encoder.transform is not None
    views = [encoder.transform(picture) for picture in pictures]
    with torch.no_grad():
        return encoder.images({key: torch.from_numpy(np.stack([view[key] for view in views])) for key in views[0]})


def embed_texts(encoder: HuggingFaceEncoder, captions: list[str]) -> torch.Tensor:
    with torch.no_grad():
        return encoder.texts(encoder.tokenize(captions))


@pytest.fixture
def copy(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A CLIP folder to damage."""
    return Path(shutil.copytree(model_folders["clip"], tmp_path / "model"))


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_those_of_the_family_itself(
    family: str, model_folders: dict[str, Path], pictures: list[Image.Image], captions: list[str]
) -> None:
    folder = model_folders[family]
    model_class, processor_class = REFERENCE[family]
    model = model_class.from_pretrained(folder, attn_implementation="eager").eval()
    processor = processor_class.from_pretrained(folder)
    sizes = {"patch_size": 8, "max_num_patches": 16} if family == "siglip2" else {}
    padding = {"padding": "max_length", "max_length": 64} if family in SIGLIPS else {"padding": True}
    inputs = processor(text=captions, images=pictures, return_tensors="pt", **padding, **sizes)
    text_keys = ("input_ids", "attention_mask", "token_type_ids")
    with torch.no_grad():
        images = model.get_image_features(**{k: v for k, v in inputs.items() if k not in text_keys}).pooler_output
        texts = model.get_text_features(**{k: v for k, v in inputs.items() if k in text_keys}).pooler_output

    encoder = load(str(folder))

    torch.testing.assert_close(embed_images(encoder, pictures), images, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(embed_texts(encoder, captions), texts, atol=1e-6, rtol=1e-6)
    assert images.std(0).max() > 1e-2
    assert texts.std(0).max() > 1e-2
    assert encoder.width == images.shape[1] == texts.shape[1]
    assert encoder.sides == "IT"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_caption_does_not_depend_on_its_neighbours(
    family: str, model_folders: dict[str, Path], captions: list[str]
) -> None:
    encoder = load(str(model_folders[family]))
    alone = torch.cat([embed_texts(encoder, [caption]) for caption in captions])
    torch.testing.assert_close(embed_texts(encoder, captions), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", SIGLIPS)
def test_siglip_pads_to_its_positions_without_a_mask(family: str, model_folders: dict[str, Path]) -> None:
    encoder = load(str(model_folders[family]))
    tokens = encoder.tokenize(["a dog"])
    assert set(tokens) == {"input_ids"}
    assert tokens["input_ids"].shape == (1, 64)
    assert tokens["input_ids"].dtype == torch.int64
    shorter = {"input_ids": tokens["input_ids"][:, :8]}
    with torch.no_grad():
        assert (encoder.texts(tokens) - encoder.texts(shorter)).abs().max() > 1e-3


@pytest.mark.parametrize("family", [*SIGLIPS, "siglip2-square"])
def test_siglip_reads_lower_case(family: str, model_folders: dict[str, Path]) -> None:
    encoder = load(str(model_folders[family]))
    assert encoder.rules.lower_case == (family == "siglip2-square")
    upper, lower = encoder.tokenize(["A Red DOG"]), encoder.tokenize(["a red dog"])
    assert torch.equal(upper["input_ids"], lower["input_ids"])
    assert not torch.equal(lower["input_ids"], encoder.tokenize(["a red cat"])["input_ids"])


@pytest.mark.parametrize(
    ("family", "length"),
    [("clip", 77), ("chinese_clip", 52), ("siglip", 64), ("vision-text-dual-encoder", 40)],
)
def test_long_captions_are_cut_to_what_the_model_reads(
    family: str, length: int, model_folders: dict[str, Path]
) -> None:
    encoder = load(str(model_folders[family]))
    tokens = encoder.tokenize(["dog " * 600, "a"])
    assert all(value.shape == (2, length) for value in tokens.values())
    assert encoder.texts(tokens).isfinite().all()


@pytest.mark.parametrize("family", [*FAMILIES, "siglip2-square"])
def test_save_and_load_give_the_same_model(
    family: str,
    model_folders: dict[str, Path],
    pictures: list[Image.Image],
    captions: list[str],
    tmp_path: Path,
) -> None:
    first = load(str(model_folders[family]))
    images, texts = embed_images(first, pictures), embed_texts(first, captions)
    before = first.fingerprint
    first.save(tmp_path / "saved")
    second = load(f"file:{tmp_path / 'saved'}")
    assert before == first.fingerprint == second.fingerprint
    assert torch.equal(embed_images(second, pictures), images)
    assert torch.equal(embed_texts(second, captions), texts)
    assert "attn" not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")


def test_the_fingerprint_follows_weights_and_rules(copy: Path) -> None:
    encoder = load(str(copy))
    first = encoder.fingerprint
    encoder.module.visual_projection.weight.data[0, 0] += 1e-3  # type: ignore[union-attr, index, operator]
    assert encoder.fingerprint != first
    path = copy / "preprocessor_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"shortest_edge": 36', '"shortest_edge": 35'))
    assert load(str(copy)).fingerprint != first


@pytest.mark.parametrize(
    ("tower", "changes"),
    [
        ("text_config", {"hidden_act": "gelu"}),
        ("text_config", {"num_attention_heads": 4}),
        ("text_config", {"eos_token_id": 512}),
        ("vision_config", {"layer_norm_eps": 1e-3}),
    ],
)
def test_the_fingerprint_follows_settings_that_no_weight_shows(copy: Path, tower: str, changes: dict[str, Any]) -> None:
    first = load(str(copy))
    settings = json.loads((copy / "config.json").read_text(encoding="utf-8"))[tower]
    edit(copy / "config.json", **{tower: {**settings, "initializer_range": 0.5, "attention_dropout": 0.5, "note": "x"}})
    assert load(str(copy)).fingerprint == first.fingerprint, "nothing of that is computed with"
    edit(copy / "config.json", **{tower: {**settings, **changes}})
    assert load(str(copy)).fingerprint != first.fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_bias_and_gradients(family: str, model_folders: dict[str, Path], pictures: list[Image.Image]) -> None:
    encoder = load(str(model_folders[family]))
    assert not encoder.module.training
    assert encoder.log_scale is not None
    assert encoder.scale == pytest.approx(float(np.exp(encoder.log_scale.item())))
    assert (encoder.bias is not None) == (family in SIGLIPS)
    assert encoder.transform is not None
    encoder.module.train()
    pixels = {key: torch.from_numpy(value)[None] for key, value in encoder.transform(pictures[0]).items()}
    (encoder.images(pixels) * encoder.texts(encoder.tokenize(["a dog"]))).sum().backward()
    scale_only = {"logit_scale", "logit_bias"}
    without = {name for name, p in encoder.module.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert without <= scale_only


def test_pickled_weights_load_and_safetensors_come_first(copy: Path, pictures: list[Image.Image]) -> None:
    expected = embed_images(load(str(copy)), pictures)
    state = hf.CLIPModel.from_pretrained(copy).state_dict()
    torch.save({key: torch.zeros_like(value) for key, value in state.items()}, copy / "pytorch_model.bin")
    assert torch.equal(embed_images(load(str(copy)), pictures), expected)
    (copy / "model.safetensors").unlink()
    torch.save(state, copy / "pytorch_model.bin")
    assert torch.equal(embed_images(load(str(copy)), pictures), expected)


def test_half_precision_checkpoints_load_as_float32(copy: Path) -> None:
    hf.CLIPModel.from_pretrained(copy).half().save_pretrained(copy)
    assert {p.dtype for p in load(str(copy)).module.parameters()} == {torch.float32}


class Trap:
    """Pickled, it would write a file when unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_in_pickled_weights_does_not_run(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"logit_scale": Trap(tmp_path / "ran")}, copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(str(copy))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.safetensors", r"holds no weights \(found: .*config.json.*expected model.safetensors"),
        ("config.json", "no config.json"),
        ("tokenizer.json", "holds no tokenizer"),
        ("preprocessor_config.json", "does not say how pictures are prepared"),
    ],
)
def test_a_missing_file_is_named(copy: Path, file: str, message: str) -> None:
    (copy / file).unlink()
    with pytest.raises(ModelError, match=message):
        load(str(copy))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.safetensors", "the weights in .* cannot be loaded"),
        ("config.json", "is not a model's configuration"),
        ("tokenizer.json", "the tokenizer in .* cannot be loaded"),
        ("preprocessor_config.json", "the image processor in .* cannot be loaded"),
    ],
)
def test_a_truncated_file_is_named(copy: Path, file: str, message: str) -> None:
    path = copy / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelError, match=message):
        load(str(copy))


def test_a_tokenizer_that_needs_another_package_says_which(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("SiglipTokenizer requires the SentencePiece library")

    monkeypatch.setattr(hf.CLIPTokenizer, "from_pretrained", absent)
    with pytest.raises(ModelError, match="pip install sentencepiece"):
        load(str(copy))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_another_architecture_is_refused_with_the_known_ones(copy: Path) -> None:
    edit(copy / "config.json", model_type="siglip3")
    with pytest.raises(ModelError, match=r"'siglip3'.*Did you mean 'siglip'.*chinese_clip"):
        load(str(copy))


def test_weights_that_leave_something_random_are_refused(copy: Path) -> None:
    model = hf.CLIPModel.from_pretrained(copy)
    state = {key: value for key, value in model.state_dict().items() if key != "logit_scale"}
    model.save_pretrained(copy, state_dict=state)
    with pytest.raises(ModelError, match="1 tensors are missing, among them logit_scale"):
        load(str(copy))


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    edit(copy / "config.json", projection_dim=12)
    with pytest.raises(ModelError, match=r"the weights in .* cannot be loaded"):
        load(str(copy))


def test_a_tokenizer_larger_than_the_text_tower_is_refused(copy: Path, model_folders: dict[str, Path]) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["vocab_size"] = 100
    edit(copy / "config.json", **config)
    with pytest.raises(ModelError, match="the tokenizer has 514 entries, the text tower reads 100"):
        load(str(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_pad": True}, "do_pad"),
        ({"size": {"longest_edge": 40}, "do_center_crop": True}, "resizes by longest_edge"),
        ({"do_center_crop": False}, "different sizes"),
    ],
)
def test_a_processor_that_we_do_not_reproduce_is_refused(copy: Path, change: dict[str, Any], message: str) -> None:
    edit(copy / "preprocessor_config.json", **change)
    with pytest.raises(ModelError, match=message):
        load(str(copy))


def test_a_processor_that_computes_otherwise_is_caught(copy: Path) -> None:
    encoder = load(str(copy))

    class Brighter(type(encoder.processor)):  # type: ignore[misc]
        def rescale(self, image: Any, scale: float, **_: Any) -> Any:
            return super().rescale(image, scale) + 0.01

    with pytest.raises(ModelError, match=r"does not reproduce \(pixel_values differs by 0.03"):
        HuggingFaceEncoder("here", encoder.module, encoder.tokenizer, Brighter(**encoder.processor.to_dict()))


def test_attention_is_plain_for_few_tokens_on_a_cpu(copy: Path) -> None:
    few = hf.CLIPConfig(vision_config={"image_size": 80, "patch_size": 8})
    many = hf.CLIPConfig(vision_config={"image_size": 88, "patch_size": 8})
    assert attention_for(few, "cpu") == "eager"
    assert attention_for(few, "cuda") is None
    assert attention_for(many, "cpu") is None
    assert load(str(copy)).module.config._attn_implementation == "eager"  # type: ignore[union-attr]


def beside_a_vit(text: Any, folder: Path, tokenizer: Any) -> str:
    """A dual encoder of any text tower, with a tokenizer that sets no limit."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = hf.ViTConfig(**sizes, image_size=16, patch_size=8).to_dict()
    config = hf.VisionTextDualEncoderConfig(vision_config=vision, text_config=text.to_dict(), projection_dim=8)
    tokenizer.model_max_length = 10**9
    processor = hf.ViTImageProcessorPil(size={"height": 16, "width": 16})
    for part in (hf.VisionTextDualEncoderModel(config), tokenizer, processor):
        part.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", [hf.CamembertConfig, hf.MPNetConfig, hf.Data2VecTextConfig, hf.XLMRobertaConfig])
def test_long_captions_end_with_the_positions(kind: Any, model_folders: dict[str, Path], tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tokenizer = hf.AutoTokenizer.from_pretrained(model_folders["vision-text-dual-encoder"])
    text = kind(**sizes, vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=1, type_vocab_size=2)
    encoder = load(beside_a_vit(text, tmp_path / "m", tokenizer))
    tokens = encoder.tokenize(["a dog " * 100])
    assert tokens["input_ids"].shape == (1, 38)
    assert encoder.texts(tokens).isfinite().all()


def test_a_text_tower_without_a_row_is_refused(model_folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(model_folders["vision-text-dual-encoder"])
    text = hf.DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    with pytest.raises(ModelError, match="text tower, a DistilBertModel, gives no row for a caption"):
        load(beside_a_vit(text, tmp_path / "m", tokenizer))
