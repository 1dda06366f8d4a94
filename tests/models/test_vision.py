"""Models of pictures alone: the library's own rows and logits, folders back and forth, classifiers from nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
import yaml
from PIL import Image

from clipdistill.data.views import Transform
from clipdistill.errors import ConfigError, ModelError
from clipdistill.models.loading import load
from clipdistill.models.masking import masked_images
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build, choose_tokenizer

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = TOWER | {"image_size": 32, "patch_size": 8}
SQUARE = {"height": 32, "width": 32}
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "tree frog"}, "label2id": {"cat": 0, "dog": 1, "tree frog": 2}}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
#: Normed tokens, and which of what the library returns is the embedding.
CLASS_TOKEN, POOLED = "last_hidden_state", "pooler_output"


def vit_processor() -> Any:
    return hf.ViTImageProcessorPil(size=SQUARE)


def dino_processor() -> Any:
    return hf.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=SQUARE)


def convnext_processor(edge: int = 32) -> Any:
    return hf.ConvNextImageProcessorPil(size={"shortest_edge": edge})


BACKBONES: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    "vit": (lambda: hf.ViTModel(hf.ViTConfig(**VIT)), vit_processor, CLASS_TOKEN),
    "deit": (lambda: hf.DeiTModel(hf.DeiTConfig(**VIT)), vit_processor, CLASS_TOKEN),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**VIT)), dino_processor, CLASS_TOKEN),
    "resnet": (lambda: hf.ResNetModel(hf.ResNetConfig(**RESNET)), convnext_processor, POOLED),
    "swin": (lambda: hf.SwinModel(hf.SwinConfig(**SWIN)), vit_processor, POOLED),
    "convnext": (lambda: hf.ConvNextModel(hf.ConvNextConfig(**CONVNEXT)), lambda: convnext_processor(400), POOLED),
    "clip-vision": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**VIT)), vit_processor, POOLED),
    "clip-projected": (
        lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**VIT, projection_dim=20)),
        vit_processor,
        "image_embeds",
    ),
}
CLASSIFIERS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "vit": (lambda: hf.ViTForImageClassification(hf.ViTConfig(**VIT, **NAMES)), vit_processor),
    "deit": (lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**VIT, **NAMES)), vit_processor),
    "dinov2": (lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**VIT, **NAMES)), dino_processor),
    "resnet": (lambda: hf.ResNetForImageClassification(hf.ResNetConfig(**RESNET, **NAMES)), convnext_processor),
    "swin": (lambda: hf.SwinForImageClassification(hf.SwinConfig(**SWIN, **NAMES)), vit_processor),
    "convnext": (
        lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(**CONVNEXT, **NAMES)),
        convnext_processor,
    ),
}


def write(folder: Path, module: Any, processor: Any) -> Any:
    """Save a model with weights large enough to tell pictures apart; returns it."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    module.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return module


