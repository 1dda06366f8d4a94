"""Chinese-CLIP's LMDB folders give what the files they were made from give, and run nothing."""

from __future__ import annotations

import base64
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipdistill.data.check import check
from clipdistill.data.images import content_hash, decode, fetch
from clipdistill.data.samples import Sample
from clipdistill.data.sources import pairs
from clipdistill.data.sources.chinese_clip_lmdb import LmdbPicture, read_pair
from clipdistill.errors import ConfigError, DataError

Pair = tuple[int, int, str]


def jpeg(colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), (colour, 255 - colour, 20)).save(stream, format="JPEG")
    return stream.getvalue()


PICTURES = {7: jpeg(10), 11: jpeg(120), 33: jpeg(250)}
PAIRS: list[Pair] = [(33, 1, "红色的包"), (7, 1, "红色的包"), (7, 2, "单肩包"), (7, 3, "a" * 300)]


def write_database(folder: Path, count: bytes, values: dict[str, bytes], told: int | None = None) -> None:
    """As their script does: a number under a name of its own, written last."""
    folder.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
        if told != -1:
            transaction.put(count, str(len(values) if told is None else told).encode())


def write_lmdb(split: Path, texts: Iterable[Any] = PAIRS, protocol: int = 4) -> Path:
    encoded = {str(name): base64.urlsafe_b64encode(data) for name, data in PICTURES.items()}
    write_database(split / "imgs", b"num_images", encoded)
    pickled = {str(n): text if type(text) is bytes else pickle.dumps(text, protocol) for n, text in enumerate(texts)}
    write_database(split / "pairs", b"num_samples", pickled)
    return split


def samples(uri: Path | str) -> list[Sample]:
    source = pairs(uri)
    return [source[index] for index in range(len(source))]


