"""Weight inheritance: a smaller student starts from chosen layers and channels of a bigger model (TinyCLIP).

Every tensor of a transformer tower is a product of a few axes: ``h`` the hidden width, ``a`` the joined heads, ``q``
queries, keys and values stacked (three times ``a``), ``m`` the width inside the MLP, ``e`` the joint space. A
:class:`Cut` says what is kept of each, so one rule per kind of tensor covers every layout of the field. The kept
channels may be the first ones (:func:`first_channels`) or those that learned masks chose (``models.prune``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipdistill.errors import ModelError
from clipdistill.models.huggingface import HuggingFaceEncoder

Layers = Literal["tinyclip", "even"]

#: Name of a tensor -> its axes. ``*h``: the last one is hidden, ``h*``: the first; a bias has the first axis alone.
_AXES = [
    (re.compile(pattern), axes)
    for pattern, axes in (
        (r"\bin_proj_(weight|bias)$", "qh"),
        (r"\b([qkv]_proj|query|key|value)\.(weight|bias)$", "ah"),
        (r"\b(out_proj|o_proj|attention\.output\.dense)\.(weight|bias)$", "ha"),
        (r"\b(fc1|c_fc|intermediate\.dense)\.(weight|bias)$", "mh"),
        (r"\b(fc2|c_proj|output\.dense)\.(weight|bias)$", "hm"),
        (r"\bpooler\.dense\.(weight|bias)$", "hh"),
        (r"\b(visual_projection|text_projection|text_model\.head)\.(weight|bias)$", "eh"),
        (r"\b(visual\.proj|text_projection)$", "he"),
        (r"\b(conv1|patch_embeddings?(\.projection)?)\.(weight|bias)$", "h*"),
        (r"(embeddings?(\.weight)?|cls_token|probe|([nN]orm|ln)\w*\.(weight|bias))$", "*h"),
    )
]
_LAYER = re.compile(r"\b(layers?|resblocks)\.(\d+)\.")
_TOWERS = {"vision": ("vision_model.", "visual_projection."), "text": ("text_model.", "text_projection.")}
#: Families whose tensors the rules above name.
_FAMILIES = ("clip", "chinese_clip", "siglip", "vision-text-dual-encoder")


@dataclass(frozen=True)
class Sizes:
    """The sizes of one transformer tower."""

    layers: int
    hidden: int
    heads: int
    mlp: int

    @classmethod
    def of(cls, config: Any) -> Sizes:
        """Read the sizes from a tower's transformers configuration."""
        return cls(config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size)

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.hidden // self.heads


@dataclass(frozen=True)
class Cut:
    """What a student keeps of a tower: indices into the bigger model's axes.

    ``layers`` holds, for each layer of the student, the layer it comes from; ``hidden`` the kept channels;
    ``attention`` and ``mlp`` one ``int64`` tensor for each layer of the student, ``attention`` counting through all
    channels of all heads. Tensors outside the layers use the first of each.
    """

    layers: tuple[int, ...]
    hidden: Tensor
    attention: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]


def first_channels(big: Sizes, small: Sizes, layers: Layers = "tinyclip") -> Cut:
    """Choose layers by a rule, and the first channels of every axis.

    Heads are kept whole where both have heads of the same width; narrower heads keep the first channels of each of
    the first heads. A student with wider or more heads than the model keeps the first channels of the joined ones.
    Source: wkcn/TinyCLIP, weight_inherit.py.
    """
    if small.heads <= big.heads and small.head_width <= big.head_width:
        attention = joined(torch.arange(small.heads), big.head_width, small.head_width)
    else:
        attention = torch.arange(small.hidden)
    return Cut(
        choose_layers(big.layers, small.layers, layers),
        torch.arange(small.hidden),
        (attention,) * small.layers,
        (torch.arange(small.mlp),) * small.layers,
    )


