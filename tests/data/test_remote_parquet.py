"""Parquet files elsewhere: over HTTP from a real server, and from fsspec's own file systems."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clipdistill.data.block_order import BlockOrder, fetch_ahead, order_of
from clipdistill.data.images import fetch
from clipdistill.data.samples import Source
from clipdistill.data.sources import from_samples, pairs, remote_parquet
from clipdistill.data.sources.remote_parquet import RemotePicture
from clipdistill.data.workers import load
from clipdistill.errors import DataError
from shard_server import Server, contents, copies
from waiting import until

ROWS = 10
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "caption": datasets.List(datasets.Value("string")),
        "label": datasets.ClassLabel(names=["dog", "cat"]),
        "key": datasets.Value("string"),
        "mask": datasets.Value("binary"),
        "vector": datasets.List(datasets.Value("float32")),
    }
)


@pytest.fixture(autouse=True)
def nothing_read(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "converted")
    remote_parquet._READ.clear()


def noise(number: int) -> bytes:
    """What stands for a picture, of a size of its own."""
    return np.random.default_rng(number).bytes(3000 + number % 7)


def table(number: int, rows: int = ROWS) -> pa.Table:
    """File ``number``, as the hub stores it: a row without a picture comes in every second one."""
    every = [number * 1000 + row for row in range(rows)]
    columns: dict[str, list[Any]] = {
        "image": [{"bytes": noise(one), "path": f"{one}.jpg"} for one in every],
        "caption": [[f"caption {one}", "again"] for one in every],
        "label": [one % 2 for one in every],
        "key": [f"k{one}" for one in every],
        "mask": [noise(one + 1)[:100] for one in every],
        "vector": [[0.5] * 4 for _ in every],
    }
    if number % 2:
        columns["image"][3] = None
        columns["image"][4] = {"bytes": None, "path": None}
    return pa.table(columns, FEATURES.arrow_schema)


def written(content: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(content, stream, row_group_size=4)
    return stream.getvalue()


def put(server: Server, count: int) -> str:
    """Put ``count`` files on the server, and return their name."""
    server.files |= {f"/cc/{number}.parquet": written(table(number)) for number in range(count)}
    return f"http://127.0.0.1:{server.server_port}/cc/{{0..{count - 1}}}.parquet"


def on_disk(folder: Path, count: int) -> str:
    """The same as files."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number}.parquet").write_bytes(written(table(number)))
    return f"{folder}/*.parquet"


def limit(monkeypatch: pytest.MonkeyPatch, files: float) -> None:
    """Let the cache hold so many files."""
    monkeypatch.setenv("CLIPDISTILL_CACHE_GB", str(files * len(written(table(0))) / 10**9))


def problem(uri: str) -> str:
    with pytest.raises(DataError) as caught:
        pairs(uri)
    return str(caught.value)


# Opening


@pytest.mark.parametrize(
    "choices",
    [
        "",
        "?id=key",
        "?label=key&group=label",
        "?image=mask",
        "?caption=none",
        "?image=none",
        "?caption=key&synthetic=key",
    ],
)
def test_files_over_http_are_those_on_disk(server: Server, tmp_path: Path, choices: str) -> None:
    uri = put(server, 3) + choices
    source, local = pairs(uri), pairs(on_disk(tmp_path / "files", 3) + choices)
    assert len(source) == len(local) == 3 * ROWS - (0 if "mask" in choices or "image=none" in choices else 2)
    for row in range(len(local)):
        one, other = source[row], local[row]
        assert (one.id, one.texts, one.label, one.group) == (other.id, other.texts, other.label, other.group)
        assert (one.image is None) == (other.image is None)
        if one.image is not None:
            assert isinstance(one.image, RemotePicture)
            assert fetch(one.image) == fetch(other.picture)
            assert one.image.size == len(one.image.read_bytes())
    assert source.fingerprint == local.fingerprint
    assert server.fetched() == 3


