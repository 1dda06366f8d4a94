"""A teacher: anything that gives embeddings for a batch, and never learns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from clipdistill.algebra.nodes import Node
from clipdistill.data.batches import Batch, Inlet
from clipdistill.models.encoder import DualEncoder

#: Views of a caption that data may bring.
TEXT_VIEWS = ("", "syn")


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


def inlet(encoder: DualEncoder, asked: Sequence[Node]) -> Inlet:
    """What a model must be fed to give the nodes asked of it."""
    sides = "".join(sorted({node.side for node in asked}))
    return Inlet.of(encoder, sides, tuple(sorted({node.view for node in asked if node.side == "T"})))


def text_rows(letter: str, encoder: DualEncoder, batch: Batch) -> dict[str, Tensor]:
    """Embed every text view a batch holds for a model: ``{"ST": [B, D], "ST@syn": [B, D]}``."""
    rows = {}
    for key, tokens in batch.tokens.items():
        owner, _, view = key.partition("@")
        if owner == letter:
            rows[f"{letter}T" + (f"@{view}" if view else "")] = encoder.texts(tokens)
    return rows


class LiveTeacher:
    """A frozen model that embeds every batch as it comes, at its own resolution and by its own text rules.

    ``asked`` are the nodes a recipe wants of it: a tower nobody asks for never runs. ``autocast`` makes the context
    in which it runs.
    """

    def __init__(
        self, letter: str, encoder: DualEncoder, asked: Sequence[Node], autocast: AbstractContextManager[None]
    ) -> None:
        self.letter, self.encoder, self.autocast = letter, encoder, autocast
        self.scale, self.width, self.fingerprint = encoder.scale, encoder.width, encoder.fingerprint
        self.nodes: Sequence[str] = [f"{letter}{side}" for side in encoder.sides] + [
            str(node) for node in asked if node.side == "T" and node.view in TEXT_VIEWS and "T" in encoder.sides
        ]
        self.inlet = inlet(encoder, asked)
        encoder.module.eval().requires_grad_(False)

    @torch.no_grad()
    def embed(self, batch: Batch) -> dict[str, Tensor]:
        """Run the towers the recipe asks for; see :class:`Teacher`."""
        rows: dict[str, Tensor] = {}
        with self.autocast:
            if self.inlet.transform:
                rows[f"{self.letter}I"] = self.encoder.images(batch.pixels[self.letter])
            rows |= text_rows(self.letter, self.encoder, batch)
        return {node: matrix.float() for node, matrix in rows.items()}
