"""Chinese-CLIP's own checkpoints, ``clip_cn_*.pt``, to and from transformers' ChineseCLIPModel.

A checkpoint says nothing about itself but the shapes of its weights. The numbers of attention heads are not among them:
they are known for the published sizes, else told by two JSON files as in ``cn_clip/clip/model_configs``, which must lie
beside it. So must the vocabulary, a file of the ``cn_clip`` package.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer, ChineseCLIPConfig, ChineseCLIPImageProcessorPil, ChineseCLIPModel
from transformers.image_utils import PILImageResampling

from clipdistill.errors import ModelError
from clipdistill.files import write_text
from clipdistill.models.chinese_clip_layout import original_name, plain_names, to_original, to_transformers
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.preprocessing import transform_of
from clipdistill.models.quiet import quiet
from clipdistill.models.torch_files import read_tensors
from clipdistill.models.vocabulary import read_word_pieces
from clipdistill.models.weights import attention_for

#: Weights from whose shapes the sizes are read.
_MEASURED = (
    *("visual.conv1.weight", "visual.positional_embedding", "visual.proj", "text_projection"),
    *("visual.transformer.resblocks.0.ln_1.weight", "bert.encoder.layer.0.intermediate.dense.weight"),
    *(f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")),
)
#: Width of an attention head by width of the tower, in every published model.
_HEAD_WIDTHS = {768: 64, 1024: 64, 1280: 80}
_VOCABULARY = (
    "Copy cn_clip/clip/vocab.txt of Chinese-CLIP there, or run: "
    "hf download OFA-Sys/chinese-clip-vit-base-patch16 vocab.txt --local-dir {folder}"
)


def load(uri: str, path: Path, device: str = "cpu") -> HuggingFaceEncoder:
    """Open a checkpoint of Chinese-CLIP, in evaluation mode and float32; ``uri`` names it.

    ``vocab.txt`` must lie beside it. Raises :class:`ModelError`.
    """
    weights, config = _read(path)
    return assemble(uri, weights, config, bert_tokenizer(path.parent, config), path, device)


def read_config(path: Path) -> ChineseCLIPConfig:
    """Return the configuration of the model in a checkpoint of Chinese-CLIP; raises :class:`ModelError`."""
    return _read(path)[1]


def _read(path: Path) -> tuple[dict[str, Tensor], ChineseCLIPConfig]:
    weights = plain_names(read_tensors(path), path)
    return weights, configure(weights, _configs_beside(path, measure(weights, path)), path)


def measure(weights: Mapping[str, Tensor], path: Path) -> dict[str, int]:
    """Read the sizes from the shapes of the weights, under the names that Chinese-CLIP's JSON files use.

    Raises :class:`ModelError` where the weights are those of another model.
    """
    if missing := [name for name in _MEASURED if name not in weights]:
        raise ModelError(
            f"{path} is not a checkpoint of Chinese-CLIP: it has no {', '.join(missing[:3])}. It holds "
            f"{len(weights)} tensors, among them {', '.join(list(weights)[:3])}. "
            "Other models are opened as folders that transformers wrote, or by their name on the hub."
        )
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    words, hidden = weights["bert.embeddings.word_embeddings.weight"].shape
    return {
        "embed_dim": weights["visual.proj"].shape[1],
        "image_resolution": patch * math.isqrt(len(weights["visual.positional_embedding"]) - 1),
        "vision_layers": _blocks(weights, "visual.transformer.resblocks."),
        "vision_width": width,
        "vision_patch_size": patch,
        "vocab_size": words,
        "text_hidden_size": hidden,
        "text_intermediate_size": len(weights["bert.encoder.layer.0.intermediate.dense.weight"]),
        "text_max_position_embeddings": len(weights["bert.embeddings.position_embeddings.weight"]),
        "text_num_hidden_layers": _blocks(weights, "bert.encoder.layer."),
        "text_type_vocab_size": len(weights["bert.embeddings.token_type_embeddings.weight"]),
    }


def _blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].partition(".")[0] for name in weights if name.startswith(prefix)})


def _configs_beside(path: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Merge the JSON files beside a checkpoint that agree with its weights; those of other models may lie there too.

    Raises :class:`ModelError` where none agrees and the tower is not of a published size.
    """
    merged: dict[str, Any] = {}
    files = {file: json_object(file) for file in sorted(path.parent.glob("*.json"))}
    for width in ("vision_width", "text_hidden_size"):
        given = {file: config for file, config in files.items() if width in config}
        fitting = [config for config in given.values() if not _differences(config, sizes)]
        if given and not fitting and sizes[width] not in _HEAD_WIDTHS:
            file, config = next(iter(given.items()))
            raise ModelError(
                f"{file} does not describe {path}: {'; '.join(_differences(config, sizes))}. "
                "Put the JSON files that it was trained with beside it (cn_clip/clip/model_configs)."
            )
        merged |= fitting[0] if fitting else {}
    return merged


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if it holds something else; raises :class:`ModelError` if it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}. Copy it again from where it came.") from error
    return found if isinstance(found, dict) else {}


