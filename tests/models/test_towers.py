"""Image towers that are no ViT: presets, models of timm, configurations; trained, saved and opened by transformers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file
from transformers.utils import import_utils

from clipdistill.cli import main
from clipdistill.data.views import Transform
from clipdistill.errors import ConfigError, ModelError
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.loading import load
from clipdistill.models.masking import masked_images
from clipdistill.models.presets import PRESETS, StudentSpec
from clipdistill.models.students import build
from clipdistill.models.timm import import_timm
from clipdistill.models.towers import dual_encoder_config
from clipdistill.models.vocabulary import train_tokenizer
from clipdistill.training.loop import distill
from clipdistill.training.run_folder import read_log
from tiny_runs import tiny_run

SMALL = {"text_width": 16, "text_layers": 1, "embed_dim": 16, "context_length": 32}
TINY_SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 3}


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """transformers as it is where torchvision can be imported: in these tests it was loaded without."""
    found = importlib.import_module("timm")
    wrapper = importlib.import_module("transformers.models.timm_wrapper.modeling_timm_wrapper")
    monkeypatch.setattr(wrapper, "timm", found, raising=False)
    monkeypatch.setitem(import_utils.BACKENDS_MAPPING, "timm", (lambda: True, ""))
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["a red circle left of a blue star"], 520, 32)


def student(tokenizer: Any, seed: int = 0, like: Transform | None = None, **spec: Any) -> HuggingFaceEncoder:
    encoder = build(StudentSpec(**{"preset": "scenes-cnn", **spec}), tokenizer, seed=seed, teacher_transform=like)
    assert isinstance(encoder, HuggingFaceEncoder)
    return encoder


def pixels(encoder: Any, number: int = 3) -> dict[str, torch.Tensor]:
    noise = np.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 60 + 60 * n, (40, 60, 3), np.uint8)) for n in range(number)]
    return {"pixel_values": torch.stack([torch.from_numpy(encoder.transform(p)["pixel_values"]) for p in pictures])}


@torch.no_grad()
def rows(encoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return encoder.images(pixels(encoder)), encoder.texts(encoder.tokenize(["a red circle", "a star"]))


#: Millions of parameters of the image tower (as timm counts the model without its classifier), and its width.
TOWERS = {
    "mobilevit-s": (4.937632, 640, 512),
    "swin-t": (27.519354, 768, 512),
    "mobilenet-v3": (1.517856, 1024, 512),
    "efficientnet-b0": (4.007548, 1280, 512),
    "resnet-18": (11.176512, 512, 512),
    "resnet-50": (23.508032, 2048, 1024),
    "scenes-cnn": (0.12092, 640, 128),
}


def test_every_preset_with_such_a_tower_is_tested() -> None:
    assert set(TOWERS) == {name for name, shape in PRESETS.items() if shape.vision}


@pytest.mark.parametrize("name", TOWERS)
def test_a_preset_has_the_tower_it_is_named_after(name: str, timm: Any) -> None:
    shape = StudentSpec(preset=name).shape()
    assert shape == PRESETS[name]
    config = dual_encoder_config(shape, None, hf.CLIPTextConfig())
    with torch.device("meta"):
        tower = hf.AutoModel.from_config(config.vision_config)
    parameters, width, joint = TOWERS[name]
    assert sum(p.numel() for p in tower.parameters()) / 1e6 == pytest.approx(parameters, abs=1e-6)
    assert (config.vision_config.hidden_size, config.projection_dim) == (width, joint)
    assert config.vision_config.image_size == (48 if name == "scenes-cnn" else 224)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"vision": "timm:test_resnet"},
        {"vision": "timm:test_vit", "image_size": 64},
        {"vision": TINY_SWIN},
        {"preset": "swin-t", "image_size": 48, "vision": {"model_type": "convnext", "hidden_sizes": [8, 8, 8, 8]}},
        {"preset": "vit-tiny-16", **SMALL, "vision": {"model_type": "mobilenet_v2", "depth_multiplier": 0.2}},
    ],
)
def test_a_student_is_saved_and_opened_by_transformers(spec: Any, tokenizer: Any, timm: Any, tmp_path: Path) -> None:
    encoder = student(tokenizer, **{**({} if "preset" in spec and "vision" not in spec else SMALL), **spec})
    for buffer in encoder.module.buffers():  # norms that have seen pictures
        if buffer.is_floating_point() and buffer.ndim == 1:
            buffer.add_((torch.rand_like(buffer) - 0.5) * 0.05)
    before = rows(encoder)
    assert before[0].shape[1] == before[1].shape[1] == encoder.width == 16
    assert (before[0][0] - before[0][1]).abs().max() > 1e-4
    encoder.save(tmp_path / "s")
    again = load(str(tmp_path / "s"))
    assert again.fingerprint == encoder.fingerprint
    for new, old in zip(rows(again), before, strict=True):
        torch.testing.assert_close(new, old, atol=1e-6, rtol=1e-5)
    model, processor = hf.AutoModel.from_pretrained(tmp_path / "s"), hf.AutoProcessor.from_pretrained(tmp_path / "s")
    picture = Image.new("RGB", (50, 70), (200, 40, 90))
    inputs = processor(text=["a red circle", "a star"], images=picture, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
        expected = encoder.images({"pixel_values": inputs["pixel_values"]})
    torch.testing.assert_close(output.image_embeds, torch.nn.functional.normalize(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.text_embeds, torch.nn.functional.normalize(before[1]), atol=1e-5, rtol=1e-4)


def test_a_timm_tower_starts_as_timm_would(tokenizer: Any, timm: Any) -> None:
    """transformers draws every kernel with a deviation of 0.02; the deviations of timm's own differ."""
    encoder = student(tokenizer, vision="timm:test_resnet", seed=3)
    ours, theirs = encoder.module.vision_model.timm_model, timm.create_model("test_resnet", num_classes=0)  # type: ignore[union-attr]
    deviations = [
        (float(ours.get_parameter(name).detach().std()), float(kernel.detach().std()))  # type: ignore[operator]
        for name, kernel in theirs.named_parameters()
        if kernel.ndim == 4
    ]
    assert len(deviations) > 8
    assert np.ptp([found for found, _ in deviations]) > 0.05
    for found, expected in deviations:
        assert found == pytest.approx(expected, rel=0.15)
    assert student(tokenizer, vision="timm:test_resnet", seed=3).fingerprint == encoder.fingerprint
    assert student(tokenizer, vision="timm:test_resnet", seed=4).fingerprint != encoder.fingerprint


