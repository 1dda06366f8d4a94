"""Batches chosen by what they teach: a super-batch is scored by student and reference, and its best rows are kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipdistill.algebra.call import Numbers
from clipdistill.algebra.nodes import STUDENT, Node
from clipdistill.config import RunConfig
from clipdistill.errors import ConfigError
from clipdistill.training.selection import Metric, select

#: The logit of a pair that is no negative: positives of each other do not compete.
_NEVER = -1e4


def reference_nodes(config: RunConfig) -> list[Node]:
    """What is asked of the reference, the first teacher, beyond the recipe.

    Raises:
        ConfigError: learnability needs a reference, and there is no teacher.
    """
    if config.batches.select != "learnability":
        return []
    letter = next(iter(sorted(config.teachers)), None)
    if letter is None:
        raise ConfigError(
            "batches.select=learnability compares the student with a reference: add teachers.T=MODEL or a store of "
            "embeddings, or choose batches.select=hard."
        )
    return [Node(letter, "I"), Node(letter, "T")]


@torch.no_grad()
def choose_rows(
    rows: dict[str, Tensor], same: Tensor, scales: Numbers, biases: Numbers, config: RunConfig, number: int
) -> list[int]:
    """Choose ``train.batch_size`` rows of a super-batch: those the student has still to learn, and the reference knows.

    ``rows`` are embeddings by node, ``same`` tells which two rows are positives of each other, ``[N, N]``, ``number``
    counts batches. See :func:`clipdistill.training.selection.select`.
    """
    student = _logits(rows, STUDENT, scales, biases)
    nodes = reference_nodes(config)
    reference = _logits(rows, nodes[0].model, scales, biases) if nodes else None
    size = min(config.train.batch_size, len(same))
    rng = np.random.default_rng([config.seed, number])
    same = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    student = student.masked_fill(same, _NEVER)
    reference = None if reference is None else reference.masked_fill(same, _NEVER)
    # A bias moves no softmax; without one on both sides yes-or-no answers cannot be compared.
    biased = STUDENT in biases and (not nodes or nodes[0].model in biases)
    metric: Metric = "sigmoid" if biased else "softmax"
    return list(map(int, select(student, reference, size, rng, metric=metric)))


def _logits(rows: dict[str, Tensor], letter: str, scales: Numbers, biases: Numbers) -> Tensor:
    """Scaled similarities of a model's pictures and captions, ``[N, N]``."""
    image, text = f"{letter}I", f"{letter}T"
    if image not in rows or text not in rows:
        raise ConfigError(
            f"batches.select compares pictures with captions, but of model {letter} the recipe uses only "
            f"{', '.join(node for node in rows if node.startswith(letter)) or 'nothing'}."
        )
    similarities = F.normalize(rows[image], dim=1) @ F.normalize(rows[text], dim=1).T
    return scales[letter] * similarities + biases.get(letter, 0.0)