def batch(encoder: Any, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    looks = [encoder.transform(picture) for picture in pictures]
    return {"pixel_values": torch.stack([torch.from_numpy(look["pixel_values"]) for look in looks])}


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    write(tmp_path / "vit", CLASSIFIERS["vit"][0](), vit_processor())
    return tmp_path / "vit"


@pytest.mark.parametrize("kind", BACKBONES)
@torch.no_grad()
def test_a_backbone_gives_the_librarys_own_rows(kind: str, pictures: list[Image.Image], tmp_path: Path) -> None:
    make, make_processor, wanted = BACKBONES[kind]
    model = write(tmp_path / kind, make(), make_processor())
    encoder = load(str(tmp_path / kind))
    processor = hf.AutoImageProcessor.from_pretrained(tmp_path / kind, backend="pil")
    output = model(**processor(images=pictures, return_tensors="pt"))[wanted]
    expected = output[:, 0] if wanted == CLASS_TOKEN else output.flatten(1)
    rows = encoder.images(batch(encoder, pictures))
    torch.testing.assert_close(rows, expected, atol=1e-4, rtol=1e-4)
    assert (rows[0] - rows[1]).abs().max() > 1e-3
    assert (encoder.sides, encoder.width, encoder.classes) == ("I", expected.shape[1], ())
    assert (encoder.log_scale, encoder.bias, encoder.tokenizer) == (None, None, None)
    assert encoder.scale == 1 / 0.07
    with pytest.raises(ModelError, match="has no classifier head"):
        encoder.images_and_logits(batch(encoder, pictures))


@pytest.mark.parametrize("kind", CLASSIFIERS)
@torch.no_grad()
def test_a_classifier_gives_rows_and_logits_in_one_pass(kind: str, pictures: list[Image.Image], tmp_path: Path) -> None:
    make, make_processor = CLASSIFIERS[kind]
    model = write(tmp_path / kind, make(), make_processor())
    encoder = load(str(tmp_path / kind))
    passes: list[int] = []
    encoder.module.base_model.register_forward_hook(lambda *_: passes.append(1))  # type: ignore[operator, union-attr]
    rows, logits = encoder.images_and_logits(batch(encoder, pictures))
    assert len(passes) == 1
    expected = model(**make_processor()(images=pictures, return_tensors="pt")).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(rows, encoder.images(batch(encoder, pictures)))
    assert encoder.classes == ("cat", "dog", "tree frog")


def test_both_outputs_of_a_classifier_learn(classifier: Path, pictures: list[Image.Image]) -> None:
    encoder = load(str(classifier))
    rows, logits = encoder.images_and_logits(batch(encoder, pictures))
    (rows.square().sum() + logits.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in encoder.module.parameters())


@pytest.mark.parametrize(("edge", "resize", "crop"), [(224, 256, (224, 224)), (384, (384, 384), None)])
def test_an_old_configuration_of_a_resnet_crops_small_pictures_only(
    edge: int, resize: Any, crop: Any, tmp_path: Path
) -> None:
    write(tmp_path, BACKBONES["resnet"][0](), convnext_processor())
    old = {"crop_pct": 0.875, "do_normalize": True, "do_resize": True, "resample": 3, "size": edge}
    old |= {"feature_extractor_type": "ConvNextFeatureExtractor"}
    old |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    transform = load(str(tmp_path)).transform
    assert transform is not None
    assert (transform.resize, transform.crop, transform.mean) == (resize, crop, (0.485, 0.456, 0.406))


def test_there_is_no_text_tower(classifier: Path) -> None:
    encoder = load(str(classifier))
    with pytest.raises(ModelError, match="has no text tower: it is a ViTForImageClassification"):
        encoder.tokenize(["a cat"])
    with pytest.raises(ModelError, match="has no text tower"):
        encoder.texts({})


def test_a_folder_without_the_unused_pooler_is_whole(tmp_path: Path) -> None:
    hf.ViTModel(hf.ViTConfig(**VIT), add_pooling_layer=False).save_pretrained(tmp_path)
    vit_processor().save_pretrained(tmp_path)
    encoder = load(str(tmp_path))
    assert not [name for name, _ in encoder.module.named_parameters() if "pooler" in name]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hf.ASTModel(hf.ASTConfig(**TOWER)), "'audio-spectrogram-transformer' is neither a known dual encoder"),
        (lambda: hf.ViTMAEModel(hf.ViTMAEConfig(**VIT)), "ViTMAEModel does not embed a picture of 32 x 32"),
    ],
)
def test_models_without_one_row_for_a_picture_are_refused(make: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path, make(), vit_processor())
    with pytest.raises(ModelError, match=message):
        load(str(tmp_path))


def test_a_head_that_is_not_in_the_weights_is_refused(classifier: Path) -> None:
    hf.ViTModel(hf.ViTConfig(**VIT), add_pooling_layer=False).save_pretrained(classifier / "other")
    (classifier / "other" / "model.safetensors").replace(classifier / "model.safetensors")
    with pytest.raises(ModelError, match=r"do not fill a ViTForImageClassification: .*classifier"):
        load(str(classifier))


@pytest.mark.parametrize(("kind", "dropped"), [("vit", 12), ("dinov2", 12), ("swin", 0)])
def test_patches_are_dropped_where_a_class_token_gathers_them(
    kind: str, dropped: int, pictures: list[Image.Image], tmp_path: Path
) -> None:
    make, make_processor, _ = BACKBONES[kind]
    write(tmp_path, make(), make_processor())
    encoder = load(str(tmp_path))
    seen: list[int] = []
    if encoder.patch_tokens is not None:
        first = next(
            module for name, module in encoder.module.named_modules() if name.endswith(("layer.0", "layers.0"))
        )
        first.register_forward_hook(lambda module, given, output: seen.append(given[0].shape[1]))
    with torch.no_grad():
        rows = masked_images(encoder, batch(encoder, pictures), 0.75)
    assert rows.shape == (len(pictures), encoder.width)
    assert seen == ([1 + 16 - dropped] if dropped else [])


def student(**changes: Any) -> Any:
    return build(StudentSpec(**{"preset": "scenes-vit", **changes}), classes=("red", "green", "dark blue"))


def test_a_preset_becomes_a_classifier_of_the_datas_labels(pictures: list[Image.Image]) -> None:
    encoder = build(StudentSpec(preset="vit-tiny-cifar"), classes=[str(n) for n in range(10)])
    config = encoder.module.config
    assert (config.image_size, config.patch_size, config.hidden_size) == (32, 4, 256)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_labels) == (6, 8, 10)
    assert sum(p.numel() for p in encoder.module.parameters()) == 4_771_082
    rows, logits = encoder.images_and_logits(batch(encoder, pictures))
    assert (rows.shape, logits.shape) == ((4, 256), (4, 10))
    small = student(width=64, layers=1, image_size=32, patch_size=8)
    assert (small.width, small.module.config.num_attention_heads, small.transform.size) == (64, 2, (32, 32))