def test_a_picture_says_where_it_is_and_goes_to_other_processes(server: Server) -> None:
    source = pairs(put(server, 2))
    base = f"http://127.0.0.1:{server.server_port}/cc"
    assert str(source[ROWS + 3].image) == f"{base}/1.parquet: row 5"
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)
    with pytest.raises(IndexError, match="has 18 samples, asked for position 18"):
        source[18]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda row: fetch(source[row].picture), range(18)))
    assert found == [one[2] for one in contents(source)]


def test_a_later_start_knows_the_samples_without_fetching(server: Server, cache: Path) -> None:
    uri = put(server, 3)
    before = contents(pairs(uri))
    for copy in copies(cache):
        copy.unlink()
    remote_parquet._READ.clear()
    source = pairs(uri)
    assert [[one.id, one.texts] for one in (source[row] for row in range(len(source)))] == [one[:2] for one in before]
    assert len(pairs(f"{uri}?image=mask&caption=key")) == 3 * ROWS  # other columns are known as well
    assert server.fetched() == 3
    assert contents(source, [ROWS])[0] == before[ROWS]
    assert server.fetched() == 4


def test_names(server: Server, tmp_path: Path) -> None:
    put(server, 3)
    base = f"http://127.0.0.1:{server.server_port}/cc"
    memory = fsspec.filesystem("memory")
    for number in range(2):
        memory.pipe(f"/rp/{number}.parquet", written(table(number)))
    expected = contents(pairs(f"{base}/{{0..1}}.parquet"))
    for uri in ("memory://rp/*.parquet", "memory://rp/{0,1}.parquet", f"{base}/0.parquet::memory://rp/1.parquet"):
        assert contents(pairs(uri)) == expected
    files = on_disk(tmp_path / "files", 2)
    assert contents(pairs(f"file://{files}")) == expected
    assert pairs(f"{base}/1.parquet?token=a?caption=none")[0].texts == {}
    assert pairs(f"{base}/1.parquet?token=a?id=key")[0].id == "k1000"
    assert len(pairs(f"{base}/0.parquet?split=a")) == ROWS
    assert "1.parquet is named twice" in problem(f"{base}/1.parquet::{base}/1.parquet")
    assert "A file here is file:///" in problem(f"{base}/0.parquet::{tmp_path}/files/1.parquet")
    assert "expected URLs of parquet files alone" in problem(f"{base}/0.parquet::{base}/0.tar")
    assert "memory://none/*.parquet: no file has such a name" in problem("memory://none/*.parquet")


def test_captions_alone_and_img2datasets_column(server: Server) -> None:
    server.files["/words.parquet"] = written(pa.table({"text": ["one", "two"]}))
    jpg = pa.array([noise(1), None, noise(3)], pa.binary())
    server.files["/jpg.parquet"] = written(pa.table({"url": ["a", "b", "c"], "caption": ["x", "y", "z"], "jpg": jpg}))
    base = f"http://127.0.0.1:{server.server_port}"
    words = pairs(f"{base}/words.parquet")
    assert [(one.image, one.captions) for one in (words[0], words[1])] == [(None, ["one"]), (None, ["two"])]
    assert getattr(words, "blocks", 0) is None
    assert contents(pairs(f"{base}/jpg.parquet")) == [["0", {"": ["x"]}, noise(1)], ["2", {"": ["z"]}, noise(3)]]


# Reading in order


