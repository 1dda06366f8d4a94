"""From a model's own tokenizer to a tokenizer.json with rules that need no transformers, proven equal on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipdistill.errors import ModelError
from clipdistill.export.graphs import graph_form
from clipdistill.models.encoder import DualEncoder
from clipdistill.search.tokens import Reader, TextRules

TOKENIZER = "tokenizer.json"
_LONG = "two dogs run along a beach, 两只狗在海滩上奔跑, "
#: English, Chinese, other scripts, signs, case, white space, special tokens, nothing, and more than any tower reads.
PROBES = (
    "a photo of a cat",
    "x",
    "Two DOGS, on a beach! It's 3:45 (about).",
    "两只狗在海滩上。",
    "a 狗 and “two” cats – naïve café, Ünïcödé",
    "🐶🐱 a dog 👩‍👩‍👧 & a cat",
    "  white\tspace \n everywhere  ",
    "<|endoftext|> [SEP] </s> &amp;lt; under_score #hash",
    "Привет, мир; こんにちは世界; 안녕; مرحبا",
    "",
    _LONG * 40,
)
#: open_clip's own tokenizer, and how the entries that begin and end its captions are called there: as words of a
#: caption only these names mean them.
_OPEN_CLIPS_OWN = "SimpleTokenizer"
_NAMES = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
#: Captions of different lengths, none as long as what towers read.
_OWN_LENGTHS = ("x", "a photo of a cat", "two dogs on a wide beach", "两只狗")
#: Unit rows that differ by less are the same row, computed in another order.
_SAME = 5e-6


def write_tokenizer(encoder: DualEncoder, folder: Path) -> TextRules:
    """Write a model's tokenizer.json, and return the rules by which a graph's inputs are made with it.

    Raises :class:`ModelError` for a tokenizer that cannot be written so, or does not give the same ids then.
    """
    tokenizer = encoder.tokenizer
    if not tokenizer.is_fast:
        raise ModelError(
            f"{encoder.uri}: its tokenizer, a {type(tokenizer).__name__}, has no tokenizer.json. "
            "Put the tokenizer.json of the original model into its folder."
        )
    described = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    text = json.dumps(described, ensure_ascii=False)
    if _said(encoder)["tokenizer"] == _OPEN_CLIPS_OWN:
        for theirs, name in _NAMES.items():
            text = text.replace(name, theirs).replace(name.replace("|", r"\\|"), theirs)
    (folder / TOKENIZER).write_text(text, encoding="utf-8")
    rules = _text_rules(encoder)
    _prove(encoder, Reader(folder / TOKENIZER, rules))
    return _at_own_length(encoder, folder, rules)


def _text_rules(encoder: DualEncoder) -> TextRules:
    """Read the rules by which the model itself reads captions."""
    given, tokenizer = _said(encoder), encoder.tokenizer
    if given.get("mode"):
        raise ModelError(
            f"{encoder.uri}: captions are read in open_clip's mode '{given['mode']}', which is not exported."
        )
    tokens = encoder.tokenize(["x"])
    fixed = given["padding"] == "max_length"
    # Where everything is padded, the padding can be seen: open_clip's own is not what its vocabulary names.
    seen = int(tokens["input_ids"][0, 0 if tokenizer.padding_side == "left" else -1])
    blank = tokenizer.sep_token_id if given.get("strip_sep_token") else None
    clean = given.get("clean") or ("lower" if given["tokenizer"] == _OPEN_CLIPS_OWN else "whitespace")
    return TextRules(
        inputs=tuple(tokens),
        length=int(given["length"]),
        fixed=fixed,
        pad_id=seen if fixed else int(tokenizer.pad_token_id),
        pad_type_id=int(tokenizer.pad_token_type_id),
        pad_side=tokenizer.padding_side,
        cut_side=tokenizer.truncation_side,
        prompt=given.get("prompt", ""),
        lower_case=bool(given.get("lower_case")),
        clean=clean if given["tokenizer"] else None,
        blank=blank,
    )


def _said(encoder: Any) -> dict[str, Any]:
    """Return what a model says about its captions; ``tokenizer`` names one of open_clip's, or nothing."""
    return {"tokenizer": "", **encoder.input_rules()["text"]}


def _prove(encoder: DualEncoder, reader: Reader) -> None:
    """Raise :class:`ModelError` unless both tokenise every probe alike, alone and in one batch."""
    for captions in ([caption] for caption in PROBES):
        _compare(encoder, reader, captions)
    _compare(encoder, reader, list(PROBES))


def _compare(encoder: DualEncoder, reader: Reader, captions: list[str]) -> None:
    theirs, ours = encoder.tokenize(captions), reader(captions)
    for name, expected in theirs.items():
        if not np.array_equal(ours[name], expected.numpy()):
            shown = captions[0][:60] if len(captions) == 1 else "a batch"
            raise ModelError(
                f"{encoder.uri}: its tokenizer, a {type(encoder.tokenizer).__name__}, gives other {name} for {shown!r} "
                "than its tokenizer.json does alone. It cannot be exported."
            )


@torch.no_grad()
def _at_own_length(encoder: DualEncoder, folder: Path, rules: TextRules) -> TextRules:
    """Find out whether padding matters: only where it does not, captions are read at their own length.

    A causal tower needs no mask then; one that masks padding needs it; SigLIP, which was trained on padding, and every
    tower that neither masks nor is causal always read their full length. Raises :class:`ModelError` for a tower that
    pads to the longest caption of a batch although padding matters.
    """
    whole = _rows(encoder, Reader(folder / TOKENIZER, replace(rules, fixed=True)), [_OWN_LENGTHS])
    without = tuple(name for name in rules.inputs if name != "attention_mask")
    with graph_form(encoder):
        for inputs in dict.fromkeys((without, rules.inputs)):
            own = replace(rules, inputs=inputs, fixed=False)
            if _padding_is_nothing(encoder, folder, own, whole):
                return own
    if not rules.fixed:
        raise ModelError(f"{encoder.uri}: a caption's row depends on the captions beside it, through their padding.")
    return rules


def _padding_is_nothing(encoder: DualEncoder, folder: Path, own: TextRules, whole: Tensor) -> bool:
    """Tell whether captions give the rows ``whole [B, D]`` both without padding and with as much as there can be."""
    path = folder / TOKENIZER
    try:
        alone = _rows(encoder, Reader(path, own), [[caption] for caption in _OWN_LENGTHS])
        padded = _rows(encoder, Reader(path, replace(own, fixed=True)), [_OWN_LENGTHS])
    except (KeyError, RuntimeError):  # a pooling that reads the mask itself; a tower that takes one length alone
        return False
    return all(float((rows - whole).abs().max()) < _SAME for rows in (alone, padded))


def _rows(encoder: DualEncoder, reader: Reader, batches: Sequence[Sequence[str]]) -> Tensor:
    """Embed batches of captions as a reader reads them: ``[B, D]``, rows of unit length."""
    found = []
    for captions in batches:
        tokens = {name: torch.from_numpy(ids) for name, ids in reader(captions).items()}
        found.append(F.normalize(encoder.texts(tokens), dim=1))
    return torch.cat(found)
