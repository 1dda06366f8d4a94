"""Tokenizers: read from a model's folder, trained on captions, fitted to the text tower of a student."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, CLIPTokenizer

from clipdistill.errors import ConfigError, ModelError
from clipdistill.models.own_code import refuse_code

#: Any of these holds a vocabulary. Without one, transformers would make an empty tokenizer and say nothing.
_VOCABULARY_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model"),
    *("tokenizer.model", "sentencepiece.bpe.model"),
)
_WORD_PIECES = "vocab.txt"
#: Any of these says of what kind a tokenizer is.
_TOKENIZER_CONFIGS = ("tokenizer.json", "tokenizer_config.json", "config.json")
#: How ModelScope's TEAM reads captions, and the file by which its folder is known.
TEAM: dict[str, Any] = {"lower_case": False, "longest": 30}
TEAM_MARK = "text_config.json"
_SUFFIX = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"
#: Every byte, every byte at the end of a word, start and end: no caption can fall out of such a vocabulary.
SMALLEST_VOCABULARY = 2 * 256 + 2


def read_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a model folder from its own files; raises :class:`ModelError` if it has none.

    A folder with ``vocab.txt`` and nothing beside it that says more is Chinese-CLIP's, or one of ModelScope's.
    """
    if not any((folder / name).is_file() for name in _VOCABULARY_FILES):
        raise ModelError(
            f"{folder} holds no tokenizer (found: {_listing(folder)}); expected one of {', '.join(_VOCABULARY_FILES)}. "
            "Copy the tokenizer files of the original model into the folder."
        )
    if (folder / _WORD_PIECES).is_file() and not any((folder / name).is_file() for name in _TOKENIZER_CONFIGS):
        return read_word_pieces(folder / _WORD_PIECES, **(TEAM if (folder / TEAM_MARK).is_file() else {}))
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:  # SigLIP's own tokenizer class is not among the fast ones
        raise ModelError(
            f"the tokenizer in {folder} needs packages that are not installed. Install them with: "
            "pip install sentencepiece protobuf"
        ) from error
    except Exception as error:  # a broken file: the library's backends raise bare classes of every kind
        refuse_code(error, folder)
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded: {error}. Copy the original model's tokenizer files again."
        ) from error


def read_word_pieces(path: Path, lower_case: bool = True, longest: int = 512) -> Any:
    """Make BERT's tokenizer from the ``vocab.txt`` of a folder that has no other file of it."""
    return BertTokenizer(vocab=str(path), do_lower_case=lower_case, model_max_length=longest)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files into a model's folder."""
    if tokenizer.is_fast:  # else the padding of the last batch would be written as if it were a rule
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"


def train_tokenizer(captions: Iterable[str], vocab_size: int = 8192, context_length: int = 77) -> Any:
    """Train CLIP's tokenizer, a lower-casing byte-level BPE, on the captions; any language, no unknown characters.

    The result is a ``transformers.CLIPTokenizer`` of at most ``vocab_size`` entries (fewer when the captions hold
    fewer merges), the same for the same captions. As in CLIP, the end token has the highest id and also pads.
    Raises :class:`ConfigError` for a vocabulary under :data:`SMALLEST_VOCABULARY`.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"vocab_size is {vocab_size}; a byte-level vocabulary needs at least {SMALLEST_VOCABULARY} "
            "(every byte, alone and at the end of a word, start and end)."
        )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters += [letter + _SUFFIX for letter in letters]
    merges = _train_merges(captions, letters, vocab_size)[: vocab_size - SMALLEST_VOCABULARY]
    entries = dict.fromkeys([*letters, *("".join(merge) for merge in merges), _START, _END])
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)


def _train_merges(captions: Iterable[str], letters: list[str], vocab_size: int) -> list[tuple[str, str]]:
    pipeline = CLIPTokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=_SUFFIX))
    tokenizer.normalizer, tokenizer.pre_tokenizer = pipeline.normalizer, pipeline.pre_tokenizer
    # Named in advance, the letters have fixed ids: ties between equally frequent merges then fall the same way always.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=letters, end_of_word_suffix=_SUFFIX, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    merges: list[tuple[str, str]] = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    return merges


def fit_to_tower(tokenizer: Any, context_length: int, masked: bool = True) -> Any:
    """Return a copy of a tokenizer that a new text tower can read.

    Positions are numbered from the left and CLIP pools at the first end token, so captions are padded on the right
    and must end with a token of their own. ``masked``: whether the tower is told what is padding. Raises
    :class:`ModelError` where the tokenizer ends captions with nothing.
    """
    end = end_token_id(tokenizer)
    fitted = copy.deepcopy(tokenizer)
    fitted.padding_side = "right"
    fitted.model_input_names = ["input_ids", "attention_mask"] if masked else ["input_ids"]
    fitted.model_max_length = context_length
    if fitted.pad_token_id is None:
        fitted.pad_token = fitted.convert_ids_to_tokens(end)
    # save_pretrained writes only what was given at construction.
    fitted.init_kwargs |= {"padding_side": "right", "model_input_names": fitted.model_input_names}
    return fitted


def end_token_id(tokenizer: Any) -> int:
    """Return the id with which every caption ends, seen from two captions; raises :class:`ModelError` if none does."""
    ends = {tokenizer(caption)["input_ids"][-1] for caption in ("a photo of a cat", "7")}
    end = int(min(ends))
    if len(ends) > 1 or end not in tokenizer.all_special_ids:
        raise ModelError(
            f"{type(tokenizer).__name__} does not end captions with a special token, "
            "and a CLIP text tower pools there. Use student.tokenizer=train."
        )
    if end == 2:
        raise ModelError(
            f"{type(tokenizer).__name__} ends captions with id 2, for which transformers' CLIPModel keeps an old rule "
            "(it pools at the highest id). Use student.tokenizer=train."
        )
    return end
