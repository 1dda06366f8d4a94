"""Automatic weight inheritance (TinyCLIP): masks learn which channels, heads and MLP units a tower can do without.

While they learn, hooks on the transformers modules multiply the activations by masks between 0 and 1 (hard-concrete,
Louizos et al., arXiv 1712.01312). Then :func:`fold` writes the masks into the weights and leaves the closed parts
out: the result is an ordinary, smaller ``CLIPModel``.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from clipdistill.errors import ModelError
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.huggingface import HuggingFaceEncoder
from clipdistill.models.inherit import Cut, Sizes, axes_of, cut_tensors, joined

STRETCH = (-0.1, 1.1)
TEMPERATURE = 2 / 3
#: Where the logits of the masks begin: all open, all but 2% of the draws.
START = 2.5
#: How far the folded tower's sparsity may be from the asked one.
TOLERANCE = 0.02

TOWERS = ("vision", "text")
#: The tensors that write into the residual stream: a mask's value scales them and nothing that reads.
_WRITERS = re.compile(r"embeddings\.|\bout_proj\.|\bfc2\.")
_LAYER = re.compile(r"\blayers\.(\d+)\.")


def open_probability(logits: Tensor) -> Tensor:
    """Return the probability that a drawn mask is not zero, by the distribution function of the hard concrete."""
    low, high = STRETCH
    return torch.sigmoid(logits - TEMPERATURE * math.log(-low / high))


def draw(logits: Tensor) -> Tensor:
    """Draw hard-concrete masks in [0, 1]; on a CPU generator, so that the draws are the same on every device."""
    noise = torch.rand(logits.shape).clamp(1e-6, 1 - 1e-6).to(logits.device)
    return _stretched(torch.sigmoid((noise.logit() + logits) / TEMPERATURE))


def settled(logits: Tensor) -> Tensor:
    """Return the masks without noise, as used in evaluation and when they are folded."""
    return _stretched(torch.sigmoid(logits))


def _stretched(values: Tensor) -> Tensor:
    low, high = STRETCH
    return (values * (high - low) + low).clamp(0, 1)


@dataclass(frozen=True)
class Masks:
    """One draw for a tower: ``hidden`` [H], ``heads`` [L, heads x head width], ``mlp`` [L, M], ``layers`` [L]."""

    hidden: Tensor
    heads: Tensor
    mlp: Tensor
    layers: Tensor


class TowerMasks(nn.Module):
    """The logits of a tower's masks, the Lagrangian multipliers of its sparsity, and the last draw.

    ``hidden`` [H], ``heads`` [L, heads], ``mlp`` [L, M]; ``layers`` [L] only if whole layers may go.
    """

    now: Masks

    def __init__(self, sizes: Sizes, with_layers: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        self.hidden = _logits(sizes.hidden)
        self.heads = _logits(sizes.layers, sizes.heads)
        self.mlp = _logits(sizes.layers, sizes.mlp)
        self.layers = _logits(sizes.layers) if with_layers else None
        self.multipliers = nn.Parameter(torch.tensor([10.0, 10.0]))

    @property
    def logits(self) -> list[nn.Parameter]:
        """The masks' parameters, without the multipliers."""
        return [part for part in (self.hidden, self.heads, self.mlp, self.layers) if part is not None]

    def redraw(self, noisy: bool) -> None:
        """Draw the masks of the next forward pass into ``now``; without noise the settled ones."""
        take = draw if noisy else settled
        heads = take(self.heads).repeat_interleave(self.sizes.head_width, dim=1)
        layers = torch.ones_like(self.mlp[:, 0]) if self.layers is None else take(self.layers)
        self.now = Masks(take(self.hidden), heads, take(self.mlp), layers)

    def expected_sparsity(self) -> Tensor:
        """Return the expected share of attention and MLP weights that are masked, ``[]``.

        As in wkcn/TinyCLIP's L0Module, biases count in the attention and in the whole, but not in what is left of
        the MLP: a fully open tower is at 1 / (6 H) or so, not at zero.
        """
        sizes, hidden = self.sizes, open_probability(self.hidden).sum()
        heads, mlp = open_probability(self.heads).sum(1), open_probability(self.mlp).sum(1)
        open_layers = torch.ones_like(mlp) if self.layers is None else open_probability(self.layers)
        attention = (heads * open_layers).sum() * hidden * 4 * (sizes.hidden + 1) / sizes.heads
        sparsity: Tensor = 1 - (attention + (mlp * open_layers).sum() * hidden * 2) / weights_in(sizes)
        return sparsity

    def lagrangian(self, target: float) -> Tensor:
        """Return ``l1 max(0, t - s) + l2 max(0, t - s)^2``, ``[]``: only a tower that is too dense is penalised."""
        gap = (target - self.expected_sparsity()).clamp(min=0)
        penalty: Tensor = self.multipliers[0] * gap + self.multipliers[1] * gap.square()
        return penalty


