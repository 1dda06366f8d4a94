"""Batches chosen by what they teach: a super-batch is scored by student and reference, and its best rows are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipdistill.algebra.call import Numbers
from clipdistill.algebra.nodes import STUDENT, Node
from clipdistill.algebra.rows import agreeing
from clipdistill.config import RunConfig
from clipdistill.data.batches import Batch
from clipdistill.errors import ConfigError
from clipdistill.training.selection import Metric, select

#: The logit of a pair that is no negative: positives of each other do not compete.
_NEVER = -1e4

if TYPE_CHECKING:
    from clipdistill.training.setup import Setup


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
def choose_rows(setup: Setup, batch: Batch, number: int) -> Batch:
    """Keep ``train.batch_size`` rows of a super-batch: those the student has still to learn, and the reference knows.

    See :func:`clipdistill.training.selection.select`.
    """
    config = setup.config
    was_training = [module for module in setup.student.module.modules() if module.training]
    setup.student.module.eval()
    rows = setup.rows(batch)
    for module in was_training:
        module.training = True
    scales = setup.scales()
    student = _logits(rows, STUDENT, scales, biases := setup.biases())
    nodes = reference_nodes(config)
    reference = _logits(rows, nodes[0].model, scales, biases) if nodes else None
    size = min(config.train.batch_size, len(batch.ids))
    rng = np.random.default_rng([config.seed, number])
    same = agreeing(setup.banks.keys(batch), setup.banks.keys(batch)).fill_diagonal_(False)
    student = student.masked_fill(same, _NEVER)
    reference = None if reference is None else reference.masked_fill(same, _NEVER)
    # A bias moves no softmax; without one on both sides yes-or-no answers cannot be compared.
    biased = STUDENT in biases and (not nodes or nodes[0].model in biases)
    metric: Metric = "sigmoid" if biased else "softmax"
    return batch.take(select(student, reference, size, rng, metric=metric).tolist())


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
