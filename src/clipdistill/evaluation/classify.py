"""Classification by a model's own head: pictures against the classes it was trained to tell apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import DataError
from clipdistill.evaluation.metrics import Rows, best_ranks


def label_ranks(logits: Rows, numbers: Sequence[int]) -> NDArray[np.intp]:
    """Return the rank of each picture's own class among its logits ``[N, K]``, 1 is first, ``[N]``.

    ``numbers [N]`` is the class of each picture, -1 for none: its rank is 0. A class that is exactly as likely counts
    against the true one.
    """
    own = np.asarray(numbers, np.intp)
    ranks = np.zeros(len(own), np.intp)
    if (own >= 0).any():
        ranks[own >= 0] = best_ranks(logits[own >= 0], list(own[own >= 0, None]))
    return ranks


def accuracies(ranks: NDArray[np.intp]) -> dict[str, float]:
    """Return ``classify_top1`` and ``classify_top5`` in percent of the pictures that have a label.

    ``ranks [N]`` are those of :func:`label_ranks`. With five classes or fewer, top 5 is 100. Raises
    :class:`DataError` if there is no label.
    """
    known = ranks[ranks > 0]
    if not len(known):
        raise DataError(f"classification needs labels, and none of the {len(ranks)} pictures has one.")
    return {f"classify_top{k}": 100.0 * float(np.mean(known <= k)) for k in (1, 5)}
