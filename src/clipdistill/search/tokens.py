"""Captions to token ids with the package tokenizers alone, by rules that an exported folder records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from clipdistill.errors import SearchError
from clipdistill.search.cleaning import cleaning


@dataclass(frozen=True)
class TextRules:
    """How captions become what a text graph reads.

    ``inputs`` are the graph's, among ``input_ids``, ``attention_mask`` and ``token_type_ids``. Captions are cut to
    ``length`` tokens; ``fixed`` pads every one to that length, else a batch is as long as its longest caption.
    ``clean`` is one of :data:`clipdistill.search.cleaning.CLEANINGS`, ``prompt`` is put before every caption, and
    every id ``blank`` becomes 0 in the end.
    """

    inputs: tuple[str, ...]
    length: int
    fixed: bool
    pad_id: int
    pad_type_id: int = 0
    pad_side: str = "right"
    cut_side: str = "right"
    prompt: str = ""
    lower_case: bool = False
    clean: str | None = None
    blank: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "inputs": list(self.inputs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextRules:
        """Read what :meth:`to_dict` gave."""
        return cls(**{**values, "inputs": tuple(values["inputs"])})


class Reader:
    """A tokenizer.json with the rules around it."""

    def __init__(self, path: Path, rules: TextRules) -> None:
        self.rules = rules
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions for every kind of damage
            raise SearchError(f"{path} is not a tokenizer: {error}. Export the model again.") from error
        self._tokenizer.enable_truncation(rules.length, direction=rules.cut_side)
        self._tokenizer.enable_padding(
            direction=rules.pad_side,
            pad_id=rules.pad_id,
            pad_type_id=rules.pad_type_id,
            pad_token="[PAD]",  # only its id is ever read
            length=rules.length if rules.fixed else None,
        )

    def __call__(self, captions: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Tokenise at least one caption: ``int64 [B, L]`` for each input of the graph.

        Raises :class:`SearchError` for a caption that is no Unicode text.
        """
        found = self._tokenizer.encode_batch([self._line(caption) for caption in captions])
        ids = np.array([one.ids for one in found], np.int64)
        if self.rules.blank is not None:
            ids[ids == self.rules.blank] = 0
        rows = {
            "input_ids": ids,
            "attention_mask": np.array([one.attention_mask for one in found], np.int64),
            "token_type_ids": np.array([one.type_ids for one in found], np.int64),
        }
        return {name: rows[name] for name in self.rules.inputs}

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Count the tokens of each caption, cut but not padded."""
        found = self._tokenizer.encode_batch([self._line(caption) for caption in captions])
        return [sum(one.attention_mask) for one in found]

    def _line(self, caption: str) -> str:
        try:
            caption.encode()
        except UnicodeEncodeError as error:
            raise SearchError(f"a caption holds half a character: {error}") from error
        line = self.rules.prompt + caption
        if self.rules.clean:
            line = cleaning(self.rules.clean)(line)
        return line.lower() if self.rules.lower_case else line
