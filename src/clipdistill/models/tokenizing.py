"""From captions to tokens by a model's own rules, without its weights: other processes tokenise, and need no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class TextRules:
    """How captions become tokens: ``padding`` is ``longest`` (in the batch) or ``max_length`` (always ``length``)."""

    padding: str
    length: int
    lower_case: bool


def positions(transformer: nn.Module) -> list[int]:
    """Return how many tokens each table of positions in a text tower has room for; none where angles say the place."""
    return [
        # RoBERTa, MPNet and their like count from behind the padding id.
        part.num_embeddings - (0 if part.padding_idx is None else part.padding_idx + 1)
        for name, part in transformer.named_modules()
        if isinstance(part, nn.Embedding) and name.rpartition(".")[2] in ("position_embeddings", "position_embedding")
    ]


@dataclass(frozen=True, eq=False)
class Tokenizing:
    """Tokenise captions behind ``prompt``: ``int64 [B, L]`` for each of ``names``, cut to what the model reads."""

    tokenizer: Any
    rules: TextRules
    names: tuple[str, ...]
    prompt: str = ""

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        rules = self.rules
        lines = [self.prompt + caption for caption in captions]
        if rules.lower_case:
            lines = [line.lower() for line in lines]
        batch = self.tokenizer(
            lines, padding=rules.padding, truncation=True, max_length=rules.length, return_tensors="pt"
        )
        return {name: batch[name].long() for name in self.names if name in batch}


@dataclass(frozen=True, eq=False)
class OpenClipTokenizing:
    """Clean and tokenise captions as open_clip does: ``int64 [B, L]``, always to the model's full length."""

    tokenizer: Any

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return {"input_ids": self.tokenizer(list(captions)).long()}
