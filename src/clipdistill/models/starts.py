"""How the layers of a new image tower begin: every residual branch at zero, so that a layer passes on what it gets."""

from __future__ import annotations

import re

import torch
from torch import nn

from clipdistill.models.presets import StudentSpec

#: The matrix that ends a branch of a numbered layer: of its attention, or of its MLP.
_END = re.compile(r"\blayers?\.\d+\.(.*\.)?(self_attn\.out_proj|o_proj|fc2|output\.dense)\.weight$")


@torch.no_grad()
def start_at_zero(module: nn.Module, spec: StudentSpec) -> None:
    """Set the last matrix of every residual branch to zero, where ``spec`` gives an image tower random weights.

    Each layer is the identity at first. Zero-initialised branches are known to help deep networks (ReZero, arXiv
    2003.04887; SkipInit, arXiv 2002.10444); here they help towers of two layers in few steps, see docs/evidence.md.
    It is for students of a teacher: where rows are only told apart from each other, as in CLIP's own training, a side
    whose rows are all alike gives the other no gradient, and a model of four layers ended worse. For the same reason
    text towers keep their random branches. A tower that is kept, inherited or pretrained stays what it is, and one of
    timm begins timm's way.
    """
    if spec.pretrained or spec.inherit or spec.keep == "image":
        return
    for name, parameter in module.named_parameters():
        if _END.search(name) and not name.startswith("text_model.") and "timm_model." not in name:
            parameter.zero_()
