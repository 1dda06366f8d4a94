"""Nodes and arrows: who is compared with whom.

A node is model letter x side x view: ``SI`` the student's image rows, ``TT`` the first teacher's text rows,
``ST@syn`` the student's rows of synthetic captions. A fused node ``SI+TI`` is a learned linear map of both; a stacked
one, ``TI|TI@bank``, the rows of both, one below the other. An arrow ``SI>TT`` anchors rows at SI and takes candidates
from TT; ``SI-ST`` is both directions.

Most nodes hold one row per sample of the batch. A bank does not: ``TI@bank`` holds rows stored before, ``TI@classes``
one row per class; both serve as candidates only. ``SI@logits`` holds what a classifier says, ``[B, classes]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

from clipdistill.errors import RecipeError

#: The letter of the model in training; every other capital letter is a teacher.
STUDENT = "S"
SIDES = {"I": "image", "T": "text"}

_NODE = re.compile(r"([A-Z])([A-Z])(?:@([a-z][a-z0-9_]*))?")
KNOWN_NODES = (
    "student SI, ST; teacher TI, TT; a second teacher UI, UT; a view after @, as in ST@syn or TI@bank; "
    "fused, SI+TI; stacked, TI|TI@bank"
)
#: Views whose rows are no rows of the batch.
BANK, CLASSES = "bank", "classes"
#: The view that holds a classifier's logits instead of embeddings.
LOGITS = "logits"


@dataclass(frozen=True, order=True)
class Node:
    """One embedding matrix, ``float [B, D]``: model letter, side (``I`` or ``T``), view (``""`` is plain).

    A fused node carries in ``fused`` the nodes it is joined with, a stacked one in ``stacked`` those below it; its
    model is that of its first part.
    """

    model: str
    side: str
    view: str = ""
    fused: tuple[Node, ...] = ()
    stacked: tuple[Node, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Node:
        """Read ``"SI"``, ``"ST@syn"``, ``"SI+TI"`` or ``"TI|TI@bank"``.

        Raises:
            RecipeError: the text names no node; the message lists the known ones.
        """
        first, *rest = text.split("|")
        if rest:
            return replace(cls.parse(first), stacked=tuple(cls.parse(part) for part in rest))
        first, *rest = text.split("+")
        if rest:
            return replace(cls.parse(first), fused=tuple(cls.parse(part) for part in rest))
        match = _NODE.fullmatch(text.strip())
        if match is None or match[2] not in SIDES:
            raise RecipeError(f"unknown node '{text.strip()}'. Known nodes: {KNOWN_NODES}.")
        return cls(match[1], match[2], match[3] or "")

    @property
    def is_student(self) -> bool:
        """Whether gradients flow into this node."""
        return self.model == STUDENT

    @property
    def is_bank(self) -> bool:
        """Whether its rows are not those of the batch."""
        return self.view in (BANK, CLASSES)

    @cached_property
    def layers(self) -> tuple[Node, ...]:
        """The nodes stacked in it, the first on top; itself, unless it is stacked."""
        return (replace(self, stacked=()), *self.stacked)

    @cached_property
    def parts(self) -> tuple[Node, ...]:
        """The plain nodes it is made of: itself, unless it is fused or stacked."""
        return tuple(part for layer in self.layers for part in (replace(layer, fused=()), *layer.fused))

    def __str__(self) -> str:
        plain = f"{self.model}{self.side}" + (f"@{self.view}" if self.view else "")
        return "|".join(["+".join([plain, *map(str, self.fused)]), *map(str, self.stacked)])


@dataclass(frozen=True, order=True)
class Arrow:
    """Rows of ``anchor`` against candidates from ``other``."""

    anchor: Node
    other: Node

    @property
    def reverse(self) -> Arrow:
        """The arrow the other way round, whose matrix is the transpose."""
        return Arrow(self.other, self.anchor)

    def __str__(self) -> str:
        return f"{self.anchor}>{self.other}"


def parse_arrows(text: object) -> tuple[Arrow, ...]:
    """Read ``"SI>TT, ST>TI"`` or ``"SI-ST"`` (both directions) into arrows, in the order written.

    Raises:
        RecipeError: a piece is no arrow, or names an unknown node.
    """
    if not isinstance(text, str) or not text.strip():
        raise RecipeError(f"expected arrows such as 'SI-ST' or 'SI>TT, ST>TI', found {text!r}.")
    arrows: list[Arrow] = []
    for piece in text.split(","):
        nodes = re.split(r"([>-])", piece.strip())
        if len(nodes) != 3:
            raise RecipeError(
                f"'{piece.strip()}' is no arrow: write 'SI>TT' (anchor > candidates) or 'SI-ST' (both directions)."
            )
        left, right = Node.parse(nodes[0]), Node.parse(nodes[2])
        arrows.append(Arrow(left, right))
        if nodes[1] == "-":
            arrows.append(Arrow(right, left))
    return tuple(arrows)
