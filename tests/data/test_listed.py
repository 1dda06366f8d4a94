"""Samples that lie in a list: what tells one list from another, and a choice of some of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipdistill.data.samples import Sample
from clipdistill.data.sources import Samples, from_samples, pairs
from clipdistill.data.sources.listed import Kept
from clipdistill.errors import DataError


def test_the_fingerprint_follows_ids_captions_labels_groups_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"123")
    variants = [
        Sample("a", path, {"": ["x"]}, "l", "g"),
        Sample("b", path, {"": ["x"]}, "l", "g"),
        Sample("a", path, {"": ["y"]}, "l", "g"),
        Sample("a", path, {"": ["x"], "syn": ["y"]}, "l", "g"),
        Sample("a", path, {"": ["x"]}, None, "g"),
        Sample("a", path, {"": ["x"]}, "l", None),
        Sample("a", tmp_path / "none.jpg", {"": ["x"]}, "l", "g"),
        Sample("a", b"1234", {"": ["x"]}, "l", "g"),
        Sample("a", np.zeros((1, 2, 3), np.uint8), {"": ["x"]}, "l", "g"),
    ]
    prints = [from_samples([sample]).fingerprint for sample in variants]
    assert len(set(prints)) == len(prints)
    assert from_samples([variants[0]], "elsewhere").fingerprint == prints[0]


def test_lists_refuse_equal_ids_and_nothing() -> None:
    sample = Sample("a", b"", {})
    with pytest.raises(DataError, match="sample 1 has the id 'a' of an earlier one"):
        from_samples([sample, sample])
    with pytest.raises(DataError, match="there are no samples"):
        from_samples([], "mine")


def test_half_a_character_is_a_question_mark() -> None:
    sample = Sample("a", None, {"": ["cut \ud83d", "红色 🚲", " "]})
    assert sample.captions == ["cut ?", "红色 🚲"]


def test_what_is_kept_of_a_source_is_read_from_it() -> None:
    whole = pairs("scenes:train?n=20")
    places = np.array([1, 4, 5, 19])
    kept = Kept(whole.uri, whole, places)
    assert [kept[place].id for place in range(len(kept))] == [whole[int(place)].id for place in places]
    assert kept.blocks is None
    assert kept.fingerprint not in (whole.fingerprint, Kept(whole.uri, whole, places[:3]).fingerprint)
    assert kept.fingerprint == Kept(whole.uri, whole, places.copy()).fingerprint
    in_blocks = Kept("x", InBlocks("x", list(whole)), places)
    assert in_blocks.blocks == [2, 1, 1]


class InBlocks(Samples):
    @property
    def blocks(self) -> list[int]:
        return [5, 5, 10]
