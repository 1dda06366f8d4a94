"""Rows in Milvus, through its own client, on a Milvus Lite file: what readers see, and when."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipdistill.errors import SearchError
from clipdistill.search.filters import Filter
from clipdistill.search.manifest import Effort, Manifest, Model, Retired
from clipdistill.search.milvus import MilvusTable, address
from clipdistill.search.table import schema

WIDTH = 8
TAGS = ["beach", "night", "a'b", 'say "hi"', "back\\slash", "100%", "犬"]


def manifest(engine: str, **more: Any) -> Manifest:
    return Manifest(Model("model", "f", WIDTH, "IT"), None, WIDTH, engine=engine, effort=Effort("hnsw", ef=24), **more)


def rows(names: Sequence[str], seed: int = 0, word: str = "first") -> pa.Table:
    """Rows of an index; the same names and seed give the same ones."""
    numbers = np.random.default_rng(seed)
    vectors = numbers.normal(size=(len(names), WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    drawn = [
        {
            "id": name,
            "vector": vector,
            "hash": f"{name}-{word}",
            "location": f"{name}.jpg",
            "caption": f"{word} A_dog 100% {name}",
            "tags": TAGS[: place % 4] + TAGS[4 + place % 3 :],
            "width": 100 + place,
            "height": 300 - place,
            "thumbnail": b"" if place % 5 == 0 else bytes([255, 216, place % 256]),
        }
        for place, (name, vector) in enumerate(zip(names, vectors, strict=True))
    ]
    return pa.Table.from_pylist(drawn, schema=schema(WIDTH))


def names_of(table: MilvusTable) -> dict[str, str]:
    return {row["id"]: row["hash"] for batch in table.scan(["id", "hash"]) for row in batch.to_pylist()}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("milvus") / "x.db")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "photos.index"


@pytest.fixture
def number(request: pytest.FixtureRequest) -> str:
    """A table's name that no other test has."""
    return f"pictures-{crc32(request.node.name.encode())}"


def test_an_address_is_a_host_with_a_collection_or_a_file(tmp_path: Path) -> None:
    assert address("milvus://here:19530/photos") == ("http://here:19530", "photos")
    assert address("milvus+https://here/photos") == ("https://here", "photos")
    assert address(f"{tmp_path}/x.db") == (f"{tmp_path}/x.db", "pictures")
    for wrong in ("milvus://here:19530", "http://here/photos", "milvus://here/a-b", "milvus://me:secret@here/photos"):
        with pytest.raises(SearchError, match=r"expected milvus://HOST:PORT/COLLECTION.*MILVUS_TOKEN"):
            address(wrong)


def test_a_cluster_that_does_not_answer_is_one_clear_error(folder: Path) -> None:
    with pytest.raises(SearchError, match="photos"):
        MilvusTable.open(manifest("milvus://127.0.0.1:1/photos"), folder)


def test_a_sync_is_seen_all_at_once_and_readers_keep_what_they_hold(engine: str, folder: Path, number: str) -> None:
    about = manifest(engine, table=number)
    writer = MilvusTable.create(about, folder)
    writer.write(rows("abcd"))
    assert writer.count() == 0
    assert names_of(writer) == {}
    first = writer.publish()
    assert writer.publish() == first
    reader = MilvusTable.open(replace(about, snapshot=first.snapshot), folder)
    before = {name: f"{name}-first" for name in "abcd"}
    assert names_of(reader) == before

    writer.write(rows("bx", seed=1, word="second"))
    writer.delete(["c", "nobody"])
    assert names_of(reader) == names_of(MilvusTable.open(reader_of(about, first.snapshot), folder)) == before
    after = {"a": "a-first", "b": "b-second", "d": "d-first", "x": "x-second"}
    written = {
        row["id"]: row["hash"] for batch in writer.scan(["id", "hash"], written=True) for row in batch.to_pylist()
    }
    assert written == after

    second = writer.publish()
    assert second.snapshot > first.snapshot
    writer.forget([Retired(number, first.snapshot, 0.0)])
    assert names_of(reader) == before
    assert reader.count() == 4
    reader = MilvusTable.open(reader_of(about, second.snapshot), folder)
    assert names_of(reader) == after
    assert reader.rows(["b", "c"], ["caption"]).to_pylist() == [{"id": "b", "caption": "second A_dog 100% b"}]


def reader_of(about: Manifest, snapshot: int) -> Manifest:
    return replace(about, snapshot=snapshot)


