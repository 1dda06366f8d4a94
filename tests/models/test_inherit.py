"""Weight inheritance: what is kept is the teacher's to the bit, whatever is cut beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from clipdistill.errors import ConfigError, ModelError
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.inherit import choose_layers, inherit, resize_kernel, resize_positions
from clipdistill.models.loading import load
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build, choose_tokenizer

FAMILIES = ["clip", "chinese_clip", "siglip", "vision-text-dual-encoder"]
CAPTIONS = ["a dog", "a large green dog"]


@pytest.fixture(scope="module")
def teachers(model_folders: dict[str, Path]) -> dict[str, HuggingFaceEncoder]:
    return {family: load(str(model_folders[family])) for family in FAMILIES}


def heir(teacher: HuggingFaceEncoder, **changes: Any) -> HuggingFaceEncoder:
    """A student of the teacher's sizes but for the changes, that inherits by TinyCLIP's rule."""
    vision = teacher.module.config.vision_config  # type: ignore[union-attr]
    same = {"image_size": vision.image_size, "patch_size": vision.patch_size, "width": 32, "text_width": 32}
    same |= {"layers": 2, "heads": 2, "text_layers": 2, "text_heads": 2}
    if "siglip" in teacher.module.config.model_type:  # type: ignore[union-attr]
        same |= {"embed_dim": 32}
    spec = StudentSpec(inherit="tinyclip", **(same | changes))
    tokenizer = choose_tokenizer(spec, teacher.tokenizer, iter(()))
    return build(spec, tokenizer, teacher.width, 1, teacher.transform, teacher)


def pixels(side: int = 32) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))}


def outputs(encoder: HuggingFaceEncoder) -> list[torch.Tensor]:
    with torch.no_grad():
        return [encoder.images(pixels()), encoder.texts(encoder.tokenize(CAPTIONS))]


@pytest.mark.parametrize("family", FAMILIES)
def test_where_nothing_is_cut_the_student_is_the_teacher(family: str, teachers: dict[str, Any]) -> None:
    student = heir(teachers[family])
    for ours, theirs in zip(outputs(student), outputs(teachers[family]), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_smaller_student_inherits_and_opens_again(family: str, teachers: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"width": 16, "heads": 1, "layers": 1, "text_width": 24, "text_heads": 2, "text_layers": 1}
    student = heir(teachers[family], **sizes)
    theirs = teachers[family].module.state_dict()
    kept = {name: value for name, value in student.module.state_dict().items() if "logit" not in name}
    for name, value in kept.items():
        if not any(part in name for part in ("in_proj", "text_model.encoder", "self_attn")):
            first = theirs[name][tuple(slice(0, size) for size in value.shape)]
            assert torch.equal(value, first), name
    student.save(tmp_path / "student")
    assert load(str(tmp_path / "student")).fingerprint == student.fingerprint


def test_kept_layers_give_the_teachers_numbers_to_the_bit(teachers: dict[str, Any]) -> None:
    """With the width whole, each kept layer maps the same rows to the same rows."""
    teacher = teachers["clip"]
    student = heir(teacher, layers=1, text_layers=1)
    for tower in ("vision_model", "text_model"):
        theirs, ours = (getattr(model.module, tower).encoder.layers[0] for model in (teacher, student))
        rows = torch.randn(2, 5, 32)
        assert torch.equal(theirs(rows, None), ours(rows, None))


def test_heads_are_kept_whole_and_narrow_ones_keep_their_first_channels(teachers: dict[str, Any]) -> None:
    theirs = teachers["clip"].module.state_dict()
    name = "vision_model.encoder.layers.0.self_attn.{}_proj.weight"
    one = heir(teachers["clip"], width=16, heads=1).module.state_dict()
    assert torch.equal(one[name.format("q")], theirs[name.format("q")][:16, :16])
    two = heir(teachers["clip"], width=24, heads=2).module.state_dict()
    channels = [*range(12), *range(16, 28)]
    assert torch.equal(two[name.format("v")], theirs[name.format("v")][channels][:, :24])
    assert torch.equal(two[name.format("out")], theirs[name.format("out")][:24][:, channels])
    merged = heir(teachers["clip"], width=24, heads=1).module.state_dict()
    assert torch.equal(merged[name.format("k")], theirs[name.format("k")][:24, :24])


def test_the_pooling_head_of_siglip_keeps_queries_keys_and_values(teachers: dict[str, Any]) -> None:
    name = "vision_model.head.attention.in_proj_weight"
    student = heir(teachers["siglip"], width=16, heads=1).module.state_dict()
    theirs = teachers["siglip"].module.state_dict()[name].reshape(3, 2, 16, 32)
    assert torch.equal(student[name], theirs[:, 0, :, :16].reshape(48, 16))


@pytest.mark.parametrize(
    ("big", "small", "rule", "layers"),
    [
        (12, 9, "tinyclip", tuple(range(9))),
        (12, 6, "tinyclip", (0, 2, 4, 6, 8, 10)),
        (12, 3, "even", (0, 6, 11)),
        (12, 9, "even", (0, 1, 3, 4, 6, 7, 8, 10, 11)),
        (5, 1, "even", (0,)),
        (4, 4, "even", (0, 1, 2, 3)),
    ],
)
def test_layers_are_chosen_as_said(big: int, small: int, rule: Any, layers: tuple[int, ...]) -> None:
    chosen = choose_layers(big, small, rule)
    assert len(chosen) == len(set(chosen)) == small
    assert chosen == layers


def test_another_grid_interpolates_positions_and_another_patch_the_kernel(teachers: dict[str, Any]) -> None:
    teacher = teachers["clip"]
    student = heir(teacher, image_size=48, patch_size=16)
    assert student.module.config.vision_config.patch_size == 16  # type: ignore[union-attr]
    report = inherit(student, teacher, "even")
    assert len(report.resized) == 2
    assert "patch_embedding" in str(report)
    name = "vision_model.embeddings.position_embedding.weight"
    ours, theirs = student.module.state_dict()[name], teacher.module.state_dict()[name]
    assert ours.shape == (10, 32)
    assert torch.equal(ours[0], theirs[0])
    with torch.no_grad():
        assert student.images(pixels(48)).isfinite().all()


def test_positions_that_lie_on_a_plane_stay_on_it() -> None:
    """A grid that grows by rows and columns keeps its middle and its order."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    table = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    small = resize_positions(torch.cat([torch.full((1, 2), 9.0), table]), 5, 1)
    assert small[0].tolist() == [9, 9]
    torch.testing.assert_close(small[1:].mean(0), torch.tensor([1.5, 1.5]))
    assert (small[3:, 0] > small[1:3, 0]).all()
    assert (small[2::2, 1] > small[1::2, 1]).all()


