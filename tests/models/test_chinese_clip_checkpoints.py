"""Chinese-CLIP's checkpoints give the rows of the model they hold; what cannot be opened says why and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipdistill.cli import main
from clipdistill.errors import ModelError
from clipdistill.models.chinese_clip import configure, measure, save_chinese_clip
from clipdistill.models.chinese_clip_layout import to_original, to_transformers
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.loading import load


@pytest.fixture(scope="module")
def tiny(model_folders: dict[str, Path]) -> HuggingFaceEncoder:
    """A random ChineseCLIPModel of a shape that Chinese-CLIP's code can express, with two heads of 16 each."""
    made: Any = load(str(model_folders["chinese_clip"]))
    config = made.module.config
    config.vision_config.intermediate_size = 4 * config.vision_config.hidden_size
    torch.manual_seed(3)
    module = hf.ChineseCLIPModel(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        module.text_model.embeddings.word_embeddings.weight[0] = 0  # padding, which no row depends on
    return HuggingFaceEncoder("tiny", module, made.tokenizer, made.processor)


@pytest.fixture
def checkpoint(tiny: HuggingFaceEncoder, tmp_path: Path) -> Path:
    save_chinese_clip(tiny, tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def rows(encoder: Any, pictures: list[Image.Image], captions: list[str]) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return encoder.images(pixels_of(encoder, pictures)), encoder.texts(encoder.tokenize(captions))


def pixels_of(encoder: Any, pictures: list[Image.Image]) -> dict[str, Tensor]:
    views = [encoder.transform(picture) for picture in pictures]
    return {key: torch.from_numpy(np.stack([view[key] for view in views])) for key in views[0]}


def resave(path: Path, change: Any, **arguments: Any) -> None:
    held = torch.load(path, weights_only=True)
    torch.save(change(held), path, **arguments)


def weights_of(path: Path) -> dict[str, Tensor]:
    held = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("module."): value for name, value in held.items()}


def test_a_checkpoint_gives_the_rows_of_its_model(
    tiny: HuggingFaceEncoder, checkpoint: Path, pictures: list[Image.Image], captions: list[str]
) -> None:
    read = load(str(checkpoint))
    for got, expected in zip(rows(read, pictures, captions), rows(tiny, pictures, captions), strict=True):
        assert expected.std() > 0.05
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    assert read.scale == pytest.approx(tiny.scale, rel=1e-6)
    assert (read.sides, read.width) == ("IT", 24)
    assert read.tokenize(captions)["input_ids"].equal(tiny.tokenize(captions)["input_ids"])


def test_the_layout_means_what_their_code_does_with_it(
    tiny: HuggingFaceEncoder, checkpoint: Path, pictures: list[Image.Image], captions: list[str]
) -> None:
    weights = weights_of(checkpoint)
    pixels = pixels_of(tiny, pictures)["pixel_values"]
    tokens = tiny.tokenize(captions)["input_ids"]
    images, texts = rows(tiny, pictures, captions)
    torch.testing.assert_close(naive_images(weights, pixels, heads=2), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(naive_texts(weights, tokens, tiny), texts, atol=1e-5, rtol=0)


def naive_images(weights: dict[str, Tensor], pixels: Tensor, heads: int) -> Tensor:
    """The image tower as a vision transformer is written with torch's own attention: ``[B, 3, h, w] -> [B, D]``."""
    visual = {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}
    width = len(visual["class_embedding"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), visual[f"{name}.weight"], visual[f"{name}.bias"])

    patches = F.conv2d(pixels, visual["conv1.weight"], stride=visual["conv1.weight"].shape[2]).flatten(2).mT
    x = torch.cat([visual["class_embedding"].expand(len(pixels), 1, width), patches], dim=1)
    x = norm(x + visual["positional_embedding"], "ln_pre")
    for block in range(2):
        name = f"transformer.resblocks.{block}"
        attention = torch.nn.MultiheadAttention(width, heads, batch_first=True)
        attention.load_state_dict(
            {key.removeprefix(f"{name}.attn."): value for key, value in visual.items() if f"{name}.attn." in key}
        )
        y = norm(x, f"{name}.ln_1")
        x = x + attention(y, y, y)[0]
        y = F.linear(norm(x, f"{name}.ln_2"), visual[f"{name}.mlp.c_fc.weight"], visual[f"{name}.mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y)
        x = x + F.linear(y, visual[f"{name}.mlp.c_proj.weight"], visual[f"{name}.mlp.c_proj.bias"])
    return (norm(x[:, 0], "ln_post") @ visual["proj"]).detach()


def naive_texts(weights: dict[str, Tensor], tokens: Tensor, like: HuggingFaceEncoder) -> Tensor:
    """The text tower as an ordinary BERT, its first token times the projection: ``[B, L] -> [B, D]``."""
    config: Any = like.module.config
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    bert = hf.BertModel(hf.BertConfig(**{key: getattr(config.text_config, key) for key in sizes}), False).eval()
    bert.load_state_dict({key.removeprefix("bert."): value for key, value in weights.items() if "bert." in key})
    hidden = bert(tokens, attention_mask=tokens.ne(0)).last_hidden_state
    return (hidden[:, 0] @ weights["text_projection"]).detach()


def flash(held: dict[str, Any]) -> dict[str, Any]:
    """The names and the joined tensors of a checkpoint that was trained with flash attention."""
    weights = {}
    for name, value in held["state_dict"].items():
        if ".self.key." in name or ".self.value." in name:
            continue
        if ".self.query." in name:
            parts = [held["state_dict"][name.replace("query", part)] for part in ("query", "key", "value")]
            name, value = name.replace("query", "Wqkv"), torch.cat(parts)
        for usual, theirs in (("in_proj_", "Wqkv."), ("attention.output.dense", "attention.self.out_proj")):
            name = name.replace(usual, theirs)
        weights[name] = value
    return {"state_dict": weights}


def bare(held: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("module.", "clip_model."): value for name, value in held["state_dict"].items()}


def with_surplus(held: dict[str, Any]) -> dict[str, Any]:
    more = {"module.bert.pooler.dense.weight": torch.ones(2), "module.bert.embeddings.position_ids": torch.ones(1, 9)}
    return held | {"state_dict": more | held["state_dict"], "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}


@pytest.mark.parametrize("change", [flash, bare, with_surplus, dict])
@pytest.mark.parametrize("zipped", [True, False])
def test_variants_of_the_file(
    tiny: HuggingFaceEncoder,
    checkpoint: Path,
    pictures: list[Image.Image],
    captions: list[str],
    change: Any,
    zipped: bool,
) -> None:
    resave(checkpoint, change, _use_new_zipfile_serialization=zipped)
    for got, expected in zip(
        rows(load(str(checkpoint)), pictures, captions), rows(tiny, pictures, captions), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_half_precision_is_read_as_float32(tiny: HuggingFaceEncoder, checkpoint: Path) -> None:
    resave(checkpoint, lambda held: {name: value.half() for name, value in held["state_dict"].items()})
    for name, value in load(str(checkpoint)).module.state_dict().items():
        assert value.dtype == torch.float32
        assert value.equal(tiny.module.state_dict()[name].half().float()), name


def test_the_layouts_are_inverse(tiny: HuggingFaceEncoder) -> None:
    weights = tiny.module.state_dict()
    back = to_transformers(to_original(weights))
    assert back.keys() == weights.keys()
    assert all(back[name].equal(value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("vision", "text", "heads"),
    [
        ((12, 768, 16, 14), (12, 768), (12, 12, 224)),
        ((24, 1024, 14, 16), (12, 768), (16, 12, 224)),
        ((24, 1024, 14, 24), (12, 768), (16, 12, 336)),
        ((32, 1280, 14, 16), (24, 1024), (16, 16, 224)),
    ],
    ids=["ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"],
)
def test_published_sizes_need_no_json(
    vision: tuple[int, int, int, int], text: tuple[int, int], heads: tuple[int, int, int]
) -> None:
    layers, width, patch, grid = vision
    shapes = {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.positional_embedding": (grid**2 + 1, width),
        "visual.proj": (width, 512),
        "text_projection": (text[1], 512),
        "bert.embeddings.word_embeddings.weight": (21128, text[1]),
        "bert.embeddings.position_embeddings.weight": (512, text[1]),
        "bert.embeddings.token_type_embeddings.weight": (2, text[1]),
        "bert.encoder.layer.0.intermediate.dense.weight": (4 * text[1], text[1]),
        **{f"visual.transformer.resblocks.{block}.ln_1.weight": (width,) for block in range(layers)},
        **{f"bert.encoder.layer.{block}.output.dense.bias": (text[1],) for block in range(text[0])},
    }
    config = configure({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}, {}, Path("clip_cn.pt"))
    towers = config.vision_config, config.text_config
    assert (towers[0].num_attention_heads, towers[1].num_attention_heads, towers[0].image_size) == heads
    assert (towers[0].num_hidden_layers, towers[1].num_hidden_layers) == (layers, text[0])
    assert (towers[1].vocab_size, towers[1].intermediate_size, config.projection_dim) == (21128, 4 * text[1], 512)


def test_heads_of_another_size_come_from_the_json(checkpoint: Path) -> None:
    beside = checkpoint.with_name("tiny-vision.json")
    (checkpoint.parent / "labels.json").write_text("[1, 2]")
    (checkpoint.parent / "a-vision.json").write_text('{"vision_width": 768, "vision_layers": 12}')  # another model's
    read: Any = load(str(checkpoint)).module
    assert read.config.vision_config.num_attention_heads == 2
    described = json.loads(beside.read_text())
    beside.write_text(json.dumps(described | {"vision_layers": 7}))
    (checkpoint.parent / "a-vision.json").unlink()
    with pytest.raises(ModelError, match=r"tiny-vision.json does not describe .*vision_layers is 7, in the weights 2"):
        load(str(checkpoint))
    beside.unlink()
    with pytest.raises(ModelError, match=r"its image tower is 32 wide, no published size.*model_configs"):
        load(str(checkpoint))


def test_the_vocabulary_must_be_there_and_fit(checkpoint: Path) -> None:
    vocabulary = checkpoint.parent / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text(encoding="utf-8") + "more\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"vocab.txt has \d+ entries, the text tower \d+"):
        load(str(checkpoint))
    vocabulary.unlink()
    with pytest.raises(ModelError, match=r"vocab.txt is missing.*hf download .* vocab.txt --local-dir"):
        load(str(checkpoint))


def test_weights_of_something_else(checkpoint: Path) -> None:
    kept = checkpoint.read_bytes()
    resave(checkpoint, lambda held: {"state_dict": held["state_dict"] | {"module.extra": torch.ones(1)}})
    with pytest.raises(ModelError, match="has unknown 1 tensors, among them extra"):
        load(str(checkpoint))
    checkpoint.write_bytes(kept)
    name = "module.visual.transformer.resblocks.1.attn.in_proj_bias"
    resave(checkpoint, lambda held: {key: value for key, value in held["state_dict"].items() if key != name})
    with pytest.raises(
        ModelError, match=r"lacks 1 tensors, among them visual.transformer.resblocks.1.attn.in_proj_bias"
    ):
        load(str(checkpoint))
    checkpoint.write_bytes(kept)
    resave(checkpoint, lambda held: held["state_dict"] | {"module.visual.ln_pre.weight": torch.ones(5)})
    with pytest.raises(ModelError, match="do not fit together"):
        load(str(checkpoint))
    torch.save({"weight": torch.ones(2)}, checkpoint)
    with pytest.raises(ModelError, match=r"is not a checkpoint of Chinese-CLIP: it has no visual.conv1.weight"):
        load(str(checkpoint))
    torch.save({"visual.layer1.0.conv1.weight": torch.ones(2)}, checkpoint)
    with pytest.raises(ModelError, match=r"a ResNet as image tower \(RN50\)"):
        load(str(checkpoint))


def test_a_missing_checkpoint() -> None:
    with pytest.raises(ModelError, match=r"no checkpoint at clip_cn_vit-b-16.pt"):
        load("clip_cn_vit-b-16.pt")


def test_what_is_saved_is_what_their_code_reads(checkpoint: Path) -> None:
    held = torch.load(checkpoint, weights_only=True)
    assert held.keys() == {"epoch", "step", "name", "state_dict"}
    assert all(name.startswith("module.") for name in held["state_dict"])
    vision, text = (json.loads(checkpoint.with_name(f"tiny-{tower}.json").read_text()) for tower in ("vision", "text"))
    sizes = measure(weights_of(checkpoint), checkpoint)
    assert sizes.items() <= (vision | text).items()
    assert (vision["vision_head_width"], text["text_num_attention_heads"]) == (16, 2)
    assert {path.name for path in checkpoint.parent.iterdir()} == {
        *("tiny.pt", "tiny-vision.json", "tiny-text.json", "vocab.txt")
    }


def test_what_their_code_cannot_hold_is_not_written(
    tiny: HuggingFaceEncoder, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    other: Any = load(str(model_folders["clip"]))
    with pytest.raises(ModelError, match="it is a clip, expected a chinese_clip"):
        save_chinese_clip(other, tmp_path / "clip.pt")
    other = load(str(model_folders["chinese_clip"]))
    with pytest.raises(ModelError, match="feed-forward layers are not four times as wide"):
        save_chinese_clip(other, tmp_path / "narrow.pt")
    with pytest.raises(ModelError, match=r"end in \.pt"):
        save_chinese_clip(tiny, tmp_path / "student")
    assert not list(tmp_path.iterdir())
    (tmp_path / "vocab.txt").write_text("another\n")
    with pytest.raises(ModelError, match="is the vocabulary of another model"):
        save_chinese_clip(tiny, tmp_path / "tiny.pt")
    assert not (tmp_path / "tiny.pt").exists()


def test_a_checkpoint_becomes_a_standard_folder(
    checkpoint: Path, tmp_path: Path, pictures: list[Image.Image], captions: list[str]
) -> None:
    read = load(f"file:{checkpoint}")
    read.save(tmp_path / "folder")
    again = load(str(tmp_path / "folder"))
    assert again.fingerprint == read.fingerprint
    for got, expected in zip(rows(again, pictures, captions), rows(read, pictures, captions), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_a_checkpoint_teaches_and_is_fine_tuned_and_written_again(checkpoint: Path, tmp_path: Path) -> None:
    words = ["recipe=chinese-clip-kd", f"teachers.T={checkpoint}", f"student.pretrained={checkpoint}"]
    words += ["data=scenes:train?n=16&lang=zh", "train.steps=2", "train.batch_size=8", "train.workers=0"]
    assert main(["distill", *words, "train.warmup=0", f"out={tmp_path / 'run'}"]) == 0
    student: Any = load(str(tmp_path / "run"))
    save_chinese_clip(student, tmp_path / "tuned" / "student.pt")
    tuned, before = weights_of(tmp_path / "tuned" / "student.pt"), weights_of(checkpoint)
    assert tuned.keys() == before.keys()
    assert not tuned["visual.conv1.weight"].equal(before["visual.conv1.weight"])
    assert load(str(tmp_path / "tuned" / "student.pt")).fingerprint == student.fingerprint