def test_the_global_random_state_stays(tokenizer: Any) -> None:
    before = torch.get_rng_state()
    student(tokenizer)
    assert torch.equal(before, torch.get_rng_state())


def test_a_convolutional_tower_of_transformers_passes_its_input_on(tokenizer: Any) -> None:
    """Kernels keep what goes through them at one size: no norm has to make up for more than a few times."""
    tower = student(tokenizer).module.vision_model
    seen: list[float] = []
    for part in tower.modules():  # type: ignore[union-attr]
        if isinstance(part, torch.nn.BatchNorm2d):
            part.register_forward_hook(lambda module, given, output: seen.append(float(given[0].detach().std())))
    with torch.no_grad():
        tower.train()(pixel_values=torch.randn(8, 3, 48, 48))  # type: ignore[operator, union-attr]
    assert len(seen) == 16
    assert 0.1 < min(seen) <= max(seen) < 10


def test_pictures_are_prepared_as_for_clip_in_the_teachers_colours(tokenizer: Any) -> None:
    like = Transform(resize=(64, 64), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    transform = student(tokenizer, image_size=56, like=like).transform
    assert transform is not None
    assert (transform.resize, transform.crop, transform.mean, transform.std) == (56, (56, 56), like.mean, like.std)


@pytest.mark.parametrize(("own", "asked", "seen"), [(24, None, 24), (24, 48, 48), (None, None, 224)])
def test_a_folder_says_the_size_unless_the_run_does(
    own: int | None, asked: int | None, seen: int, tokenizer: Any, tmp_path: Path
) -> None:
    config = hf.MobileNetV2Config(depth_multiplier=0.2, **({"image_size": own} if own else {}))
    config.save_pretrained(tmp_path)
    encoder = student(tokenizer, preset="vit-tiny-16", **SMALL, vision=str(tmp_path), image_size=asked)
    assert encoder.transform is not None
    if own is None:
        seen = config.image_size
    assert encoder.transform.size == (seen, seen)
    assert type(encoder.module.vision_model) is hf.MobileNetV2Model


def test_the_image_tower_of_a_dual_encoders_folder_is_taken(tokenizer: Any, model_folders: dict[str, Path]) -> None:
    encoder = student(tokenizer, **SMALL, vision=str(model_folders["clip"]))
    assert type(encoder.module.vision_model) is hf.CLIPVisionModel
    assert encoder.transform is not None
    assert encoder.transform.size == (32, 32)


def test_patches_are_greyed_where_they_have_no_place_of_their_own(tokenizer: Any) -> None:
    encoder = student(tokenizer, vision=TINY_SWIN)
    assert encoder.patch_tokens is None
    torch.manual_seed(0)
    with torch.no_grad():
        hidden = masked_images(encoder, pixels(encoder), 0.75)
        shown = encoder.images(pixels(encoder))
    assert hidden.shape == shown.shape
    assert (hidden - shown).abs().max() > 1e-4


def test_a_kept_text_tower_stands_beside_such_a_tower(model_folders: dict[str, Path], tmp_path: Path) -> None:
    donor = load(str(model_folders["clip"]))
    spec = StudentSpec(preset="scenes-cnn", keep="text", freeze="text")
    encoder = build(spec, donor.tokenizer, donor=donor)
    captions = ["a red circle", "A Photo of two Dogs"]
    with torch.no_grad():
        expected = donor.texts(donor.tokenize(captions))
        assert torch.equal(encoder.texts(encoder.tokenize(captions)), expected)
        encoder.save(tmp_path / "s")
        again = load(str(tmp_path / "s"))
        torch.testing.assert_close(again.texts(again.tokenize(captions)), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"efficientnet cannot stand beside the text tower of .*siglip"):
        build(spec, donor.tokenizer, donor=load(str(model_folders["siglip"])))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("cnn") / "run"
    spec = {"preset": "scenes-cnn", **SMALL, "vocab_size": 520}
    evaluate = {"retrieval": "scenes:test?n=16", "every": 4}
    train = {"steps": 16, "lr": 1e-2, "ema": 0.9, "checkpoint_every": 5, "keep_checkpoints": 4}
    return distill(tiny_run(out, student=spec, train=train, evaluate=evaluate)), out


def test_a_convolutional_student_learns(run: Any) -> None:
    result, _ = run
    found = [entry["loss"] for entry in read_log(result.folder / "log.jsonl") if "loss" in entry]
    assert np.mean(found[-4:]) < np.mean(found[:4])


def test_norms_are_in_checkpoints_averages_and_the_student(run: Any) -> None:
    result, out = run
    newest = sorted((out / "checkpoints").glob("step-*"))[-1]
    own, average = load_file(newest / "student.safetensors"), load_file(newest / "ema.safetensors")
    moved = [name for name, value in own.items() if name.endswith("running_mean") and value.abs().max() > 1e-3]
    assert len(moved) > 5
    saved = load(str(result.student)).module.state_dict()
    for name in moved:
        assert not torch.equal(own[name], average[name])
        assert torch.equal(saved[name], average[name])
    (steps,) = {int(value) for name, value in own.items() if name.endswith("num_batches_tracked")}
    assert steps >= 16


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(run: Any) -> None:
    result, out = run
    found = sorted((out / "checkpoints").glob("step-*"))
    assert len(found) == 4
    for damaged in found[-2:]:
        (damaged / "student.safetensors").write_bytes(b"")
    before = load_file(result.student / "model.safetensors")
    assert main(["distill", str(out / "config.yaml"), "--resume"]) == 0
    after = load_file(result.student / "model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_command_line_evaluates_the_student(run: Any, tmp_path: Path) -> None:
    result, _ = run
    words = ["eval", str(result.student), "--data", "scenes:test?n=16", "--out", str(tmp_path / "report")]
    assert main(words) == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"vision": "timm:resnet18x"}, "has no model 'resnet18x'. Close to it: resnet18,"),
        ({"vision": {"model_type": "swinn"}}, "has no model_type 'swinn'. Close to it: swin"),
        ({"vision": {"depths": [1]}}, "has no model_type 'None'"),
        ({"vision": {"model_type": "swin", "depth": 2}}, "a swin has no depth. Did you mean 'depths'"),
        ({"vision": {"model_type": "swin", "depths": 2}}, "is not a valid swin"),
        ({"vision": {"model_type": "resnet"}}, r"shape \[1, 2048, 1, 1\], where .* timm:resnet50"),
        ({"vision": {"model_type": "bert"}}, "bert does not embed a picture of 48 x 48"),
        ({"vision": {"model_type": "vit_mae"}}, "vit_mae does not embed a picture"),
    ],
)
def test_what_is_no_tower_is_refused(spec: Any, message: str, tokenizer: Any, timm: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        student(tokenizer, **spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"preset": "resnet-18", "width": 64}, "student.width: the image tower is timm:resnet18, which brings its own"),
        ({"vision": TINY_SWIN, "layers": 2, "heads": 1}, "student.layers, student.heads: the image tower is swin"),
        ({"preset": "resnet-18", "inherit": "even"}, "student.inherit=even fills a ViT, but the image tower is timm"),
        ({"preset": "scenes-vit", "vision": "timm:resnet18"}, "student.vision is for models with a text tower"),
        ({"pretrained": "a/b", "vision": "timm:resnet18"}, "student.pretrained fixes the architecture, but vision"),
        ({"vision": "timm:resnet18", "keep": "image"}, "student.keep=image takes that tower .* student.vision would"),
    ],
)
def test_what_does_not_go_with_a_tower_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StudentSpec(**spec)


def test_a_missing_folder_is_said(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="no model folder at nowhere"):
        student(tokenizer, vision="./nowhere")


@pytest.mark.parametrize("error", [ImportError("no torchvision"), RuntimeError("operator torchvision::nms")])
def test_timm_that_cannot_be_imported_is_said(
    error: Exception, timm: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student(tokenizer, **SMALL, vision="timm:test_resnet").save(tmp_path / "s")

    (tmp_path / "packages" / "timm").mkdir(parents=True)
    (tmp_path / "packages" / "timm" / "__init__.py").write_text(f"raise {error!r}")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "timm")
    for attempt in (import_timm, lambda: load(str(tmp_path / "s"))):
        with pytest.raises(ModelError, match=f"timm cannot be imported here: .*{error}.* needs a torchvision"):
            attempt()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"'timm' is .*not installed.* pip install 'clipdistill\[open-clip\]'"):
        import_timm()
