"""Captions for the runtime: the ids of the model's own tokenizer, without transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from clipdistill.errors import ModelError, SearchError
from clipdistill.export.reading import TOKENIZER, write_tokenizer
from clipdistill.models.loading import load
from clipdistill.search.cleaning import CLEANINGS, cleaning
from clipdistill.search.tokens import Reader, TextRules
from models.conftest import MAKERS
from tiny_open_clip import CONFIGS, make

CAPTIONS = [
    "A Photo of two Dogs, on a beach!",
    "a red circle",
    "两只狗在海滩上，跑步",
    "🐶 a dog 👩‍👩‍👧",
    "",
    " white \t space ",
    "<|endoftext|> [SEP] </s> <end_of_text>",
    "“curly” &amp; caf\u00e9 cafe\u0301",
    "two dogs run on a beach " * 60,
]
#: Inputs of the text graph, whether it is always padded, and its length.
RULES = {
    "clip": (("input_ids",), False, 77),
    "chinese_clip": (("input_ids", "attention_mask", "token_type_ids"), False, 52),
    "siglip": (("input_ids",), True, 64),
    "siglip2": (("input_ids",), True, 64),
    "vision-text-dual-encoder": (("input_ids", "attention_mask", "token_type_ids"), False, 40),
    "siglip2-square": (("input_ids",), True, 64),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for name, maker in MAKERS.items():
        torch.manual_seed(len(name))
        maker(root / name)
    return {name: root / name for name in MAKERS}


def check_ids(encoder: Any, reader: Reader) -> None:
    for captions in (*([caption] for caption in CAPTIONS), CAPTIONS):
        theirs, ours = encoder.tokenize(captions), reader(captions)
        assert set(reader.rules.inputs) <= set(theirs)
        for name in reader.rules.inputs:
            assert ours[name].dtype == np.int64
            assert np.array_equal(ours[name], theirs[name].numpy()), (name, captions)


@pytest.mark.parametrize("family", MAKERS)
def test_ids_are_those_of_the_tokenizer_of_transformers(family: str, families: dict[str, Path], tmp_path: Path) -> None:
    encoder: Any = load(str(families[family]))
    rules = write_tokenizer(encoder, tmp_path)
    assert (rules.inputs, rules.fixed, rules.length) == RULES[family]
    check_ids(encoder, Reader(tmp_path / TOKENIZER, rules))
    assert TextRules.from_dict(rules.to_dict()) == rules


@pytest.mark.parametrize("kind", sorted(set(CONFIGS) - {"resnet", "quickgelu"}))
def test_ids_are_those_of_open_clip(kind: str, families: dict[str, Path], tmp_path: Path) -> None:
    encoder: Any = load(str(make(tmp_path / "model", kind, families)))
    rules = write_tokenizer(encoder, tmp_path)
    # Causal towers are read at their own length here, which is not how open_clip reads them.
    check_ids(encoder, Reader(tmp_path / TOKENIZER, replace(rules, fixed=True)))
    assert rules.fixed == (kind in {"siglip", "mobileclip"})


@pytest.mark.parametrize("name", CLEANINGS)
@pytest.mark.parametrize("text", [*CAPTIONS, "&amp;lt;b&gt; &#39;", "Under_Score #3  ...", "schÃ¶n ‘x’ ＡＢＣ，"])
def test_captions_are_cleaned_as_open_clip_does(name: str, text: str) -> None:
    assert cleaning(name)(text) == open_clip.tokenizer.get_clean_fn(name)(text)


def test_lengths_are_those_of_the_ids(families: dict[str, Path], tmp_path: Path) -> None:
    rules = write_tokenizer(load(str(families["clip"])), tmp_path)
    reader = Reader(tmp_path / TOKENIZER, rules)
    assert reader.lengths(CAPTIONS) == [reader([caption])["input_ids"].shape[1] for caption in CAPTIONS]


def test_a_tokenizer_that_gives_other_ids_is_refused(
    families: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder: Any = load(str(families["clip"]))
    theirs = encoder.tokenize
    monkeypatch.setattr(encoder, "tokenize", lambda captions: theirs([caption.upper() + "x" for caption in captions]))
    with pytest.raises(ModelError, match=r"CLIPTokenizer, gives other input_ids for 'a photo of a cat'"):
        write_tokenizer(encoder, tmp_path)


def test_what_cannot_be_read_is_named(families: dict[str, Path], tmp_path: Path) -> None:
    rules = write_tokenizer(load(str(families["clip"])), tmp_path)
    with pytest.raises(SearchError, match="half a character"):
        Reader(tmp_path / TOKENIZER, rules)(["\ud83d"])
    (tmp_path / TOKENIZER).write_text("{")
    with pytest.raises(SearchError, match=r"tokenizer\.json is not a tokenizer"):
        Reader(tmp_path / TOKENIZER, rules)
    with pytest.raises(SearchError, match="Did you mean 'lower'"):
        cleaning("lowe")