def test_a_larger_kernel_answers_to_a_larger_patch_as_before() -> None:
    kernel, patch = torch.randn(5, 3, 4, 4), torch.randn(2, 3, 4, 4)
    large = F.interpolate(patch, size=(7, 7), mode="bilinear", align_corners=False)
    before, after = F.conv2d(patch, kernel), F.conv2d(large, resize_kernel(kernel, 7))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_inherited_is_refused_by_name(teachers: dict[str, Any], model_folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"kind clip.*cannot inherit from siglip"):
        inherit(heir(teachers["clip"]), teachers["siglip"])
    patches = load(str(model_folders["siglip2"]))
    with pytest.raises(ModelError, match="kind siglip2"):
        inherit(patches, patches)
    with pytest.raises(ModelError, match="layers 3"):
        heir(teachers["clip"], layers=3)
    with pytest.raises(ModelError, match=r"visual_projection.*\(48, 32\)"):
        heir(teachers["clip"], embed_dim=48)
    spec = StudentSpec(preset="scenes-student", width=32, inherit="even", tokenizer="train", vocab_size=520)
    with pytest.raises(ModelError, match=r"student\.tokenizer=auto"):
        build(spec, choose_tokenizer(spec, None, ["a b c", "dog"] * 5), 24, donor=teachers["clip"])


def test_a_spec_says_where_weights_come_from_once() -> None:
    with pytest.raises(ConfigError, match="only one"):
        StudentSpec(pretrained="m", inherit="even")
    with pytest.raises(ConfigError, match=r"without student\.inherit"):
        StudentSpec(inherit_from="m")
    with pytest.raises(ConfigError, match="add a teacher"):
        build(StudentSpec(inherit="even"), object())