def _logits(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, START))


def weights_in(sizes: Sizes) -> int:
    """Count the weights and biases in attention and MLP of a tower: what sparsity is a share of."""
    attention = 4 * sizes.hidden * (sizes.hidden + 1)
    return sizes.layers * (attention + 2 * sizes.hidden * sizes.mlp + sizes.hidden + sizes.mlp)


def check_prunable(encoder: DualEncoder) -> HuggingFaceEncoder:
    """Return the model as what it is; raises :class:`ModelError` for models that the hooks do not know."""
    config: Any = getattr(encoder.module, "config", None)
    kind = config.model_type if config else type(encoder.module).__name__
    if kind != "clip" or not isinstance(encoder, HuggingFaceEncoder):
        raise ModelError(
            f"{encoder.uri} is of kind {kind}; prune works on clip. Use student.inherit for the other families."
        )
    return encoder


def attach(encoder: HuggingFaceEncoder, towers: Mapping[str, TowerMasks]) -> list[RemovableHandle]:
    """Make every forward pass of a CLIP model go through masks; returns the handles that undo it."""
    handles = []
    for name, masks in towers.items():
        tower = getattr(encoder.module, f"{name}_model")
        handles += _attach_tower(tower, masks)
        for number, layer in enumerate(tower.encoder.layers):
            handles += _attach_layer(layer, masks, number)
    return handles


