"""Students: sizes, seeds, tokenizers and what a run may say about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from pydantic import ValidationError

from clipdistill.data.views import Transform
from clipdistill.errors import ConfigError, ModelError
from clipdistill.models.loading import load
from clipdistill.models.presets import PRESETS, StudentSpec
from clipdistill.models.students import build, choose_tokenizer, clip_config
from clipdistill.models.vocabulary import train_tokenizer

TEXTS = ["a red square left of a blue circle", "两只狗在海滩上", "a large green star on white"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(TEXTS, 600, 32)


def weights(encoder: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in encoder.module.parameters()])


#: Millions of parameters of the image tower, and of the text tower's layers without its vocabulary.
SIZES = {
    "vit-tiny-16": (5.5, 21.3),
    "vit-small-16": (21.7, 21.3),
    "vit-small-32": (22.5, 21.3),
    "vit-base-32": (87.5, 37.8),
    "vit-base-16": (85.8, 37.8),
    "tinyclip-8m-16": (8.1, 2.4),
    "scenes-teacher": (0.82, 0.79),
    "scenes-student": (0.078, 0.057),
}


@pytest.mark.parametrize("name", [name for name, shape in PRESETS.items() if shape.has_text and not shape.vision])
def test_a_preset_has_the_size_of_the_model_it_is_named_after(name: str) -> None:
    shape = StudentSpec(preset=name).shape()
    assert shape == PRESETS[name]
    with torch.device("meta"):
        model = hf.CLIPModel(clip_config(shape))
    image = sum(p.numel() for p in model.vision_model.parameters()) / 1e6
    text = sum(p.numel() for p in model.text_model.encoder.parameters()) / 1e6
    assert (image, text) == pytest.approx(SIZES[name], rel=0.02)


def test_the_same_seed_gives_the_same_student_and_leaves_the_global_state(tokenizer: Any) -> None:
    spec = StudentSpec(preset="scenes-student")
    before = torch.get_rng_state()
    first = build(spec, tokenizer, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    assert torch.equal(weights(first), weights(build(spec, tokenizer, seed=3)))
    assert build(spec, tokenizer, seed=3).fingerprint == first.fingerprint
    assert not torch.equal(weights(first), weights(build(spec, tokenizer, seed=4)))


def test_widths_follow_the_teacher_unless_the_run_says_otherwise(tokenizer: Any) -> None:
    assert build(StudentSpec(preset="scenes-student"), tokenizer).width == 128
    assert build(StudentSpec(preset="scenes-student"), tokenizer, embed_dim=40).width == 40
    assert build(StudentSpec(preset="scenes-student", embed_dim=24), tokenizer, embed_dim=40).width == 24


def test_a_changed_width_takes_the_text_tower_and_the_heads_along() -> None:
    shape = StudentSpec(image_size=64, patch_size=16, width=64).shape()
    assert (shape.width, shape.heads, shape.text_width, shape.text_heads) == (64, 2, 128, 2)
    assert (shape.image_size, shape.patch_size, shape.layers) == (64, 16, 12)
    shape = StudentSpec(width=64, text_width=320, heads=4).shape()
    assert (shape.heads, shape.text_width, shape.text_heads) == (4, 320, 5)
    shape = StudentSpec(width=200).shape()
    assert (shape.heads, shape.text_width) == (2, 400)
    assert 400 % shape.text_heads == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "vit-tiny"}, "student.preset 'vit-tiny' is unknown. Did you mean 'vit-tiny-16'"),
        ({"image_size": 100}, "student.image_size is 100, student.patch_size is 16"),
        ({"width": 64, "heads": 5}, "student.width is 64, student.heads is 5"),
        ({"text_heads": 5}, "student.text_width is 384, student.text_heads is 5"),
        ({"preset": "vit-tiny-16", "pretrained": "a/b"}, "preset and pretrained are given"),
        ({"config": "a/b", "pretrained": "a/b"}, "config and pretrained are given"),
        ({"pretrained": "a/b", "layers": 3}, "student.pretrained fixes the architecture, but layers"),
        ({"config": "a/b", "width": 64}, "student.config fixes the architecture, but width"),
    ],
)
def test_a_spec_that_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StudentSpec(**changes)


@pytest.mark.parametrize("changes", [{"widht": 64}, {"layers": 0}, {"image_size": "large"}])
def test_unknown_keys_and_impossible_numbers_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        StudentSpec(**changes)


def test_a_student_sees_the_teachers_colours_at_its_own_size(tokenizer: Any) -> None:
    spec = StudentSpec(preset="scenes-student")
    teacher = Transform(resize=(64, 64), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    transform = build(spec, tokenizer, teacher_transform=teacher).transform
    assert transform is not None
    assert (transform.resize, transform.crop) == (48, (48, 48))
    assert (transform.mean, transform.std) == (teacher.mean, teacher.std)
    plain = build(spec, tokenizer).transform
    assert plain is not None
    assert plain.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert plain.resample == Image.Resampling.BICUBIC


def test_captions_are_pooled_at_their_own_end(tokenizer: Any) -> None:
    """The embedding of a caption is that of its end token: what follows the first one does not count."""
    encoder = build(StudentSpec(preset="scenes-student"), tokenizer)
    assert encoder.module.config.text_config.eos_token_id == tokenizer.eos_token_id != 2
    tokens = encoder.tokenize([TEXTS[0], "a"])
    more = {name: torch.nn.functional.pad(value, (0, 3), value=1) for name, value in tokens.items()}
    with torch.no_grad():
        torch.testing.assert_close(encoder.texts(tokens), encoder.texts(more), atol=1e-5, rtol=1e-5)
        assert (encoder.texts(tokens)[0] - encoder.texts(tokens)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["clip", "chinese_clip", "siglip", "siglip2", "vision-text-dual-encoder"])
def test_a_student_reads_its_teachers_tokens(family: str, model_folders: dict[str, Path], tmp_path: Path) -> None:
    teacher = load(str(model_folders[family]))
    spec = StudentSpec(preset="scenes-student")
    chosen = choose_tokenizer(spec, teacher.tokenizer, captions=iter(()))
    student = build(spec, chosen, embed_dim=teacher.width)
    assert chosen is teacher.tokenizer
    caption = "a dog"
    real = student.tokenize([caption, caption * 3])["input_ids"][0]
    ids = teacher.tokenizer(caption)["input_ids"]
    assert real[: len(ids)].tolist() == ids
    assert student.module.config.text_config.eos_token_id == ids[-1]
    assert student.width == teacher.width
    assert set(teacher.tokenize(["a"])) == set(load(str(model_folders[family])).tokenize(["a"])), "teacher untouched"
    with torch.no_grad():
        rows = student.texts(student.tokenize([caption, "a large dog, and a cat"]))
        torch.testing.assert_close(rows[:1], student.texts(student.tokenize([caption])), atol=1e-5, rtol=1e-5)
    student.save(tmp_path / "student")
    assert load(str(tmp_path / "student")).fingerprint == student.fingerprint


def endless_tokenizer(end: int) -> Any:
    """A tokenizer whose captions end with the given id, or with none for -1."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    entries = ["<pad>", "<s>", "<e>", "</s>", "a", "photo", "of", "cat", "7"]
    inner = Tokenizer(models.WordLevel({e: i for i, e in enumerate(entries)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if end >= 0:
        special = [(entries[end], end)]
        inner.post_processor = processors.TemplateProcessing(single=f"$A {entries[end]}", special_tokens=special)
    return hf.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=entries[max(end, 2)], pad_token="<pad>")


@pytest.mark.parametrize(("end", "message"), [(-1, "does not end captions"), (2, "ends captions with id 2")])
def test_a_tokenizer_that_clip_cannot_pool_is_refused_or_replaced(end: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(StudentSpec(preset="scenes-student"), endless_tokenizer(end))
    spec = StudentSpec(preset="scenes-student", vocab_size=520)
    trained = choose_tokenizer(spec, endless_tokenizer(end), TEXTS)
    assert isinstance(trained, hf.CLIPTokenizer)
    assert len(trained) == 520
    assert choose_tokenizer(spec, endless_tokenizer(3), TEXTS).eos_token_id == 3


def test_the_tokenizer_is_trained_or_read_as_the_spec_says(model_folders: dict[str, Path]) -> None:
    trained = choose_tokenizer(StudentSpec(preset="scenes-student", vocab_size=530), None, TEXTS)
    assert (len(trained), trained.model_max_length) == (530, 32)
    teacher = load(str(model_folders["clip"]))
    again = choose_tokenizer(StudentSpec(tokenizer="train", vocab_size=530), teacher.tokenizer, TEXTS)
    assert (len(again), again.model_max_length) == (530, 77)
    read = choose_tokenizer(StudentSpec(tokenizer=str(model_folders["chinese_clip"])), teacher.tokenizer, TEXTS)
    assert isinstance(read, hf.BertTokenizer)
    with pytest.raises(ModelError, match="no model folder"):
        choose_tokenizer(StudentSpec(tokenizer="./nowhere"), None, TEXTS)
    assert choose_tokenizer(StudentSpec(pretrained="any/model"), None, TEXTS) is None


def test_random_weights_need_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        build(StudentSpec())


def test_a_pretrained_student_keeps_everything(model_folders: dict[str, Path]) -> None:
    folder = str(model_folders["siglip"])
    assert build(StudentSpec(pretrained=folder)).fingerprint == load(folder).fingerprint


@pytest.mark.parametrize("family", ["clip", "chinese_clip", "siglip", "siglip2", "vision-text-dual-encoder"])
def test_any_configuration_makes_a_student(
    family: str, model_folders: dict[str, Path], tokenizer: Any, tmp_path: Path
) -> None:
    original = load(str(model_folders[family]))
    spec = StudentSpec(config=str(model_folders[family] / "config.json"))
    if family == "siglip2":
        with pytest.raises(ModelError, match="opens every siglip2 folder with Siglip2Tokenizer"):
            build(spec, tokenizer)
        tokenizer = original.tokenizer
    student = build(spec, tokenizer, seed=1)
    assert type(student.module) is type(original.module)
    assert student.width == original.width
    assert student.module.text_model is not original.module.text_model
    assert student.scale == pytest.approx(10 if family.startswith("siglip") else 1 / 0.07, rel=1e-3)
    assert (student.bias is None) == (not family.startswith("siglip"))
    assert student.transform is not None
    picture = Image.fromarray(np.full((40, 50, 3), 99, np.uint8))
    pixels = {key: torch.from_numpy(value)[None] for key, value in student.transform(picture).items()}
    with torch.no_grad():
        rows = student.images(pixels), student.texts(student.tokenize([TEXTS[0]]))
    assert all(row.shape == (1, student.width) and row.isfinite().all() for row in rows)
    student.save(tmp_path / "student")
    assert load(str(tmp_path / "student")).fingerprint == student.fingerprint
    length = original.module.config.text_config.max_position_embeddings
    assert choose_tokenizer(spec, None, TEXTS).model_max_length == length