def test_the_same_seed_gives_the_same_classifier_and_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    spec, classes = StudentSpec(preset="scenes-vit"), ["a", "b"]
    first = build(spec, seed=3, classes=classes)
    assert torch.equal(before, torch.get_rng_state())
    assert build(spec, seed=3, classes=classes).fingerprint == first.fingerprint
    assert build(spec, seed=4, classes=classes).fingerprint != first.fingerprint
    assert build(spec, seed=3, classes=["a", "c"]).fingerprint != first.fingerprint


def test_a_classifier_takes_only_the_colours_of_its_teacher() -> None:
    teacher = Transform(resize=(64, 64), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    spec = StudentSpec(preset="scenes-vit")
    assert choose_tokenizer(spec, object(), iter(())) is None
    encoder = build(spec, None, 512, 0, teacher, classes=["a", "b"])
    assert encoder.width == 48
    assert encoder.transform is not None
    assert (encoder.transform.mean, encoder.transform.size) == (teacher.mean, (48, 48))


def test_a_saved_classifier_opens_everywhere(pictures: list[Image.Image], tmp_path: Path) -> None:
    encoder = student()
    encoder.save(tmp_path / "s", {"teachers": {"T": "hf:google/vit-base-patch16-224-in21k"}, "metrics": {"top": 1.5}})
    again = build(StudentSpec(pretrained=str(tmp_path / "s")))
    assert again.fingerprint == encoder.fingerprint
    assert again.classes == ("red", "green", "dark blue")
    found = hf.pipeline("image-classification", str(tmp_path / "s"), device="cpu")(pictures[0])
    with torch.no_grad():
        expected = encoder.images_and_logits(batch(encoder, pictures[:1]))[1].softmax(dim=1)[0]
    assert {answer["label"]: answer["score"] for answer in found} == pytest.approx(
        dict(zip(encoder.classes, expected.tolist(), strict=True)), abs=1e-5
    )
    record = json.loads((tmp_path / "s" / "clipdistill.json").read_text())
    assert (record["classes"], record["width"]) == (["red", "green", "dark blue"], 48)
    card = (tmp_path / "s" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["pipeline_tag"], header["tags"]) == ("image-classification", ["knowledge-distillation"])
    assert 'pipeline("image-classification", ".")' in card
    assert "its head tells 3 classes apart" in card
    assert "caption" not in card


def test_a_saved_backbone_is_one(pictures: list[Image.Image], tmp_path: Path) -> None:
    write(tmp_path / "dino", BACKBONES["dinov2"][0](), dino_processor())
    encoder = load(str(tmp_path / "dino"))
    encoder.save(tmp_path / "copy")
    assert load(str(tmp_path / "copy")).fingerprint == encoder.fingerprint
    shutil.copytree(tmp_path / "copy", tmp_path / "other")
    settings = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**settings, "hidden_act": "relu"}))
    assert load(str(tmp_path / "other")).fingerprint != encoder.fingerprint
    features = hf.pipeline("image-feature-extraction", str(tmp_path / "copy"), device="cpu")(pictures[0])
    with torch.no_grad():
        rows = encoder.images(batch(encoder, pictures[:1]))
    np.testing.assert_allclose(np.array(features)[0, 0], rows[0].numpy(), atol=1e-4)
    assert 'pipeline("image-feature-extraction", ".")' in (tmp_path / "copy" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_width": 64}, "student.text_width: student.preset scenes-vit has no text tower"),
        ({"embed_dim": 64, "context_length": 9}, "student.embed_dim, student.context_length: student.preset"),
        ({"tokenizer": "train"}, "student.tokenizer is for models with a text tower"),
        ({"freeze": "text", "inherit": "even"}, "student.inherit and student.freeze are for models with"),
        ({"width": 50, "heads": 4}, "student.width is 50, student.heads is 4"),
    ],
)
def test_what_a_classifier_has_no_use_for_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StudentSpec(**{"preset": "scenes-vit", **changes})


@pytest.mark.parametrize("classes", [(), ("one",), ("one", "one")])
def test_a_classifier_needs_two_labels(classes: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"preset:scenes-vit has a classifier head, which needs labels"):
        build(StudentSpec(preset="scenes-vit"), classes=classes)


def test_nothing_is_inherited_from_a_model_of_pictures_alone(classifier: Path) -> None:
    donor, spec = load(str(classifier)), StudentSpec(preset="scenes-student", inherit="even")
    with pytest.raises(ConfigError, match=r"student.inherit: .* is no dual encoder of two towers"):
        build(spec, object(), donor=donor)
