"""A teacher: anything that gives embeddings for a batch, and never learns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from clipdistill.data.batches import Batch, Inlet
from clipdistill.models.encoder import DualEncoder


class Teacher(Protocol):
    """Embeddings by node for every batch: from a model that runs, or from rows stored before.

    ``letter`` is its name in the recipe, ``scale`` its logit scale as a multiplier, ``width`` its joint width,
    ``nodes`` what it can provide (``["TI", "TT"]``), ``inlet`` what it must be fed.
    """

    letter: str
    scale: float
    width: int
    nodes: Sequence[str]
    fingerprint: str
    inlet: Inlet

    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Give the teacher's rows, ``{node: float [B, D]}``, without gradient."""
        ...


class LiveTeacher:
    """A frozen model that embeds every batch as it comes, at its own resolution and by its own text rules.

    ``sides`` says which of its towers the recipe asks for; the other never runs. ``autocast`` makes the context in
    which it runs.
    """

    def __init__(self, letter: str, encoder: DualEncoder, sides: str, autocast: AbstractContextManager[None]) -> None:
        self.letter, self.encoder, self.autocast = letter, encoder, autocast
        self.scale, self.width, self.fingerprint = encoder.scale, encoder.width, encoder.fingerprint
        self.nodes: Sequence[str] = [f"{letter}{side}" for side in encoder.sides]
        self.inlet = Inlet.of(encoder, sides)
        encoder.module.eval().requires_grad_(False)

    @torch.no_grad()
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Run the towers the recipe asks for; see :class:`Teacher`."""
        rows: dict[str, Tensor] = {}
        with self.autocast:
            if self.inlet.transform:
                rows[f"{self.letter}I"] = self.encoder.images(batch.pixels[self.letter])
            if self.inlet.tokenize:
                rows[f"{self.letter}T"] = self.encoder.texts(batch.tokens[self.letter])
        return {node: matrix.float() for node, matrix in rows.items()}
