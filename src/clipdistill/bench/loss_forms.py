"""One way of computing a loss: how long forward and backward take, and what memory they add.

``python -m clipdistill.bench.loss_forms '{"recipe": "clip-kd", "batch": 4096, "width": 512, "form": "strips"}'``
prints what :func:`measure` returns; without a form what :func:`agreement` does.

Legend: ``B`` rows, ``D`` width.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipdistill.algebra import strips
from clipdistill.algebra.graph import InteractionGraph
from clipdistill.algebra.recipe import Recipe
from clipdistill.bench.kd_steps import peak_memory
from clipdistill.models.device import choose_device

#: The program's own way; the same with every matrix stored whole; the way of CLIP-KD's published code.
FORMS = ("strips", "whole", "reference")
_TEACHER_SCALE, _START = 100.0, 14.2857
#: CLIP-KD's weight of FD, for squared distances; see recipes/clip-kd.yaml.
_FD = 3.90625
#: A case is repeated until it has taken so many seconds, and not more often than that.
_SECONDS, _CALLS = 2.0, 5

Leaves = dict[str, Tensor]
Loss = Callable[[Leaves], Tensor]


def measure(recipe: str, batch: int, width: int, form: str) -> dict[str, Any]:
    """The seconds of one forward and backward pass, the median of a few, and the bytes they add at their peak."""
    device, loss = choose_device("auto"), make_loss(recipe, form, width)
    with _storing(sys.maxsize if form == "whole" else strips.WHOLE):
        _gradients(loss, make_leaves(recipe, 64, width, torch.float32, device))  # starts threads and libraries
        leaves = make_leaves(recipe, batch, width, torch.float32, device)
        before, seconds = peak_memory(device), list[float]()
        while not seconds or (sum(seconds) < _SECONDS and len(seconds) < _CALLS):
            began = time.perf_counter()
            _gradients(loss, leaves)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return {"seconds": median(seconds), "bytes": peak_memory(device) - before, "device": device.type}


def agreement(recipe: str, batch: int, width: int) -> dict[str, float]:
    """How far the other forms are from the program's own with every matrix in strips, in double precision.

    By form: the largest difference of the value and of each gradient, relative to its norm.
    """
    device, found = choose_device("auto"), {}
    for form in FORMS:
        leaves = make_leaves(recipe, batch, width, torch.float64, device)
        with _storing(0 if form == "strips" else sys.maxsize):
            found[form] = _gradients(make_loss(recipe, form, width), leaves)
    ours = found.pop("strips")
    return {form: max(map(_apart, ours, theirs)) for form, theirs in found.items()}


def make_leaves(recipe: str, batch: int, width: int, dtype: torch.dtype, device: torch.device) -> Leaves:
    """Embeddings ``[B, D]`` of pairs that resemble each other, and logarithms of scales; the teacher's are constant."""
    draw = torch.Generator().manual_seed(0)
    distilled = recipe == "clip-kd"
    pairs = torch.randn(batch, width, generator=draw)
    found = {
        node: (pairs + torch.randn(batch, width, generator=draw)).to(device, dtype)
        for node in ("SI", "ST", *(("TI", "TT") if distilled else ()))
    }
    for name in ("scale", "icl") if distilled else ("scale",):
        found[name] = nn.Parameter(torch.tensor(math.log(_START), dtype=dtype, device=device))
    return {name: leaf.requires_grad_(name not in ("TI", "TT")) for name, leaf in found.items()}


def make_loss(recipe: str, form: str, width: int) -> Loss:
    """The loss of recipe ``clip`` or ``clip-kd``, a function of :func:`make_leaves`, in one of the :data:`FORMS`."""
    if form == "reference":
        return {"clip": _clip, "clip-kd": _clip_kd}[recipe]
    graph = InteractionGraph(Recipe.load(recipe), {"S": width, "T": width})

    def loss(leaves: Leaves) -> Tensor:
        rows = {name: leaf for name, leaf in leaves.items() if leaf.ndim == 2}
        if "icl" in graph.scales:
            graph.scales["icl"] = leaves["icl"]
        total: Tensor = graph(rows, {"S": leaves["scale"].exp(), "T": _TEACHER_SCALE}).total
        return total

    return loss


def _clip(leaves: Leaves) -> Tensor:
    """CLIP's loss as open_clip computes it: one matrix of logits, and its transpose."""
    si, st = (F.normalize(leaves[node], dim=1) for node in ("SI", "ST"))
    return _both(F.cross_entropy, leaves["scale"].exp() * si @ st.T, _diagonal(si))


def _clip_kd(leaves: Leaves) -> Tensor:
    """Task, CRD, ICL and FD as CLIP-KD's code computes them: each criterion takes its own softmax."""
    si, st, ti, tt = (F.normalize(leaves[node], dim=1) for node in ("SI", "ST", "TI", "TT"))
    per_image, targets = leaves["scale"].exp() * si @ st.T, _TEACHER_SCALE * ti @ tt.T
    task = _both(F.cross_entropy, per_image, _diagonal(si))
    crd = (_divergence(per_image, targets) + _divergence(per_image.T, targets.T)) / 2
    fd = _FD * si.shape[1] * (F.mse_loss(si, ti) + F.mse_loss(st, tt))
    icl_scale = leaves["icl"].exp()
    ways = (icl_scale * si @ tt.T, icl_scale * st @ ti.T)
    icl = torch.stack([F.cross_entropy(way, _diagonal(si)) for way in ways]).mean()
    return task + crd + fd + icl


def _both(criterion: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> Tensor:
    return (criterion(logits, target) + criterion(logits.T, target)) / 2


def _diagonal(rows: Tensor) -> Tensor:
    return torch.arange(len(rows), device=rows.device)


def _divergence(logits: Tensor, targets: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(dim=1), targets.softmax(dim=1), reduction="batchmean")


def _gradients(loss: Loss, leaves: Leaves) -> list[Tensor]:
    """The value, and the gradient of every leaf that wants one."""
    value = loss(leaves)
    return [value.detach(), *torch.autograd.grad(value, [leaf for leaf in leaves.values() if leaf.requires_grad])]


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@contextmanager
def _storing(numbers: int) -> Iterator[None]:
    """Have matrices of up to so many numbers stored whole."""
    before, strips.WHOLE = strips.WHOLE, numbers
    try:
        yield
    finally:
        strips.WHOLE = before


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    print(json.dumps(measure(**arguments) if "form" in arguments else agreement(**arguments)))
