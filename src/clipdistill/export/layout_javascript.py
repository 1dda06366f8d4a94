"""The layout of transformers.js: ONNX graphs in ``onnx/`` beside the configuration, tokenizer and image processor.

Shapes: ``I`` pictures, ``T`` captions, ``D`` joint width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clipdistill.errors import need
from clipdistill.export.graphs import Side, write_graph
from clipdistill.export.layout_rows import Rows
from clipdistill.export.layout_tokens import write_lowered
from clipdistill.export.reading import TOKENIZER, write_tokenizer
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.vocabulary import write_tokenizer as write_tokenizer_files
from clipdistill.search.engines import parts
from clipdistill.search.runtime import SECTION, Runtime
from clipdistill.search.tokens import Reader, TextRules

_GRAPHS: dict[Side, str] = {"image": "onnx/vision_model.onnx", "text": "onnx/text_model.onnx"}
_JOINT = "onnx/model.onnx"
#: What the library has classes for.
FAMILIES = ("clip", "siglip", "chinese_clip")
#: Classes under the names that the library knows, where those of transformers are others.
_CLASSES = {
    "TokenizersBackend": "PreTrainedTokenizer",
    "ChineseCLIPImageProcessor": "ChineseCLIPFeatureExtractor",
}
#: A graph is one protobuf message, which holds two gigabytes; both towers go into one.
_LARGEST = 1_900_000_000


def refuse_for_javascript(encoder: DualEncoder) -> str | None:
    """Say why transformers.js cannot hold a model; None if it can."""
    if not isinstance(encoder, HuggingFaceEncoder):
        return "it is no dual encoder of transformers"
    config: Any = encoder.module.config
    if config.model_type not in FAMILIES:
        return f"it is a {config.model_type}, expected one of {', '.join(FAMILIES)}"
    size = sum(parameter.numel() for parameter in encoder.module.parameters()) * 4
    return f"its weights are {size / 1e9:.1f} GB, expected less than 1.9" if size > _LARGEST else None


def write_javascript(encoder: DualEncoder, folder: Path) -> Rows:
    """Write three graphs, one for each tower and one of both that gives logits; return what onnxruntime makes of two.

    The third is made of the same nodes.
    """
    module: Any = encoder.module
    described: Any = encoder
    (folder / "onnx").mkdir()
    module.config.save_pretrained(folder)
    described.processor.save_pretrained(folder)
    write_tokenizer_files(encoder.tokenizer, folder)
    rules = write_lowered(folder, write_tokenizer(encoder, folder))
    change(folder / "tokenizer_config.json", {"model_max_length": rules.length, "padding_side": rules.pad_side})
    change(folder / "preprocessor_config.json", {})
    pixels = {"pixel_values": torch.zeros(2, 3, *described.transform.size)}
    write_graph(encoder, "image", pixels, folder / _GRAPHS["image"], own_length=False)
    example = Reader(folder / TOKENIZER, rules)(["a photo of two dogs", "a red circle left of a blue star"])
    tokens = {name: torch.from_numpy(array) for name, array in example.items()}
    write_graph(encoder, "text", tokens, folder / _GRAPHS["text"], own_length=not rules.fixed)
    for name in _GRAPHS.values():
        _in_one_file(folder / name)
    write_joint(folder, encoder.scale, None if encoder.bias is None else float(encoder.bias.item()))
    return _open(encoder, folder, rules)


def _in_one_file(path: Path) -> None:
    """Put weights that lie beside a graph into it: the library looks for them only where its caller says so."""
    onnx: Any = need("onnx", "export")
    if beside := parts(path) - {path}:
        onnx.save(onnx.load(path), path)
        for part in beside:
            part.unlink()


def change(path: Path, values: Mapping[str, Any]) -> None:
    """Change values in a JSON file, and rename the classes in it to the library's own."""
    found = {**json.loads(path.read_text(encoding="utf-8")), **values}
    named = {key: _CLASSES.get(value, value) if isinstance(value, str) else value for key, value in found.items()}
    path.write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_joint(folder: Path, scale: float, bias: float | None) -> None:
    """Join both towers' graphs into one: pictures ``I`` and captions ``T`` to ``logits_per_image [I, T]``.

    Logits are ``scale`` times the cosines, plus ``bias`` where there is one (SigLIP). The other outputs are
    ``logits_per_text [T, I]``, ``image_embeds [I, D]`` and ``text_embeds [T, D]``.
    """
    onnx: Any = need("onnx", "export")
    compose: Any = need("onnx.compose", "export")
    parts = []
    for side, path in _GRAPHS.items():
        part = onnx.load(folder / path)
        for value in (*part.graph.input, *part.graph.output, *part.graph.value_info):
            for axis in value.type.tensor_type.shape.dim:
                if axis.dim_param:  # else pictures and captions would seem to be equally many
                    axis.dim_param = f"{side}_{axis.dim_param}"
        parts.append(compose.add_prefix(part, f"{side}/", rename_inputs=False, rename_outputs=False))
    joint = compose.merge_models(*parts, io_map=[])
    _add_logits(onnx.helper, joint.graph, scale, bias)
    onnx.checker.check_model(joint)
    onnx.save(joint, folder / _JOINT)


def _add_logits(helper: Any, graph: Any, scale: float, bias: float | None) -> None:
    numbers = {"logit_scale": scale} | ({} if bias is None else {"logit_bias": bias})
    graph.initializer.extend(helper.make_tensor(name, 1, [], [value]) for name, value in numbers.items())
    steps: list[tuple[str, list[str], str]] = [("MatMul", ["image_embeds", "text_columns"], "cosines")]
    steps.append(("Mul", ["cosines", "logit_scale"], "logits_per_image" if bias is None else "scaled"))
    if bias is not None:
        steps.append(("Add", ["scaled", "logit_bias"], "logits_per_image"))
    graph.node.append(helper.make_node("Transpose", ["text_embeds"], ["text_columns"], perm=[1, 0]))
    graph.node.extend(helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps)
    graph.node.append(helper.make_node("Transpose", ["logits_per_image"], ["logits_per_text"], perm=[1, 0]))
    rows, columns = "image_batch", "text_batch"
    for name, shape in (("logits_per_image", [rows, columns]), ("logits_per_text", [columns, rows])):
        graph.output.append(helper.make_tensor_value_info(name, 1, shape))


def _open(encoder: DualEncoder, folder: Path, rules: TextRules) -> Rows:
    assert encoder.transform is not None
    section = {
        "scale": encoder.scale,
        "bias": None,
        "image": {"file": _GRAPHS["image"], "transform": encoder.transform.to_dict()},
        "text": {"file": _GRAPHS["text"], "tokenizer": TOKENIZER, "rules": rules.to_dict()},
    }
    runtime = Runtime(folder, {"width": encoder.width, SECTION: section})
    return Rows(runtime.images, runtime.texts)