def problem(uri: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        pairs(uri)
    return str(caught.value)


@pytest.mark.parametrize("name", ["lmdb/train", "train", "", "lmdb"])
def test_texts_are_gathered_at_their_pictures(tmp_path: Path, name: str) -> None:
    write_lmdb(tmp_path / "MUGE" / "lmdb" / "train")
    found = samples(tmp_path / "MUGE" / name)
    assert [(sample.id, sample.captions) for sample in found] == [
        ("11", []),
        ("33", ["红色的包"]),
        ("7", ["红色的包", "单肩包", "a" * 300]),
    ]
    for sample in found:
        data = PICTURES[int(sample.id)]
        assert isinstance(sample.image, LmdbPicture)
        assert fetch(sample.image) == data
        assert decode(sample.image).tobytes() == decode(data).tobytes()
        assert content_hash(sample.image) == content_hash(data)
    assert samples(f"{tmp_path / 'MUGE' / name}?caption=none")[0].texts == {}


def test_the_files_are_read_where_both_are_there(tmp_path: Path) -> None:
    split = write_lmdb(tmp_path / "lmdb" / "train")
    (tmp_path / "train_imgs.tsv").write_text("5\t" + base64.b64encode(PICTURES[7]).decode() + "\n")
    (tmp_path / "train_texts.jsonl").write_text('{"text_id": 1, "text": "x", "image_ids": [5]}\n')
    for uri in (split, tmp_path / "train", tmp_path):
        assert [(sample.id, sample.captions) for sample in samples(uri)] == [("5", ["x"])]


def test_a_folder_of_pictures_beside_lmdb_is_a_folder(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "lmdb" / "train")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(PICTURES[7])
    assert [sample.id for sample in samples(tmp_path / "train")] == ["a.jpg"]


def test_several_splits_must_be_told_apart(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        write_lmdb(tmp_path / "lmdb" / name)
    for uri in (tmp_path, tmp_path / "lmdb"):
        assert f"Did you mean {tmp_path}/lmdb/train or {tmp_path}/lmdb/valid?" in problem(uri)


def test_the_fingerprint_follows_texts_and_pictures(tmp_path: Path) -> None:
    first, again = (pairs(write_lmdb(tmp_path / name)).fingerprint for name in "ab")
    assert first == again
    assert pairs(write_lmdb(tmp_path / "c", PAIRS[1:])).fingerprint != first


# Pickles


class Wicked:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_can_run_code(tmp_path: Path, protocol: int) -> None:
    made = tmp_path / "made"
    for wicked in (Wicked(made), (7, 1, Wicked(made))):
        pickle.loads(pickle.dumps(wicked, protocol))
        made.rmdir()  # it would have run
        folder = write_lmdb(tmp_path / str(type(wicked)), [*PAIRS, wicked], protocol if protocol > 1 else 2)
        write_database(folder / "pairs", b"num_samples", {str(len(PAIRS)): pickle.dumps(wicked, protocol)}, 5)
        message = problem(folder)
        assert f"{folder / 'pairs'}: key 4: its pickle has the opcode" in message
        assert not made.exists()
        if protocol > 1:
            assert ("STACK_GLOBAL" if protocol >= 4 else "opcode GLOBAL") in message


ODD: list[tuple[Any, str]] = [
    ((7, 1), "the opcode TUPLE2 at byte"),
    ((7, 1, b"x"), "the opcode SHORT_BINBYTES at byte"),
    ((7, 1, None), "the opcode NONE at byte"),
    ((7, 1, 2), "is a tuple of int, int, int"),
    ((7, (1, 2, 3), "x"), "is a tuple of int, tuple, str"),
    ("x", "makes str"),
    ([7, 1, "x"], "the opcode EMPTY_LIST at byte"),
    (b"", "is cut off"),
    (pickle.dumps((7, 1, "x"), 2)[:-3], "is cut off"),
    (b"\x80\x02\xffx.", "the opcode 0xff, which is none"),
    (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "is cut off"),
    (b"\x80\x02K\x07K\x01X\x01\x00\x00\x00\xff\x87.", "is not UTF-8"),
    (b"\x80\x02.", "makes list"),
    ((99, 1, "x"), "names the picture 99, which"),
]


@pytest.mark.parametrize(("value", "message"), ODD, ids=[message for _, message in ODD])
def test_other_pickles_are_named_with_their_key(tmp_path: Path, value: Any, message: str) -> None:
    found = problem(write_lmdb(tmp_path / "x", [*PAIRS, value]))
    assert f"{tmp_path / 'x' / 'pairs'}: key 4" in found
    assert message in found


NAMES = st.one_of(st.integers(-(1 << 70), 1 << 70), st.text())


@given(NAMES, NAMES, st.text(st.characters(), max_size=300), st.integers(2, pickle.HIGHEST_PROTOCOL))
@settings(deadline=None)
def test_every_pair_comes_back(image: int | str, name: int | str, text: str, protocol: int) -> None:
    for pair in ((image, name, text), (text, text, text)):
        assert read_pair(pickle.dumps(pair, protocol)) == pair


@given(st.binary(max_size=40), st.integers(0, 40))
@settings(deadline=None)
def test_random_bytes_are_a_pair_or_one_error(noise: bytes, place: int) -> None:
    whole = pickle.dumps((7, 1, "text"), 4)
    try:
        pair = read_pair(whole[:place] + noise + whole[place + len(noise) :])
    except DataError:
        return
    assert [type(part) in (int, str) for part in pair] == [True] * 3


# Databases


def test_databases_that_are_not_whole(tmp_path: Path) -> None:
    half = write_lmdb(tmp_path / "half")
    (half / "pairs" / "data.mdb").unlink()
    assert f"needs {half / 'pairs' / 'data.mdb'}, which is not there" in problem(half)

    cut = write_lmdb(tmp_path / "cut")
    os.truncate(cut / "imgs" / "data.mdb", 8192)
    assert f"{cut / 'imgs' / 'data.mdb'}: cut off, found 8,192 bytes of" in problem(cut)

    for content in (b"", b"not a database" * 1000):
        other = write_lmdb(tmp_path / f"other{len(content)}")
        (other / "pairs" / "data.mdb").write_bytes(content)
        assert f"{other / 'pairs'}: not an LMDB database that can be read" in problem(other)


def test_counts_and_keys_that_do_not_fit(tmp_path: Path) -> None:
    values = {str(number): pickle.dumps(pair) for number, pair in enumerate(PAIRS)}
    for told, message in ((-1, "num_samples is None, but it has 4"), (9, "num_samples is 9, but it has 4 entries")):
        split = write_lmdb(tmp_path / str(told), [])
        with lmdb.open(str(split / "pairs")) as environment, environment.begin(write=True) as transaction:
            transaction.delete(b"num_samples")
        write_database(split / "pairs", b"num_samples", values, told)
        assert message in problem(split)
    split = write_lmdb(tmp_path / "gap", [])
    write_database(split / "pairs", b"num_samples", {"0": values["0"], "8": values["1"]})
    assert "there is no key 1, expected 0 to 1" in problem(split)


def test_a_damaged_picture_is_met_when_it_is_read(tmp_path: Path) -> None:
    split = write_lmdb(tmp_path / "train")
    write_database(split / "imgs", b"num_images", {"44": b"ab!d", "55": b"AAAA"}, 5)
    report = check(pairs(split))
    assert set(report.unreadable) == {"44", "55"}
    assert report.unreadable["44"].startswith("its base64 text is damaged")
    with pytest.raises(DataError, match=r"imgs: key 44: its base64"):
        fetch(next(sample for sample in samples(split) if sample.id == "44").picture)


#: In a process of its own: what a fork takes along of other tests' threads may hang.
READERS = """
import multiprocessing, sys
from clipdistill.data.images import fetch
from clipdistill.data.sources import pairs

if __name__ == "__main__":
    source = pairs(sys.argv[1])
    pictures = [source[index].picture for index in range(len(source))]
    here = [fetch(picture) for picture in pictures]  # open here already
    with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
        assert pool.map(fetch, pictures * 4) == here * 4
    assert [fetch(picture) for picture in pictures] == here
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_it_too(tmp_path: Path, method: str) -> None:
    split = write_lmdb(tmp_path / "train")
    (tmp_path / "readers.py").write_text(READERS)
    subprocess.run([sys.executable, tmp_path / "readers.py", split, method], check=True, timeout=120)


def test_it_needs_no_write_permission(tmp_path: Path) -> None:
    split = write_lmdb(tmp_path / "train")
    for name in ("imgs", "pairs"):
        (split / name / "lock.mdb").unlink()
    assert len(pairs(split)) == 3
    assert sorted(path.name for path in split.rglob("*.mdb")) == ["data.mdb"] * 2


def test_without_lmdb_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = write_lmdb(tmp_path / "train")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ConfigError, match=r"pip install 'clipdistill\[data\]'"):
        pairs(split)
