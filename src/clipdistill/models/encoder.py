"""Two towers, whoever wrote them: the one interface through which the rest of the program sees a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from clipdistill.data.views import Transform

#: What a transform or a tokenizer gives, batched: ``{"pixel_values": [B, 3, h, w]}``, ``{"input_ids": [B, L], ...}``.
Inputs = Mapping[str, Tensor]


class DualEncoder(Protocol):
    """A pair of towers with one joint space.

    ``images`` and ``texts`` return rows as the model gives them, ``float [B, D]``, not normalised: the algebra
    and the evaluation normalise. ``sides`` is ``"IT"``, ``"I"`` or ``"T"``: a model of pictures alone is one without
    a text tower and ``tokenizer``. ``classes`` names what a classifier's head tells apart, in the order of its
    logits; empty for a model without a head.
    """

    uri: str
    width: int
    sides: str
    classes: tuple[str, ...]
    tokenizer: Any
    transform: Transform | None

    @property
    def module(self) -> nn.Module:
        """The towers as one torch module: what is trained, moved and counted."""
        ...

    @property
    def log_scale(self) -> nn.Parameter | None:
        """The logarithm of the logit scale, ``[]``, if the model has one."""
        ...

    @property
    def bias(self) -> nn.Parameter | None:
        """The logit bias of sigmoid models (SigLIP), ``[]``, if the model has one."""
        ...

    @property
    def scale(self) -> float:
        """The logit scale as a number; 1 / 0.07 for a model that has none."""
        ...

    @property
    def patch_tokens(self) -> nn.Module | None:
        """The module whose output is a picture's tokens, ``[B, prefix + patches, D]``; None for a tower without."""
        ...

    def images(self, pixels: Inputs) -> Tensor:
        """Embed pictures: ``{"pixel_values": [B, 3, h, w]} -> [B, D]``."""
        ...

    def images_and_logits(self, pixels: Inputs) -> tuple[Tensor, Tensor]:
        """Embed and classify pictures in one pass: ``[B, D]`` and ``[B, K]``, one logit for each of ``classes``.

        Raises :class:`ModelError` for a model without a head.
        """
        ...

    def texts(self, tokens: Inputs) -> Tensor:
        """Embed captions: ``{"input_ids": [B, L], ...} -> [B, D]``; raises :class:`ModelError` without a text tower."""
        ...

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise captions by the model's own text rules (padding, length, case), ``int64 [B, L]`` each."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of weights, settings, text rules and transform: equal exactly when the embeddings are."""
        ...

    def save(self, folder: Path, card: Mapping[str, Any] | None = None) -> None:
        """Write a standard folder of the model's library, whole or not at all."""
        ...
