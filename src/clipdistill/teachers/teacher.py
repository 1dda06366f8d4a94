"""A teacher: anything that gives embeddings for a batch, and never learns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from clipdistill.algebra.nodes import LOGITS, Node
from clipdistill.data.batches import Batch, Inlet
from clipdistill.data.labels import class_numbers
from clipdistill.models.encoder import DualEncoder

#: Views of a caption that data may bring.
TEXT_VIEWS = ("", "syn")


class Teacher(Protocol):
    """Embeddings by node for every batch: from a model that runs, or from rows stored before.

    ``letter`` is its name in the recipe, ``scale`` its logit scale as a multiplier, ``bias`` its logit bias if it has
    one, ``width`` its joint width, ``nodes`` what it can provide (``["TI", "TT"]``), ``inlet`` what it must be fed.
    """

    @property
    def letter(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def nodes(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def inlet(self) -> Inlet: ...

    @property
    def scale(self) -> float: ...

    @property
    def bias(self) -> float | None: ...

    def embed(self, batch: Batch, wanted: Collection[Node] | None = None) -> dict[str, Tensor]:
        """Give the teacher's rows, ``{node: float [B, D]}``, without gradient; at least those of ``wanted``."""
        ...


def inlet(encoder: DualEncoder, asked: Sequence[Node]) -> Inlet:
    """What a model must be fed to give the nodes asked of it; banks are given otherwise."""
    fed = [node for node in asked if not node.is_bank]
    sides = "".join(sorted({node.side for node in fed}))
    return Inlet.of(encoder, sides, tuple(sorted({node.view for node in fed if node.side == "T"})))


def text_rows(letter: str, encoder: DualEncoder, batch: Batch) -> dict[str, Tensor]:
    """Embed every text view a batch holds for a model: ``{"ST": [B, D], "ST@syn": [B, D]}``."""
    rows = {}
    for key, tokens in batch.tokens.items():
        owner, _, view = key.partition("@")
        if owner == letter:
            rows[f"{letter}T" + (f"@{view}" if view else "")] = encoder.texts(tokens)
    return rows


@dataclass(frozen=True)
class Retired:
    """A teacher that has given all that is asked of it, such as class centroids: nothing of it is kept running."""

    letter: str
    scale: float
    bias: float | None
    width: int
    fingerprint: str
    nodes: Sequence[str] = ()
    inlet: Inlet = field(default_factory=lambda: Inlet(None, None))

    @classmethod
    def of(cls, teacher: Teacher) -> Retired:
        """Keep what a teacher is, and let go of the rest."""
        return cls(teacher.letter, teacher.scale, teacher.bias, teacher.width, teacher.fingerprint)

    def embed(self, batch: Batch, wanted: Collection[Node] | None = None) -> dict[str, Tensor]:
        """Give nothing."""
        return {}


class LiveTeacher:
    """A frozen model that embeds every batch as it comes, at its own resolution and by its own text rules.

    ``asked`` are the nodes a recipe wants of it: a tower nobody asks for never runs. ``autocast`` makes the context
    in which it runs. ``classes`` names the classes whose logits ``@logits`` gives: by its own head, or, for a model of
    two towers, as similarities with ``class_rows``, unit rows ``[C, D]`` of the classes' prompts.

    Raises:
        DataError: its head does not know one of the classes.
    """

    def __init__(
        self,
        letter: str,
        encoder: DualEncoder,
        asked: Sequence[Node],
        autocast: AbstractContextManager[None],
        classes: Sequence[str] = (),
        class_rows: Tensor | None = None,
    ) -> None:
        self.letter, self.encoder, self.autocast = letter, encoder, autocast
        self.width, self.fingerprint = encoder.width, encoder.fingerprint
        self.class_rows = class_rows
        tells = Node(letter, "I", LOGITS) in asked
        self.columns = _columns(encoder, classes) if tells and encoder.classes else None
        self.nodes: Sequence[str] = [f"{letter}{side}" for side in encoder.sides] + [
            str(node) for node in asked if node.side == "T" and node.view in TEXT_VIEWS and "T" in encoder.sides
        ]
        if tells and (self.columns or class_rows is not None):
            self.nodes = [*self.nodes, f"{letter}I@{LOGITS}"]
        self.tells = tells
        self.inlet = inlet(encoder, asked)
        encoder.module.eval().requires_grad_(False)

    @property
    def scale(self) -> float:
        """The logit scale of the model as it is now."""
        return self.encoder.scale

    @property
    def bias(self) -> float | None:
        """The logit bias of the model, for SigLIP and its like."""
        return None if self.encoder.bias is None else float(self.encoder.bias)

    @torch.no_grad()
    def embed(self, batch: Batch, wanted: Collection[Node] | None = None) -> dict[str, Tensor]:
        """Run the towers that the recipe asks for and the batch is fed to; see :class:`Teacher`."""
        rows: dict[str, Tensor] = {}
        with self.autocast:
            if self.inlet.transform and self.letter in batch.pixels:
                rows |= self._images(batch)
            rows |= text_rows(self.letter, self.encoder, batch)
        return {node: matrix.float() for node, matrix in rows.items()}

    def _images(self, batch: Batch) -> dict[str, Tensor]:
        image, logits = f"{self.letter}I", f"{self.letter}I@{LOGITS}"
        pixels = batch.pixels[self.letter]
        if self.tells and self.columns:
            rows, told = self.encoder.images_and_logits(pixels)
            return {image: rows, logits: told[:, self.columns]}
        rows = self.encoder.images(pixels)
        if self.tells and self.class_rows is not None:
            return {image: rows, logits: self.scale * F.normalize(rows.float(), dim=1) @ self.class_rows.T}
        return {image: rows}


def _columns(encoder: DualEncoder, classes: Sequence[str]) -> list[int]:
    """Where a head has the logits of ``classes``; raises DataError for those it does not know."""
    numbers = class_numbers({name: name for name in classes}, encoder.classes, "the data", encoder.uri)
    return [numbers[name] for name in classes]
