"""Tiny random models of every family, written by transformers itself in the formats that the hub uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

CAPTIONS = ["A Photo of two Dogs, on a beach!", "a red circle", "两只狗在海滩上", "x"]
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def _clip(folder: Path) -> None:
    tokenizer = _byte_tokenizer()
    ids = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    text = TOWER | ids | {"vocab_size": 514, "max_position_embeddings": 77}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    size, crop = {"shortest_edge": 36}, {"height": 32, "width": 32}
    _save(folder, hf.CLIPModel(config), tokenizer, hf.CLIPImageProcessorPil(size=size, crop_size=crop))


def _byte_tokenizer() -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    return hf.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _bert_tokenizer(folder: Path) -> Any:
    words = [
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
        *"两只狗在海滩上,!",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    entries = ["[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]", *words]
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    return hf.BertTokenizer.from_pretrained(folder, model_max_length=512)


def _chinese_clip(folder: Path) -> None:
    tokenizer = _bert_tokenizer(folder)
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "pad_token_id": 0}
    vision = TOWER | {"image_size": 32, "patch_size": 16}
    config = hf.ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    size = {"height": 32, "width": 32}
    processor = hf.ChineseCLIPImageProcessorPil(size=size, do_center_crop=False)
    _save(folder, hf.ChineseCLIPModel(config), tokenizer, processor)


def _dual(folder: Path) -> None:
    tokenizer = _bert_tokenizer(folder)
    text = hf.BertConfig(**TOWER, vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=0)
    vision = hf.ViTConfig(**TOWER, image_size=32, patch_size=8)
    config = hf.VisionTextDualEncoderConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=20
    )
    processor = hf.ViTImageProcessorPil(size={"height": 32, "width": 32})
    _save(folder, hf.VisionTextDualEncoderModel(config), tokenizer, processor)


def _siglip(folder: Path) -> None:
    text = TOWER | {"vocab_size": 64, "max_position_embeddings": 64, "projection_size": 32}
    config = hf.SiglipConfig(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 16})
    processor = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    _save(folder, hf.SiglipModel(config), _unigram_tokenizer(), processor)


def _unigram_tokenizer() -> Any:
    """A tokenizer.json like the one beside google/siglip: lower case, no punctuation, end token also pads."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz")]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("!", "")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, model_input_names=["input_ids"], model_max_length=64
    )


def _gemma_vocabulary() -> dict[str, int]:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = [
        *"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,!",
        *(f"<0x{n:02X}>" for n in range(256)),
    ]
    return {entry: index for index, entry in enumerate([*special, *letters])}


GEMMA = {
    "add_eos_token": True,
    "add_bos_token": False,
    "padding_side": "right",
    "model_input_names": ["input_ids"],
}


def _siglip2(folder: Path) -> None:
    vocabulary = _gemma_vocabulary()
    text = TOWER | {"vocab_size": len(vocabulary), "max_position_embeddings": 64, "projection_size": 32}
    vision = TOWER | {"num_patches": 16, "patch_size": 8}
    config = hf.Siglip2Config(text_config=text, vision_config=vision)
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    _save(folder, hf.Siglip2Model(config), Siglip2Tokenizer(vocab=vocabulary, merges=[], **GEMMA), processor)


def _siglip2_square(folder: Path) -> None:
    """SigLIP 2 at one resolution: model_type siglip with Gemma's tokenizer, which keeps case."""
    vocabulary = _gemma_vocabulary()
    text = TOWER | {"vocab_size": len(vocabulary), "max_position_embeddings": 64, "projection_size": 32}
    config = hf.SiglipConfig(text_config=text, vision_config=TOWER | {"image_size": 32, "patch_size": 16})
    processor = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    tokenizer = hf.GemmaTokenizer(vocab=vocabulary, merges=[], **GEMMA)
    _save(folder, hf.SiglipModel(config), tokenizer, processor)


def _save(folder: Path, module: Any, tokenizer: Any, processor: Any) -> None:
    with torch.no_grad():  # at the usual initial scale the captions of so small a model would all look alike
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    module.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    "clip": _clip,
    "chinese_clip": _chinese_clip,
    "siglip": _siglip,
    "siglip2": _siglip2,
    "vision-text-dual-encoder": _dual,
    "siglip2-square": _siglip2_square,
}


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder for each family; read only."""
    root = tmp_path_factory.mktemp("models")
    for name, make in MAKERS.items():
        torch.manual_seed(len(name))
        make(root / name)
    return {name: root / name for name in MAKERS}


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Pictures with edges, gradients and noise, of different shapes."""
    return [_picture(number, size) for number, size in enumerate([(97, 64), (41, 83), (50, 50), (200, 33)])]


def _picture(seed: int, size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(seed)
    width, height = size
    ramp = np.linspace(0, 200, width)[None, :, None] + noise.uniform(0, 50, (height, width, 3))
    image = Image.fromarray(ramp.astype(np.uint8))
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill=(255, 30 * seed, 0))
    return image


@pytest.fixture
def captions() -> list[str]:
    """Captions of different lengths, cases and languages."""
    return list(CAPTIONS)