def test_what_was_written_and_deleted_again_is_gone(engine: str, folder: Path, number: str) -> None:
    about = manifest(engine, table=number)
    writer = MilvusTable.create(about, folder)
    writer.write(rows("ab"))
    writer.publish()
    writer.write(rows("ac", seed=2, word="second"))
    writer.delete(["a", "c"])
    writer.publish()
    assert names_of(writer) == {"b": "b-first"}
    writer.write(rows("a", seed=3, word="third"))
    writer.publish()
    assert names_of(writer) == {"a": "a-third", "b": "b-first"}


def test_rows_come_back_as_they_were(engine: str, folder: Path, number: str) -> None:
    writer = MilvusTable.create(manifest(engine, table=number), folder)
    hostile = ["a", "it's", 'q"uote', "back\\slash", "new\nline", "百分%_", "x" * 700, "", "null", "d"]
    given_rows = rows(hostile, seed=4)
    writer.write(given_rows)
    writer.publish()
    found = writer.rows(hostile, given_rows.column_names).sort_by("id").select(given_rows.column_names)
    assert found == given_rows.sort_by("id")


def test_what_was_not_told_to_go_stays_and_the_rest_goes(engine: str, folder: Path, number: str) -> None:
    about = manifest(engine, table=number)
    writer = MilvusTable.create(about, folder)
    writer.write(rows("abc"))
    writer.publish()
    writer.delete(["c"])
    published = writer.publish()
    client = writer._client
    everything = client.query(writer.collection, filter="", output_fields=["count(*)"])[0]["count(*)"]
    writer.forget([])
    assert (everything, client.query(writer.collection, filter="", output_fields=["count(*)"])[0]["count(*)"]) == (4, 3)

    mine, other = f"{number}1", f"{number}2"
    MilvusTable.create(manifest(engine, table=mine), folder)
    MilvusTable.create(manifest(engine, table=other), folder.with_name("other.index"))
    writer.forget([])
    with pytest.raises(SearchError, match="there is no collection"):
        MilvusTable.open(manifest(engine, table=mine), folder)
    MilvusTable.open(manifest(engine, table=other), folder)
    assert names_of(MilvusTable.open(reader_of(about, published.snapshot), folder)) == names_of(writer)
    with pytest.raises(SearchError, match=r"belongs to the index other.index"):
        MilvusTable.create(manifest(engine, table=other), folder)