class Items(torch.utils.data.Dataset[list[Any]]):
    """Read rows in worker processes."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, item: tuple[int, list[int]]) -> list[Any]:
        return contents(self.source, item[1])


def test_an_epoch_under_a_small_limit_reads_every_sample_once(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote_parquet, "_ROOM", 1)  # one row group: every other is read anew
    limit(monkeypatch, 5.5)
    source = pairs(put(server, 12))
    assert "training in random order reads 10 shards at a time" in capsys.readouterr().err
    blocks = [ROWS, ROWS - 2] * 6
    assert getattr(source, "blocks", None) == blocks
    order = BlockOrder(blocks, 6, 0, window=2)
    before, seen = server.fetched(), []
    for _, rows in order.walk(0, order.batches_per_epoch):
        seen += contents(source, rows)
        assert len(copies(cache)) <= 5
    assert sorted(one[0] for one in seen) == sorted(source[row].id for row in range(len(source)))
    assert {one[0]: one[2] for one in seen} == {
        str(n * ROWS + r): noise(n * 1000 + r) for n in range(12) for r in kept(n)
    }
    assert 7 <= server.fetched() - before <= 14


def kept(number: int) -> list[int]:
    return [row for row in range(ROWS) if number % 2 == 0 or row not in (3, 4)]


def test_workers_go_on_in_mid_epoch_with_what_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 12.5)
    source = pairs(put(server, 10))
    order = order_of(source, 7, 5)
    assert isinstance(order, BlockOrder)
    straight = [contents(source, rows) for _, rows in order.walk(0, 20)]
    again = pairs(source.uri)
    rest = list(load(Items(again), fetch_ahead(order_of(again, 7, 5).walk(9, 20), again), workers=2))
    assert rest == straight[9:]


def test_files_are_fetched_before_their_batches_come(server: Server, cache: Path) -> None:
    source = pairs(put(server, 6))
    for copy in copies(cache):
        copy.unlink()
    items = [(0, list(range(at, at + 3))) for at in range(0, len(source), 3)]
    walk = fetch_ahead(items, source)
    assert next(walk) == items[0]
    until(lambda: len(copies(cache)) == 2)
    assert [items[0], *walk] == items
    until(lambda: len(copies(cache)) == 6)
    chosen = from_samples([source[row] for row in range(len(source)) if row not in (0, 12)])
    assert chosen.blocks == [9, 7, 10, 8, 10, 8]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])  # a fork would take other tests' threads along
def test_other_processes_read_it_too(server: Server, method: str) -> None:
    source = pairs(put(server, 2))
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.starmap(contents, [(source, [12, 0]), (source, [5])]) == [
            contents(source, [12, 0]),
            contents(source, [5]),
        ]


def test_row_groups_stay_while_there_is_room(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pairs(put(server, 1))
    opened: list[int] = []
    read = remote_parquet.read_group

    def counted(parquet: Any, column: str, group: int) -> Any:
        opened.append(group)
        return read(parquet, column, group)

    monkeypatch.setattr(remote_parquet, "read_group", counted)
    contents(source)
    contents(source, [9, 0, 5])
    assert opened == [0, 1, 2]
    monkeypatch.setattr(remote_parquet, "_ROOM", 30_000)  # two of 4, 4 and 2 pictures of 3 kB
    remote_parquet._READ.clear()
    contents(source, [0, 5, 1, 6, 9, 2])
    assert opened[3:] == [0, 1, 2, 0]


def test_large_row_groups_are_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote_parquet, "_ROOM", 1000)
    uri = put(server, 1)
    pairs(uri)
    assert "has a row group of 0.00 GB, and all of it is read for each picture" in capsys.readouterr().err
    pairs(f"{uri}?image=none")
    assert "row group" not in capsys.readouterr().err


# What goes wrong


def test_columns_that_are_not_there(server: Server) -> None:
    uri = put(server, 1)
    assert "there is no column 'captoin', chosen by caption=captoin. Did you mean 'caption'?" in problem(
        f"{uri}?caption=captoin"
    )
    assert "the column 'vector' chosen by label= holds list" in problem(f"{uri}?label=vector")
    assert "the column 'vector' chosen by id= holds list<item: float>, expected a name" in problem(f"{uri}?id=vector")
    assert "there is no column 'nope', chosen by id=nope" in problem(f"{uri}?id=nope")
    server.files["/paths.parquet"] = written(pa.table({"image": ["a.jpg"], "text": ["x"]}))
    base = uri.rpartition("/cc")[0]
    assert "no column for pictures. Found: image (string), text (string)" in problem(f"{base}/paths.parquet")
    server.files["/half.parquet"] = written(table(0).append_column("half", pa.array([0.5] * ROWS)))
    assert "10 rows have the id '0.5'" in problem(f"{base}/half.parquet?id=half")
    empty = pa.table({"image": pa.array([None], PICTURE), "text": ["x"]})
    server.files["/empty.parquet"] = written(empty)
    assert problem(f"{base}/empty.parquet").endswith("none of the 1 rows has a picture")
    server.files["/none.parquet"] = written(empty.slice(0, 0))
    assert problem(f"{base}/none.parquet").endswith("none of the 0 rows has a picture")


def test_files_whose_columns_differ(server: Server) -> None:
    base = put(server, 1).rpartition("/cc")[0]
    other = table(5).rename_columns(["image", "text", "label", "key", "mask", "vector"])
    server.files["/5.parquet"] = written(other)
    told = problem(f"{base}/cc/0.parquet::{base}/5.parquet")
    assert (
        f"{base}/5.parquet has the columns image, text, label, key, mask, vector, expected those of {base}/cc/0" in told
    )
    server.files["/6.parquet"] = written(table(6).set_column(3, "key", pa.array([1] * ROWS)))
    assert "its files hold columns of different kinds" in problem(f"{base}/cc/0.parquet::{base}/6.parquet")


def test_a_server_that_fails(server: Server, cache: Path) -> None:
    uri = put(server, 1)
    server.failures = 2
    source = pairs(uri)
    assert len(contents(source)) == ROWS
    copies(cache)[0].unlink()
    remote_parquet._READ.clear()
    server.failures = 3
    with pytest.raises(DataError, match=r"0\.parquet: row 0: .*0\.parquet: cannot be fetched, tried 3 times: .*503"):
        fetch(source[0].picture)
    assert copies(cache) == list(cache.glob("*.part")) == []
    assert "1.parquet: cannot be fetched, tried 3 times: 404" in problem(uri.replace("{0..0}", "{0..1}"))


@pytest.mark.parametrize("told_length", [True, False])
def test_an_answer_that_is_cut_off_is_no_file(server: Server, told_length: bool, cache: Path) -> None:
    uri = put(server, 1)
    server.told_length = told_length
    server.cut = len(server.files["/cc/0.parquet"]) * 2 // 3
    expected = "cannot be fetched, tried 3 times" if told_length else "not a parquet file that can be read, or damaged"
    assert expected in problem(uri)
    assert (
        copies(cache) == list(cache.glob("*.part")) == list(cache.glob("*.words")) == list(cache.glob(".*.tmp")) == []
    )
    server.cut = None
    assert len(contents(pairs(uri))) == ROWS


def test_what_is_no_parquet_or_damaged_inside(server: Server, cache: Path) -> None:
    base = put(server, 1).rpartition("/cc")[0]
    server.files["/a.parquet"] = b"<html>no such file</html>" * 9
    assert "a.parquet: not a parquet file that can be read, or damaged or cut off (Parquet magic" in problem(
        f"{base}/a.parquet"
    )
    whole = bytearray(server.files["/cc/0.parquet"])
    whole[4:200] = bytes(196)  # where the pages of the first column begin
    server.files["/b.parquet"] = bytes(whole)
    assert "b.parquet: not a parquet file that can be read, or damaged" in problem(f"{base}/b.parquet")
    assert copies(cache) == list(cache.glob("*.words")) == []


def test_content_that_changes_is_never_mixed(server: Server, cache: Path) -> None:
    uri = put(server, 1)
    source = pairs(uri)
    server.files["/cc/0.parquet"] = written(table(8))
    assert contents(source, [0])[0][2] == noise(0)
    copies(cache)[0].unlink()
    remote_parquet._READ.clear()
    with pytest.raises(DataError, match=r"its content has changed since it was opened.*Start again"):
        fetch(source[0].picture)
    assert contents(pairs(uri), [0])[0][2] == noise(8000)


def test_an_index_that_was_cut_is_made_again(server: Server, cache: Path) -> None:
    uri = put(server, 1)
    before = contents(pairs(uri))
    for size in (0, 100, 2000):
        os.truncate(next(cache.glob("*.words")), size)
        assert contents(pairs(uri)) == before
    assert server.fetched() == 1