def choose_layers(big: int, small: int, rule: Layers) -> tuple[int, ...]:
    """Return the layer of the bigger tower for each layer of the smaller one.

    ``tinyclip``: 0, step, 2 step... with step the rounded-down ratio, so 12 to 9 takes the first nine. ``even``:
    spread from the first to the last.
    """
    if rule == "tinyclip":
        return tuple(number * (big // small) for number in range(small))
    return tuple(round(number * (big - 1) / max(1, small - 1)) for number in range(small))


def joined(heads: Tensor, width: int, kept: int | None = None) -> Tensor:
    """Return the channels of ``heads`` among those of all heads, each ``width`` wide; of each the first ``kept``."""
    return (heads[:, None] * width + torch.arange(kept or width)).flatten()


def cut_tensors(shapes: Mapping[str, Sequence[int]], source: Mapping[str, Tensor], cut: Cut) -> dict[str, Tensor]:
    """Return the tensors of a smaller tower, ``{name: shape}``, taken from those of a bigger one.

    Reads the names of transformers and of open_clip. Axes that are no tower's (tokens, positions, the joint space)
    keep their first entries. Raises :class:`ModelError` where the source has no such tensor or a smaller one.
    """
    return {name: _cut_tensor(name, shape, source, cut) for name, shape in shapes.items()}


def _cut_tensor(name: str, shape: Sequence[int], source: Mapping[str, Tensor], cut: Cut) -> Tensor:
    layer = _LAYER.search(name)
    number = int(layer[2]) if layer else 0
    origin = _LAYER.sub(lambda found: f"{found[1]}.{cut.layers[number]}.", name)
    if origin not in source:
        raise ModelError(f"the student's tensor {name} has no counterpart {origin} in the model it inherits from.")
    tensor = source[origin]
    for axis, letter in enumerate(axes_of(name, len(shape))):
        kept = _kept(letter, shape[axis], tensor.shape[axis], cut, number)
        if len(kept) != shape[axis] or shape[axis] > tensor.shape[axis]:
            raise ModelError(
                f"{name} is {tuple(shape)} in the student and {tuple(source[origin].shape)} in the model it inherits "
                "from; expected no axis of the student to be longer. Make the student smaller."
            )
        tensor = tensor.index_select(axis, kept)
    return tensor


def axes_of(name: str, count: int) -> str:
    """Return one letter for each of the ``count`` axes of a tensor, as in the module's text; ``.`` for the others."""
    for pattern, axes in _AXES:
        if pattern.search(name):
            return axes[1:].rjust(count, ".") if axes[0] == "*" else axes[:count].replace("*", ".").ljust(count, ".")
    raise ModelError(f"no rule says which channels of the tensor {name} a smaller student keeps.")


def _kept(letter: str, size: int, big: int, cut: Cut, layer: int) -> Tensor:
    if letter == "h":
        return cut.hidden
    if letter == "a":
        return cut.attention[layer]
    if letter == "q":
        return torch.cat([cut.attention[layer] + part * (big // 3) for part in range(3)])
    return cut.mlp[layer] if letter == "m" else torch.arange(size)


@dataclass(frozen=True)
class Inherited:
    """What a student took over: by tower the layers it comes from, and the tensors resized to another patch grid."""

    origin: str
    layers: Mapping[str, tuple[int, ...]]
    resized: tuple[str, ...]

    def __str__(self) -> str:
        towers = "; ".join(f"{tower} layers {', '.join(map(str, kept))}" for tower, kept in self.layers.items())
        resized = f"; resized {', '.join(self.resized)}" if self.resized else ""
        return f"inherited from {self.origin}: {towers}{resized}"


def inherit(student: HuggingFaceEncoder, teacher: HuggingFaceEncoder, layers: Layers = "tinyclip") -> Inherited:
    """Overwrite a student's weights with those of a bigger model of its family, and say which.

    Works on CLIP, Chinese-CLIP, SigLIP and VisionTextDualEncoder with a ViT, for any smaller depth, width, number of
    heads, MLP and joint width; logit scale and bias stay the student's, as in TinyCLIP. Another patch grid
    interpolates the position embeddings (bicubic); another patch size resizes the kernel so that it answers to a
    resized patch as it did to the original (FlexiViT, arXiv 2212.08013, section 3.4). Raises :class:`ModelError` for
    models of different kinds, other vocabularies, and students larger than the model anywhere.
    """
    ours, theirs = student.module, teacher.module
    _check_kinds(student, teacher)
    if student.tokenizer.get_vocab() != teacher.tokenizer.get_vocab():
        raise ModelError(
            f"the student's vocabulary is not that of {teacher.uri}, so its token embedding cannot be inherited. "
            "Use student.tokenizer=auto."
        )
    values: dict[str, Tensor] = {}
    chosen, resized = {}, []
    for tower, prefixes in _TOWERS.items():
        shapes = {name: tuple(value.shape) for name, value in ours.state_dict().items() if name.startswith(prefixes)}
        source = {name: value.cpu() for name, value in theirs.state_dict().items() if name.startswith(prefixes)}
        big, small = (Sizes.of(getattr(model.config, f"{tower}_config")) for model in (theirs, ours))
        _check_sizes(tower, big, small)
        if tower == "vision":
            changed = _fit_patches(shapes, source)
            source, resized = source | changed, list(changed)
        cut = first_channels(big, small, layers)
        values |= cut_tensors(shapes, source, cut)
        chosen[tower] = cut.layers
    ours.load_state_dict(values, strict=False)
    return Inherited(teacher.uri, chosen, tuple(resized))


def _check_kinds(student: HuggingFaceEncoder, teacher: HuggingFaceEncoder) -> None:
    ours, theirs = _kind(student), _kind(teacher)
    if ours != theirs or theirs[0] not in _FAMILIES or (theirs[0] == _FAMILIES[-1] and theirs[1] != "vit"):
        raise ModelError(
            f"a student of kind {' / '.join(ours)} ({student.uri}) cannot inherit from {' / '.join(theirs)} "
            f"({teacher.uri}); expected two models of one kind among {', '.join(_FAMILIES)} (with a ViT). "
            "Choose another student.inherit_from, or drop student.inherit."
        )


def _kind(encoder: HuggingFaceEncoder) -> tuple[str, str, str]:
    """Return the model types of a dual encoder, of its vision tower and of its text tower."""
    config: Any = encoder.module.config
    return config.model_type, config.vision_config.model_type, config.text_config.model_type


def _check_sizes(tower: str, big: Sizes, small: Sizes) -> None:
    for what in ("layers", "hidden", "mlp"):
        if getattr(small, what) > getattr(big, what):
            raise ModelError(
                f"the student's {tower} tower is larger than the one it inherits from: {what} {getattr(small, what)}, "
                f"there {getattr(big, what)}. Make the student smaller, or drop student.inherit."
            )


def _fit_patches(shapes: Mapping[str, tuple[int, ...]], source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a vision tower that depend on the patch grid, resized where the student's differs."""
    has_class = any(name.endswith(("class_embedding", "cls_token")) for name in source)
    changed = {}
    for name, tensor in source.items():
        shape = shapes.get(name, tuple(tensor.shape))
        if "patch_embed" in name and tensor.ndim == 4 and tensor.shape[2:] != shape[2:]:
            changed[name] = resize_kernel(tensor, shape[-1])
        elif "position_embed" in name and tensor.shape[-2] != shape[-2]:
            changed[name] = resize_positions(tensor, shape[-2], int(has_class))
    return changed


def resize_kernel(kernel: Tensor, size: int) -> Tensor:
    """Resize a patch kernel ``[C, 3, p, p]`` to ``[C, 3, size, size]``: its answer to a resized patch stays the same.

    With ``R`` the bilinear resize from p to ``size``, the result w' solves <R x, w'> = <x, w> for every patch x,
    in the least squares sense where ``size`` is smaller.
    """
    old = kernel.shape[-1]
    basis = torch.eye(old * old, dtype=torch.float64).reshape(-1, 1, old, old)
    resize = F.interpolate(basis, size=(size, size), mode="bilinear", align_corners=False).flatten(1)
    weights: Tensor = kernel.double().flatten(2) @ torch.linalg.pinv(resize).T
    return weights.reshape(*kernel.shape[:2], size, size).to(kernel.dtype)


def resize_positions(table: Tensor, count: int, extra: int) -> Tensor:
    """Interpolate position embeddings ``[..., N, h]`` of a square grid to ``count`` rows; the first ``extra`` stay."""
    before, after = math.isqrt(table.shape[-2] - extra), math.isqrt(count - extra)
    rows = table.reshape(table.shape[-2:])
    grid = rows[extra:].T.reshape(1, -1, before, before)
    grid = F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    resized = torch.cat([rows[:extra], grid.flatten(2)[0].T])
    return resized.reshape(*table.shape[:-2], count, -1)