def test_searches_are_those_of_the_mathematics(engine: str, folder: Path, number: str) -> None:
    writer = MilvusTable.create(manifest(engine, table=number), folder)
    held = rows([f"n{place}" for place in range(300)], seed=5)
    writer.write(held)
    writer.publish()
    writer.delete([f"n{place}" for place in range(0, 300, 7)])
    writer.publish()
    queries = np.random.default_rng(6).normal(size=(3, WIDTH)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    where = Filter.parse("tags has beach and not width >= 350 and caption contains 'a_DOG 100%'")
    stay = [row for place, row in enumerate(held.to_pylist()) if place % 7]
    for chosen in (None, where):
        kept = [row for row in stay if chosen is None or chosen.matches(row)]
        scores = queries @ np.array([row["vector"] for row in kept], np.float32).T
        for exact in (True, False):
            found = writer.search(queries, 10, chosen, exact)
            for hits, row in zip(found, scores, strict=True):
                best = np.argsort(-row)[:10]
                assert [one.id for one in hits] == [kept[place]["id"] for place in best]
                np.testing.assert_allclose([one.score for one in hits], row[best], atol=1e-5)
                assert [one.tags for one in hits] == [tuple(kept[place]["tags"]) for place in best]
    assert [len(hits) for hits in writer.search(queries, 10, Filter.parse("id in (n1, n2, n7)"))] == [2, 2, 2]
    assert writer.search(queries[:1], 2, Filter.parse("id = nobody"), exact=True) == [[]]
    with pytest.raises(SearchError, match="16384 at most"):
        writer.search(queries, 20_000)


def test_cut_rows_are_compared_by_all_they_have(engine: str, folder: Path, number: str) -> None:
    about = replace(manifest(engine, table=number), width=4)
    writer = MilvusTable.create(about, folder)
    whole = rows("abcdefgh", seed=7)
    full = np.stack(whole["vector"].to_numpy())
    short = full[:, :4] / np.linalg.norm(full[:, :4], axis=1, keepdims=True)
    cut = [
        {**row, "full": row["vector"], "vector": vector} for row, vector in zip(whole.to_pylist(), short, strict=True)
    ]
    writer.write(pa.Table.from_pylist(cut, schema=schema(4, WIDTH)))
    writer.publish()
    hits = writer.search(full[:1], 3, exact=True)[0]
    order = np.argsort(-(full @ full[0]))[:3]
    assert [one.id for one in hits] == ["abcdefgh"[place] for place in order]
    np.testing.assert_allclose([one.score for one in hits], (full @ full[0])[order], atol=1e-5)
    assert [one.id for one in writer.search(short[:1], 1)[0]] == ["a"]
    np.testing.assert_allclose(writer.rows(["b"], ["full"])["full"].to_pylist()[0], full[1], atol=1e-7)


def test_a_thumbnail_that_is_too_long_is_made_coarser(engine: str, folder: Path, number: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=98)
    row = {**rows("a").to_pylist()[0], "thumbnail": file.getvalue()}
    writer = MilvusTable.create(manifest(engine, table=number), folder)
    writer.write(pa.Table.from_pylist([row], schema=schema(WIDTH)))
    writer.publish()
    found = writer.rows(["a"], ["thumbnail"])["thumbnail"].to_pylist()[0]
    assert Image.open(io.BytesIO(found)).size == (256, 256)
    assert len(found) < 49_152 < len(file.getvalue())


TEXT = st.text(alphabet="aB%_\\'\"\n犬 ", max_size=4)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(part=TEXT, tag=TEXT, least=st.integers(0, 3), negate=st.booleans())
def test_milvus_means_by_a_filter_what_the_filter_means(
    hostile: MilvusTable, part: str, tag: str, least: int, negate: bool
) -> None:
    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    text = f"caption contains {quoted(part)} or tags has {quoted(tag)} and width >= {least} or id = {quoted(part)}"
    where = Filter.parse(f"not ({text})" if negate else text)
    held = hostile.rows(HOSTILE, ["caption", "tags", "width"]).to_pylist()
    expected = {row["id"] for row in held if where.matches(row)}
    found = hostile.search(np.eye(1, WIDTH, dtype=np.float32), 50, where)[0]
    assert {one.id for one in found} == expected


HOSTILE = ["a", "B", "%", "_", "\\", "'", '"', "\n", "犬", "a%", "_B", "\\'", "''", '\\"', "a a", "%%_"]


@pytest.fixture(scope="module")
def hostile(engine: str, tmp_path_factory: pytest.TempPathFactory) -> MilvusTable:
    """Rows whose ids, captions and tags are all that an expression could stumble over."""
    table = MilvusTable.create(manifest(engine, table="pictures-7"), tmp_path_factory.mktemp("hostile"))
    plain = rows(HOSTILE, seed=8).to_pylist()
    marked = [
        {**row, "caption": HOSTILE[-place] + "x", "tags": HOSTILE[place : place + 2], "width": place % 4}
        for place, row in enumerate(plain)
    ]
    table.write(pa.Table.from_pylist(marked, schema=schema(WIDTH)))
    table.publish()
    return table


WRITER = """
    import sys
    sys.path[:0] = [{tests!r}]
    from pathlib import Path
    from test_milvus import MilvusTable, manifest, rows
    table = MilvusTable.create(manifest({engine!r}, snapshot={snapshot}), Path("photos.index"))
    for turn in range(1000):
        table.write(rows([f"n{{(turn * 10 + place) % 60}}" for place in range(20)], seed=turn, word=f"t{{turn}}"))
        table.delete([f"n{{turn % 60}}"])
        print(turn, flush=True)
"""


@pytest.mark.parametrize("turns", [1, 4])
def test_a_writer_that_is_killed_changes_nothing_that_is_published(tmp_path: Path, turns: int) -> None:
    engine = str(tmp_path / "x.db")
    start = """
        import sys
        sys.path[:0] = [{tests!r}]
        from pathlib import Path
        from test_milvus import MilvusTable, manifest, rows
        table = MilvusTable.create(manifest({engine!r}), Path("photos.index"))
        table.write(rows([f"n{{place}}" for place in range(40)]))
        print(table.publish().snapshot)
    """
    here = str(Path(__file__).parent)
    snapshot = int(run(start.format(tests=here, engine=engine)).communicate()[0])
    writer = run(WRITER.format(tests=here, engine=engine, snapshot=snapshot))
    assert writer.stdout is not None
    for _ in range(turns):
        writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()

    table = MilvusTable.create(manifest(engine, snapshot=snapshot), Path("photos.index"))
    published = {f"n{place}": f"n{place}-first" for place in range(40)}
    assert names_of(table) == published
    written = [row["id"] for batch in table.scan(["id"], written=True) for row in batch.to_pylist()]
    assert len(written) == len(set(written))
    everything = rows([f"n{place}" for place in range(50)], seed=9, word="again")
    table.write(everything)
    table.delete([name for name in written if name not in everything["id"].to_pylist()])
    table.publish()
    assert names_of(table) == {f"n{place}": f"n{place}-again" for place in range(50)}


def run(program: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
