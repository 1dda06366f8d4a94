"""The trained tokenizer: any language, the same every time, and the same again for transformers alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, CLIPTokenizer

from clipdistill.errors import ConfigError, ModelError
from clipdistill.models.loading import load
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build, choose_tokenizer
from clipdistill.models.vocabulary import SMALLEST_VOCABULARY, read_tokenizer, train_tokenizer

CORPUS = [
    "a red square left of a blue circle",
    "两只狗在海滩上",
    "红色的方块在蓝色的圆左边",
    "don't: 3 dogs",
] * 4
UNSEEN = [
    "A Red SQUARE",
    "三只猫，在沙滩上。",
    "naïve café",
    "emoji 🐶!",
    "",
    "  two   spaces ",
    "Ελληνικά",
    "\x00\u200b",
]


def test_every_caption_survives() -> None:
    tokenizer = train_tokenizer(CORPUS, 700, 77)
    for text in (*CORPUS, *UNSEEN):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in ids[:-1], "an unknown piece would read as the end of the caption"
    assert tokenizer.decode(tokenizer("三只猫在沙滩上")["input_ids"], skip_special_tokens=True) == "三只猫在沙滩上"
    assert tokenizer("A RED square")["input_ids"] == tokenizer("a red Square")["input_ids"]
    assert tokenizer("cafe\u0301")["input_ids"] == tokenizer("café")["input_ids"]


def test_frequent_words_become_one_token_in_both_languages() -> None:
    tokenizer = train_tokenizer(CORPUS, 2000, 77)
    assert len(tokenizer("square")["input_ids"]) == 3
    assert len(tokenizer("两只狗在海滩上")["input_ids"]) == 3
    assert len(tokenizer("a red square left of a blue circle")["input_ids"]) == 2 + 8


def test_the_end_token_has_the_highest_id_and_pads() -> None:
    tokenizer = train_tokenizer(CORPUS, 560, 20)
    assert len(tokenizer) == 560
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 559
    assert tokenizer.model_max_length == 20
    assert sorted(tokenizer.get_vocab().values()) == list(range(560))


def test_training_is_deterministic_and_does_not_depend_on_the_order_of_captions() -> None:
    first = train_tokenizer(CORPUS, 640, 77).backend_tokenizer.to_str()
    assert all(train_tokenizer(iter(CORPUS), 640, 77).backend_tokenizer.to_str() == first for _ in range(3))
    assert train_tokenizer(reversed(CORPUS), 640, 77).backend_tokenizer.to_str() == first


@pytest.mark.parametrize("reader", [AutoTokenizer.from_pretrained, CLIPTokenizer.from_pretrained, read_tokenizer])
def test_transformers_alone_reads_the_same_ids(reader: object, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CORPUS, 700, 77)
    tokenizer.save_pretrained(tmp_path)
    again = reader(tmp_path)  # type: ignore[operator]
    lines = [*CORPUS, *UNSEEN]
    assert again(lines, padding=True)["input_ids"] == tokenizer(lines, padding=True)["input_ids"]
    assert again.model_max_length == 77


def test_no_captions_leave_plain_bytes() -> None:
    tokenizer = train_tokenizer([], 1000, 77)
    assert len(tokenizer) == SMALLEST_VOCABULARY
    assert len(tokenizer("dog")["input_ids"]) == 5


def test_a_vocabulary_that_cannot_hold_all_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size is 100; .* needs at least 514"):
        train_tokenizer(CORPUS, 100)


@pytest.mark.parametrize("mark", [None, "text_config.json"])
def test_a_folder_of_word_pieces_alone_is_read(mark: str | None, tmp_path: Path) -> None:
    """Chinese-CLIP's vocab.txt says nothing of case, and is in lower case; TEAM, known by its file, keeps case."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "Cat", "两", "只"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if mark:
        (tmp_path / mark).write_text("{}")
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer("a Cat两只")["input_ids"] == [2, 5, 7 if mark else 6, 8, 9, 3]
    assert tokenizer.model_max_length == (30 if mark else 512)


def test_a_student_takes_word_pieces_and_is_opened_with_them(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    spec = StudentSpec(preset="scenes-student", tokenizer=str(tmp_path))
    student = build(spec, choose_tokenizer(spec, None, iter(())))
    student.save(tmp_path / "student")
    again = load(str(tmp_path / "student"))
    assert again.fingerprint == student.fingerprint
    assert again.tokenize(["A CAT"])["input_ids"].tolist() == [[2, 5, 6, 3]]


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    with pytest.raises(ModelError, match=r"holds no tokenizer \(found: tokenizer_config.json\)"):
        read_tokenizer(tmp_path)
