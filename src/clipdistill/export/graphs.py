"""One tower of a model as an ONNX graph: inputs in, rows of unit length out.

Shapes: ``B`` rows, ``L`` tokens, ``P`` patches, ``D`` joint width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdistill.errors import ModelError, need
from clipdistill.models.encoder import DualEncoder

OPSET = 20
Side = Literal["image", "text"]


class Tower(nn.Module):
    """One side of a dual encoder, whose inputs come in the order of ``names``."""

    def __init__(self, encoder: DualEncoder, side: Side, names: tuple[str, ...]) -> None:
        super().__init__()
        self.towers = encoder.module
        self._embed = encoder.images if side == "image" else encoder.texts
        self._names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Embed a batch: rows of unit length, ``[B, D]``."""
        return F.normalize(self._embed(dict(zip(self._names, inputs, strict=True))), dim=1)


def write_graph(encoder: DualEncoder, side: Side, inputs: Mapping[str, Tensor], path: Path, own_length: bool) -> None:
    """Write one tower as an ONNX file whose batch is dynamic, and with ``own_length`` the number of tokens too.

    ``inputs`` are an example, of two rows at least. The output is ``image_embeds`` or ``text_embeds``. Raises
    :class:`ModelError` for a tower that torch cannot turn into a graph.
    """
    for package in ("onnx", "onnxscript"):
        need(package, "export")
    dynamic = {0: "batch", 1: "sequence"} if own_length else {0: "batch"}
    tower = Tower(encoder, side, tuple(inputs)).eval()
    try:
        with graph_form(encoder), _quiet():
            program: Any = torch.onnx.export(
                tower,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=[f"{side}_embeds"],
                dynamic_shapes=(tuple(dynamic for _ in inputs),),
                verbose=False,
            )
            _strip(program.model)
            program.save(str(path))
    except Exception as error:  # torch's own classes for what cannot be traced, decomposed or written
        reason = " ".join(str(error.__cause__ or error).split())[:600]
        raise ModelError(
            f"{encoder.uri}: its {side} tower, a {type(encoder.module).__name__}, cannot be written as an ONNX graph "
            f"by torch {torch.__version__} ({type(error).__name__}: {reason})."
        ) from error


def _strip(model: Any) -> None:
    """Take out where in which source file each node comes from: paths of this machine, and half of a small file."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch and its exporter say about their own workings."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def graph_form(encoder: DualEncoder) -> Iterator[None]:
    """Let a model compute the same in a way that a graph of any batch and length can hold.

    Attention by plain products; SigLIP 2's positions without a loop over the pictures; open_clip's causal mask no
    longer than the captions.
    """
    modules: list[Any] = list(encoder.module.modules())
    for module in modules:
        if hasattr(module, "set_attn_implementation"):
            module.set_attn_implementation("eager")
    resizing = [part for part in modules if hasattr(part, "resize_positional_embeddings")]
    for part in resizing:
        part.resize_positional_embeddings = resize_positions
    masked = [part.transformer for part in modules if isinstance(getattr(part, "attn_mask", None), Tensor)]
    hooks = [part.register_forward_pre_hook(_cut_mask, with_kwargs=True) for part in masked]
    try:
        yield
    finally:
        for part in resizing:
            del part.resize_positional_embeddings
        for hook in hooks:
            hook.remove()


def _cut_mask(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Cut a causal mask to the length of the captions ``[B, L, W]``."""
    mask, length = named.get("attn_mask"), inputs[0].shape[1]
    if mask is not None and mask.dim() == 2:
        named = {**named, "attn_mask": mask[:length, :length]}
    return inputs, named


def resize_positions(positions: Tensor, shapes: Tensor, max_length: int) -> Tensor:
    """Resize positions ``[h, w, D]`` to each picture's grid, ``shapes [B, 2]`` of rows and columns: ``[B, P, D]``.

    Bilinear with antialiasing as in Pillow and ``F.interpolate``: a product of weights over rows and over columns.
    (torch 2.13 computes other numbers on a CPU where there is one column and other than ``h`` rows: a picture at
    least as many times as high as wide.) Padding behind a picture's own patches is given the first position.
    """
    patch = torch.arange(max_length, device=shapes.device)
    rows, columns = shapes[:, :1], shapes[:, 1:]
    place = torch.where(patch < rows * columns, patch, torch.zeros_like(patch))
    down = _weights(place // columns, rows, positions.shape[0])
    across = _weights(place % columns, columns, positions.shape[1])
    both = (down[:, :, :, None] * across[:, :, None, :]).flatten(2)
    return both @ positions.flatten(0, 1)


def _weights(place: Tensor, length: Tensor, given: int) -> Tensor:
    """Weigh ``given`` samples for each ``place [B, P]`` on a line that was resized to ``length [B, 1]``: [B, P, given].

    A triangle around the place, as wide as its neighbours are apart, or as the samples where those are wider.
    """
    step = (given / length.to(torch.float32))[:, :, None]
    centre = step * (place.to(torch.float32)[:, :, None] + 0.5)
    samples = torch.arange(given, device=place.device, dtype=torch.float32) + 0.5
    weights = F.relu(1 - (samples - centre).abs() / step.clamp(min=1))
    return weights / weights.sum(dim=2, keepdim=True)