def _attach_tower(tower: Any, masks: TowerMasks) -> list[RemovableHandle]:
    def normalise(norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _masked_norm(inputs[0], norm, masks.now.hidden).to(output.dtype)

    norms = [module for module in tower.modules() if isinstance(module, nn.LayerNorm)]
    return [
        tower.register_forward_pre_hook(lambda module, _: masks.redraw(module.training)),
        tower.embeddings.register_forward_hook(lambda _, __, rows: rows * masks.now.hidden.to(rows.dtype)),
        *(norm.register_forward_hook(normalise) for norm in norms),
    ]


def _attach_layer(layer: Any, masks: TowerMasks, number: int) -> list[RemovableHandle]:
    def write(_: Any, __: Any, rows: Tensor) -> Tensor:
        return rows * (masks.now.hidden * masks.now.layers[number]).to(rows.dtype)

    attention, mlp = layer.self_attn.out_proj, layer.mlp.fc2
    return [
        attention.register_forward_pre_hook(lambda _, rows: rows[0] * masks.now.heads[number].to(rows[0].dtype)),
        mlp.register_forward_pre_hook(lambda _, rows: rows[0] * masks.now.mlp[number].to(rows[0].dtype)),
        attention.register_forward_hook(write),
        mlp.register_forward_hook(write),
    ]


def _masked_norm(rows: Tensor, norm: nn.LayerNorm, hidden: Tensor) -> Tensor:
    """Normalise over the open channels alone, as the folded model will; closed ones give zero."""
    is_open = (hidden > 0).to(torch.float32)
    count, rows = is_open.sum().clamp(min=1), rows.float()
    centred = (rows - (rows * is_open).sum(-1, keepdim=True) / count) * is_open
    variance = centred.square().sum(-1, keepdim=True) / count
    return (centred * (variance + norm.eps).rsqrt() * norm.weight + norm.bias) * is_open


@torch.no_grad()
def folded_sizes(masks: TowerMasks, sparsity: float) -> Sizes:
    """Return the sizes of a tower without its closed parts.

    A transformers configuration has one width, one number of heads and one MLP width for all layers, and the width is
    the heads times their width, which stays. So the number of heads is the rounded mean of what the masks of heads
    (over all layers) and of hidden channels leave, the layers the rounded sum of theirs, and the MLP takes the
    width with which the asked sparsity is met: the masks' own mean where they met it. Where that is impossible, the
    nearest numbers of heads and layers count. Raises :class:`ModelError` if no sizes are within 2 points.
    """
    big = masks.sizes
    share = (open_probability(masks.hidden).mean() + open_probability(masks.heads).mean()) / 2
    layers = float(big.layers if masks.layers is None else open_probability(masks.layers).sum())
    heads = float(share) * big.heads
    depths = [big.layers] if masks.layers is None else range(1, big.layers + 1)
    choices = product(depths, range(1, big.heads + 1))
    for depth, count in sorted(choices, key=lambda c: abs(c[0] - layers) / big.layers + abs(c[1] - heads) / big.heads):
        small = _with_mlp(big, depth, count, sparsity)
        if abs(sparsity_of(small, big) - sparsity) <= TOLERANCE:
            return small
    raise ModelError(
        f"a tower of {big.layers} layers, width {big.hidden} and {big.heads} heads cannot be pruned to a sparsity of "
        f"{sparsity:g}: its width is a multiple of {big.head_width}, one head. Lower prune.sparsity."
    )


def _with_mlp(big: Sizes, layers: int, heads: int, sparsity: float) -> Sizes:
    """Return the sizes with the MLP width that comes nearest to the sparsity."""
    hidden = heads * big.head_width
    left = (1 - sparsity) * weights_in(big) / layers - 4 * hidden * (hidden + 1) - hidden
    return Sizes(layers, hidden, heads, min(big.mlp, max(1, round(left / (2 * hidden + 1)))))


def sparsity_of(small: Sizes, big: Sizes) -> float:
    """Return the share of a tower's attention and MLP weights that a smaller one does without."""
    return 1 - weights_in(small) / weights_in(big)


def fold(encoder: HuggingFaceEncoder, towers: Mapping[str, TowerMasks], sparsity: float) -> HuggingFaceEncoder:
    """Return an ordinary, smaller model: settled masks multiplied into the weights, closed parts left out.

    Channels, heads and MLP units are kept by the size of their logits, as many as :func:`folded_sizes` says; hidden
    channels are the same in all layers. Parts that are kept although their mask is zero keep their weights. Where the
    masks are 0 or 1 and already uniform, the outputs are those of the masked model. Raises :class:`ModelError`.
    """
    model: Any = encoder.module
    config = copy.deepcopy(model.config)
    config._attn_implementation = model.config._attn_implementation
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    cuts = {}
    for name, masks in towers.items():
        small = folded_sizes(masks, sparsity)
        cuts[f"{name}_model."] = keep(masks, small)
        _set_sizes(getattr(config, f"{name}_config"), small)
        state |= _absorbed(state, f"{name}_model.", masks)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are all replaced
        folded = type(model)(config)
    cuts |= {"visual_projection.": cuts["vision_model."], "text_projection.": cuts["text_model."]}
    values = {"logit_scale": state["logit_scale"]}
    for prefix, cut in cuts.items():
        shapes = {name: value.shape for name, value in folded.state_dict().items() if name.startswith(prefix)}
        values |= cut_tensors(shapes, state, cut)
    folded.load_state_dict(values)
    return HuggingFaceEncoder(encoder.uri, folded.to(model.device), encoder.tokenizer, encoder.processor)


def _set_sizes(config: Any, sizes: Sizes) -> None:
    config.num_hidden_layers, config.hidden_size = sizes.layers, sizes.hidden
    config.num_attention_heads, config.intermediate_size = sizes.heads, sizes.mlp


def keep(masks: TowerMasks, small: Sizes) -> Cut:
    """Return what a tower of the given sizes keeps: the parts with the largest logits, in their old order."""
    layers = range(small.layers) if masks.layers is None else _largest(masks.layers, small.layers).tolist()
    width = masks.sizes.head_width
    return Cut(
        tuple(layers),
        _largest(masks.hidden, small.hidden),
        tuple(joined(_largest(masks.heads[layer], small.heads), width) for layer in layers),
        tuple(_largest(masks.mlp[layer], small.mlp) for layer in layers),
    )


def _largest(logits: Tensor, count: int) -> Tensor:
    order = torch.argsort(logits.detach().cpu(), descending=True, stable=True)
    return order[:count].sort().values


@torch.no_grad()
def _absorbed(state: Mapping[str, Tensor], prefix: str, masks: TowerMasks) -> dict[str, Tensor]:
    """Return the tensors of a tower that write into its residual stream, scaled by the settled masks."""
    masks.redraw(noisy=False)
    now, scaled = masks.now, {}
    for name, tensor in state.items():
        if not (name.startswith(prefix) and _WRITERS.search(name)):
            continue
        layer = _LAYER.search(name)
        number = int(layer[1]) if layer else 0
        factors = {"h": now.hidden, "a": now.heads[number], "m": now.mlp[number]}
        value = tensor * _opened(now.layers[number].cpu()) if layer else tensor
        for axis, letter in enumerate(axes_of(name, tensor.ndim)):
            if letter in factors:
                shape = [-1 if at == axis else 1 for at in range(tensor.ndim)]
                value = value * _opened(factors[letter].cpu()).reshape(shape)
        scaled[name] = value
    return scaled


def _opened(mask: Tensor) -> Tensor:
    return torch.where(mask > 0, mask, 1.0)
