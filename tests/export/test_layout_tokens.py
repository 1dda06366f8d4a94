"""Lower case that a model was trained on, said in tokenizer.json for libraries that read nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from clipdistill.export.layout_tokens import write_lowered
from clipdistill.search.tokens import TextRules

KEEPING = TextRules(inputs=("input_ids",), length=8, fixed=True, pad_id=0)


def keeping_case(folder: Path, normalizer: normalizers.Normalizer | None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "red": 1, "Red": 2, "circle": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize("normalizer", [None, normalizers.NFKC()])
def test_the_file_alone_lowers_what_the_rule_lowered(tmp_path: Path, normalizer: normalizers.Normalizer | None) -> None:
    before = keeping_case(tmp_path, normalizer)
    assert before.encode("Red Circle").ids == [2, 0]
    rules = write_lowered(tmp_path, TextRules(**{**vars(KEEPING), "lower_case": True}))
    after = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert after.encode("Red Circle").ids == before.encode("red circle").ids == [1, 3]
    assert rules == KEEPING
    if normalizer is not None:
        assert after.encode("\uff52\uff45\uff44").ids == [1]  # full-width letters


def test_a_tokenizer_that_needs_no_rule_stays_as_it_is(tmp_path: Path) -> None:
    keeping_case(tmp_path, None)
    written = (tmp_path / "tokenizer.json").read_bytes()
    assert write_lowered(tmp_path, KEEPING) is KEEPING
    assert (tmp_path / "tokenizer.json").read_bytes() == written
