"""A kept tower is the original to the bit, beside a new one of any size, and the student is a standard model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from clipdistill.errors import ConfigError
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.loading import load
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build, choose_tokenizer
from clipdistill.training.setup import train_mode

FAMILIES = ["clip", "chinese_clip", "siglip", "siglip2-square", "vision-text-dual-encoder"]
CAPTIONS = ["A photo of two Dogs, on a beach!", "一只狗", "x"]
SMALL: dict[str, Any] = {"preset": "scenes-student"}


def donor_of(folders: dict[str, Path], family: str) -> HuggingFaceEncoder:
    encoder = load(str(folders[family]))
    assert isinstance(encoder, HuggingFaceEncoder)
    return encoder


def student_of(donor: HuggingFaceEncoder, seed: int = 0, **changes: Any) -> Any:
    if "siglip" in donor.uri and changes["keep"] == "text":
        changes |= {"width": donor.width, "heads": 2}  # SigLIP's image tower ends without a projection
    spec = StudentSpec(**SMALL, **changes)
    tokenizer = choose_tokenizer(spec, donor.tokenizer, CAPTIONS)
    return build(spec, tokenizer, 999, seed, donor.transform, donor)


def pixels(encoder: Any, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    looks = [encoder.transform(picture) for picture in pictures]
    return {key: torch.from_numpy(np.stack([look[key] for look in looks])) for key in looks[0]}


def rows(encoder: Any, side: str, pictures: list[Image.Image]) -> torch.Tensor:
    with torch.no_grad():
        result = (
            encoder.texts(encoder.tokenize(CAPTIONS)) if side == "text" else encoder.images(pixels(encoder, pictures))
        )
    assert isinstance(result, torch.Tensor)
    return result


@pytest.mark.parametrize("kept", ["text", "image"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_kept_tower_gives_the_donors_rows_and_opens_again(
    family: str, kept: str, model_folders: dict[str, Path], pictures: list[Image.Image], tmp_path: Path
) -> None:
    donor = donor_of(model_folders, family)
    student = student_of(donor, keep=kept)
    other = "image" if kept == "text" else "text"
    assert type(student.module) is type(donor.module)
    assert torch.equal(rows(student, kept, pictures), rows(donor, kept, pictures))
    fresh = rows(student, other, pictures)
    assert fresh.shape == (len(fresh), donor.width)
    assert fresh.isfinite().all()
    assert not torch.equal(rows(student_of(donor, seed=1, keep=kept), other, pictures), fresh)
    assert torch.equal(rows(student_of(donor, seed=0, keep=kept), other, pictures), fresh)
    student.save(tmp_path / "student")
    again = load(str(tmp_path / "student"))
    assert again.fingerprint == student.fingerprint
    assert torch.equal(rows(again, kept, pictures), rows(donor, kept, pictures))
    assert donor.fingerprint == donor_of(model_folders, family).fingerprint


@pytest.mark.parametrize("kept", ["text", "image"])
def test_the_new_tower_has_the_presets_sizes(kept: str, model_folders: dict[str, Path]) -> None:
    donor = donor_of(model_folders, "chinese_clip")
    student = student_of(donor, keep=kept, **({"layers": 3} if kept == "text" else {"text_layers": 3}))
    config: Any = student.module.config
    theirs: Any = donor.module.config
    tower = config.vision_config if kept == "text" else config.text_config
    assert (tower.hidden_size, tower.intermediate_size, tower.num_hidden_layers) == (48, 192, 3)
    assert config.projection_dim == donor.width
    if kept == "text":
        assert (tower.image_size, tower.patch_size) == (48, 12)
        assert config.text_config.to_dict() == theirs.text_config.to_dict()
    else:
        assert tower.max_position_embeddings == 32
        assert config.vision_config.to_dict() == theirs.vision_config.to_dict()


def test_plain_transformers_opens_the_student(
    model_folders: dict[str, Path], pictures: list[Image.Image], tmp_path: Path
) -> None:
    donor = donor_of(model_folders, "chinese_clip")
    student_of(donor, keep="text").save(tmp_path / "student")
    folder = tmp_path / "student"
    model = hf.ChineseCLIPModel.from_pretrained(folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    processor = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokens = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens, **processor(images=pictures, return_tensors="pt"))
        theirs = rows(donor, "text", pictures)
    torch.testing.assert_close(output.text_embeds, theirs / theirs.norm(dim=1, keepdim=True), atol=1e-5, rtol=1e-5)
    assert output.logits_per_image.shape == (len(pictures), len(CAPTIONS))


def test_inputs_belong_to_their_towers(model_folders: dict[str, Path]) -> None:
    donor = donor_of(model_folders, "clip")
    text, image = student_of(donor, keep="text"), student_of(donor, keep="image", tokenizer="train", vocab_size=520)
    assert text.tokenize(CAPTIONS)["input_ids"].equal(donor.tokenize(CAPTIONS)["input_ids"])
    assert (text.transform.size, text.transform.mean) == ((48, 48), donor.transform.mean)  # type: ignore[union-attr]
    assert image.transform == donor.transform
    assert len(image.tokenizer) == 520
    assert image.module.config.text_config.vocab_size == 520


def test_another_model_may_give_the_tower(model_folders: dict[str, Path], pictures: list[Image.Image]) -> None:
    """A kept text tower needs no tokenizer of a teacher, and ends captions as it always did."""
    donor = donor_of(model_folders, "siglip")
    spec = StudentSpec(keep="text", inherit_from=donor.uri, width=32, heads=2, image_size=32)
    assert choose_tokenizer(spec, donor.tokenizer, iter(())) is donor.tokenizer
    student = build(spec, donor=donor)
    assert torch.equal(rows(student, "text", pictures), rows(donor, "text", pictures))
    assert student.bias is not None
    assert student.scale == pytest.approx(10)


def test_a_kept_tower_computes_as_the_donor_does_beside_a_tower_of_few_tokens(model_folders: dict[str, Path]) -> None:
    """Few image tokens run other attention code, which moves the last bits."""
    spec = StudentSpec(preset="scenes-student", image_size=96, patch_size=8, text_layers=4)
    donor = build(spec, donor_of(model_folders, "clip").tokenizer, 64)
    student = build(StudentSpec(keep="text", **SMALL), donor=donor)
    codes: list[Any] = [encoder.module.config for encoder in (donor, student)]
    assert {config.text_config._attn_implementation for config in codes} == {"sdpa"}
    assert codes[1].vision_config._attn_implementation == "eager"
    assert torch.equal(rows(student, "text", []), rows(donor, "text", []))


@pytest.mark.parametrize("side", ["text", "image"])
@pytest.mark.parametrize("family", ["clip", "siglip", "vision-text-dual-encoder"])
def test_a_frozen_kept_tower_learns_nothing_and_the_other_everything(
    family: str, side: Any, model_folders: dict[str, Path], pictures: list[Image.Image]
) -> None:
    donor = donor_of(model_folders, family)
    student = student_of(donor, keep=side, freeze=side)
    train_mode(student, side)
    learning = {name.split("_")[0] for name, value in student.module.named_parameters() if value.requires_grad}
    assert learning - {"logit"} == ({"vision", "visual"} if side == "text" else {"text"}) - (
        {"visual"} if family == "siglip" else set()
    )
    optimiser = torch.optim.SGD([value for value in student.module.parameters() if value.requires_grad], lr=1.0)
    (student.images(pixels(student, pictures)).sum() + student.texts(student.tokenize(CAPTIONS)).sum()).backward()
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    optimiser.step()
    assert any(not torch.equal(value, before[name]) for name, value in student.module.state_dict().items())
    student.module.eval()
    assert torch.equal(rows(student, side, pictures), rows(donor, side, pictures))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrained": "a/b"}, "student.keep and student.pretrained are given"),
        ({"config": "a/b"}, "student.keep and student.config are given"),
        ({"inherit": "even"}, "student.keep and student.inherit are given"),
        ({"text_width": 64, "context_length": 5}, "but student.text_width, student.context_length would change them"),
        ({"embed_dim": 64}, "but student.embed_dim would change them"),
        ({"tokenizer": "train"}, "but student.tokenizer would change them"),
        ({"vocab_size": 600}, "but student.vocab_size would change them"),
        ({"keep": "image", "patch_size": 8}, "student.keep=image takes that tower .* but student.patch_size would"),
        ({"preset": "scenes-vit"}, "one tower, of pictures, and a classifier head: student.keep is for models"),
    ],
)
def test_what_a_kept_tower_fixes_cannot_be_changed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StudentSpec(**({"keep": "text"} | changes))


def test_the_other_towers_sizes_may_be_changed() -> None:
    assert StudentSpec(keep="text", width=64, layers=2, image_size=64).shape(24).embed_dim == 24
    assert StudentSpec(keep="image", text_width=64, context_length=20).shape(24).text_width == 64
    with pytest.raises(ConfigError, match=r"without student\.inherit or student\.keep"):
        StudentSpec(inherit_from="a/b")


def test_models_that_cannot_lend_a_tower_are_refused(model_folders: dict[str, Path]) -> None:
    spec = StudentSpec(keep="text", **SMALL)
    with pytest.raises(
        ConfigError, match=r"student\.keep needs a model .*add a teacher, or student\.inherit_from=MODEL"
    ):
        build(spec)
    siglip = donor_of(model_folders, "siglip")
    with pytest.raises(ConfigError, match=r"student\.width is 48\. Set student\.width=32"):
        build(spec, donor=siglip)
    naflex = donor_of(model_folders, "siglip2")
    with pytest.raises(ConfigError, match="of kind siglip2; expected one of clip, chinese_clip, siglip"):
        build(spec, donor=naflex)