def _differences(config: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    return [
        f"{name} is {config[name]}, in the weights {size}"
        for name, size in sizes.items()
        if name in config and config[name] != size
    ]


def configure(weights: Mapping[str, Tensor], given: Mapping[str, Any], path: Path) -> ChineseCLIPConfig:
    """Return the configuration of a ChineseCLIPModel: sizes from the weights, the rest as ``given`` says.

    ``given`` are the two JSON files of Chinese-CLIP, merged; a tower of a published size needs none. Raises
    :class:`ModelError` where they contradict the weights, or where the attention heads are told by nothing.
    """
    sizes = measure(weights, path)
    if differences := _differences(given, sizes):
        raise ModelError(f"{path} and its configuration disagree: {'; '.join(differences)}. Take both from one model.")
    try:
        return ChineseCLIPConfig(
            projection_dim=sizes["embed_dim"],
            vision_config=_vision(sizes, given, path),
            text_config=_text(sizes, given, path),
        )
    except ModelError:
        raise
    except Exception as error:  # a value of the wrong type or size: the library's own validation classes
        raise ModelError(f"{path}: its configuration is not one of Chinese-CLIP: {error}") from error


def _vision(sizes: Mapping[str, int], given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    width = sizes["vision_width"]
    usual = 64 if "vision_width" in given else None  # where their JSON does not say
    head = given.get("vision_head_width") or usual or _head_width(width, "image", path)
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": sizes["vision_layers"],
        "num_attention_heads": width // head,
        "image_size": sizes["image_resolution"],
        "patch_size": sizes["vision_patch_size"],
        "projection_dim": sizes["embed_dim"],
        "hidden_act": "quick_gelu",
    }


def _text(sizes: Mapping[str, int], given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    width = sizes["text_hidden_size"]
    heads = given.get("text_num_attention_heads") or width // _head_width(width, "text", path)
    return {
        "vocab_size": sizes["vocab_size"],
        "hidden_size": width,
        "intermediate_size": sizes["text_intermediate_size"],
        "num_hidden_layers": sizes["text_num_hidden_layers"],
        "num_attention_heads": heads,
        "max_position_embeddings": sizes["text_max_position_embeddings"],
        "type_vocab_size": sizes["text_type_vocab_size"],
        "hidden_act": given.get("text_hidden_act", "gelu"),
        "hidden_dropout_prob": given.get("text_hidden_dropout_prob", 0.1),
        "attention_probs_dropout_prob": given.get("text_attention_probs_dropout_prob", 0.1),
        "layer_norm_eps": given.get("text_layer_norm_eps", 1e-12),
        "pad_token_id": 0,
    }


def _head_width(width: int, tower: str, path: Path) -> int:
    if width not in _HEAD_WIDTHS:
        raise ModelError(
            f"{path}: its {tower} tower is {width} wide, no published size, so how many attention heads it has is not "
            "known. Put the JSON files that it was trained with beside it (cn_clip/clip/model_configs)."
        )
    return _HEAD_WIDTHS[width]


def bert_tokenizer(folder: Path, config: ChineseCLIPConfig) -> Any:
    """Make Chinese-CLIP's tokenizer, a lower-casing BERT, from ``vocab.txt`` in ``folder``.

    Raises :class:`ModelError` if it is not there or not the one that belongs to the weights.
    """
    path, rows = folder / "vocab.txt", config.text_config.vocab_size
    if not path.is_file():
        raise ModelError(f"{path} is missing; captions cannot be read without. {_VOCABULARY.format(folder=folder)}")
    tokenizer = read_word_pieces(path)
    if len(tokenizer) != rows:
        raise ModelError(
            f"{path} has {len(tokenizer)} entries, the text tower {rows}: it belongs to another model. "
            f"{_VOCABULARY.format(folder=folder)}"
        )
    return tokenizer


def assemble(
    uri: str, weights: Mapping[str, Tensor], config: ChineseCLIPConfig, tokenizer: Any, path: Path, device: str
) -> HuggingFaceEncoder:
    """Put Chinese-CLIP's weights into a ChineseCLIPModel; raises :class:`ModelError` unless they are just its own."""
    module = fill(ChineseCLIPModel, config, weights, path, device)
    return HuggingFaceEncoder(uri, module, tokenizer, square_processor(config.vision_config.image_size))


def square_processor(size: int, resample: PILImageResampling = PILImageResampling.BICUBIC) -> Any:
    """Return Chinese-CLIP's image processor: the whole picture made square, CLIP's mean and deviation."""
    return ChineseCLIPImageProcessorPil(size={"height": size, "width": size}, do_center_crop=False, resample=resample)


def fill(model: Any, config: Any, weights: Mapping[str, Tensor], path: Path, device: str) -> Any:
    """Build a class of transformers from weights under Chinese-CLIP's names, in evaluation mode and float32.

    Raises :class:`ModelError` unless each of its weights is there and nothing else.
    """
    with torch.device("meta"):
        expected = {original_name(name) for name in model(config).state_dict()}
    missing, unknown = sorted(expected - set(weights)), sorted(set(weights) - expected)
    for names, what in ((missing, "lacks"), (unknown, "has unknown")):
        if names:
            raise ModelError(
                f"{path} {what} {len(names)} tensors, among them {', '.join(names[:3])}. "
                f"Expected the {len(expected)} of a {model.__name__} in Chinese-CLIP's layout."
            )
    try:
        with quiet():
            module = model.from_pretrained(
                None,
                config=config,
                state_dict=to_transformers(weights),
                dtype=torch.float32,
                attn_implementation=attention_for(config, device),
            )
    except RuntimeError as error:  # tensors of other shapes
        raise ModelError(f"{path}: its weights do not fit together: {error}") from error
    return module.to(device).eval()


def save_chinese_clip(encoder: HuggingFaceEncoder, path: str | Path) -> None:
    """Write a Chinese-CLIP student as ``NAME.pt`` for Chinese-CLIP's own code.

    Beside it go ``NAME-vision.json`` and ``NAME-text.json``, which belong into ``cn_clip/clip/model_configs``, and
    ``vocab.txt``. The checkpoint comes last: where it is, all is. Raises :class:`ModelError` for a model that their
    code does not express, and where another model's ``vocab.txt`` is in the folder.
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise ModelError(f"cannot save to {path}: checkpoints of Chinese-CLIP end in .pt, as in student.pt.")
    if reasons := _inexpressible(encoder):
        raise ModelError(
            f"{encoder.uri} cannot be written for Chinese-CLIP's code: {'; '.join(reasons)}. "
            "Use it with transformers: it is a standard model folder."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_vocabulary(path.parent / "vocab.txt", encoder.tokenizer.get_vocab())
    for tower, values in _their_configs(encoder.module.config).items():
        write_text(path.with_name(f"{path.stem}-{tower}.json"), json.dumps(values, indent=4) + "\n")
    weights = {f"module.{name}": value.cpu() for name, value in to_original(encoder.module.state_dict()).items()}
    beside = path.with_name(f".{path.name}.tmp")
    torch.save({"epoch": 0, "step": 0, "name": path.stem, "state_dict": weights}, beside)
    beside.replace(path)


def _inexpressible(encoder: HuggingFaceEncoder) -> list[str]:
    """Say what in a model Chinese-CLIP's code has no setting for; nothing if it can hold the model."""
    config: Any = encoder.module.config
    tokenizer = encoder.tokenizer
    if config.model_type != "chinese_clip":
        return [f"it is a {config.model_type}, expected a chinese_clip"]
    vision, text = config.vision_config, config.text_config
    ids = sorted(tokenizer.get_vocab().values())
    checks = {
        "its image tower's feed-forward layers are not four times as wide as the tower": (
            vision.intermediate_size == 4 * vision.hidden_size
        ),
        f"its image tower's activation is {vision.hidden_act}, not quick_gelu": vision.hidden_act == "quick_gelu",
        "its normalisation layers have other epsilons": (vision.layer_norm_eps, text.layer_norm_eps) == (1e-5, 1e-12),
        "it prepares pictures in another way": (
            encoder.transform == transform_of(square_processor(vision.image_size), encoder.uri)
        ),
        f"its tokenizer, a {type(tokenizer).__name__}, is not a lower-casing BertTokenizer": (
            isinstance(tokenizer, BertTokenizer) and tokenizer("Ab")["input_ids"] == tokenizer("ab")["input_ids"]
        ),
        "its vocabulary is not as long as its table of words": ids == list(range(text.vocab_size)),
    }
    return [reason for reason, holds in checks.items() if not holds]


def _write_vocabulary(path: Path, vocabulary: Mapping[str, int]) -> None:
    words = "".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.__getitem__))
    if path.is_file() and path.read_text(encoding="utf-8").split() != words.split():
        raise ModelError(f"{path} is the vocabulary of another model, and will not be replaced. Choose another folder.")
    write_text(path, words)


def _their_configs(config: Any) -> dict[str, dict[str, Any]]:
    """Return the contents of the two JSON files that describe a ChineseCLIPModel to Chinese-CLIP's code."""
    vision, text = config.vision_config, config.text_config
    return {
        "vision": {
            "embed_dim": config.projection_dim,
            "image_resolution": vision.image_size,
            "vision_layers": vision.num_hidden_layers,
            "vision_width": vision.hidden_size,
            "vision_head_width": vision.hidden_size // vision.num_attention_heads,
            "vision_patch_size": vision.patch_size,
        },
        "text": {
            "vocab_size": text.vocab_size,
            "text_attention_probs_dropout_prob": text.attention_probs_dropout_prob,
            "text_hidden_act": text.hidden_act,
            "text_hidden_dropout_prob": text.hidden_dropout_prob,
            "text_hidden_size": text.hidden_size,
            "text_initializer_range": text.initializer_range,
            "text_intermediate_size": text.intermediate_size,
            "text_max_position_embeddings": text.max_position_embeddings,
            "text_num_attention_heads": text.num_attention_heads,
            "text_num_hidden_layers": text.num_hidden_layers,
            "text_type_vocab_size": text.type_vocab_size,
        },
    }
