"""Shards elsewhere: over HTTP from a real server, from fsspec's own file systems, and out of commands."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from clipdistill.data.images import decode, fetch
from clipdistill.data.remote import look_up, no_commands
from clipdistill.data.samples import Source, TarMember
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, DataError
from shard_server import ROWS, Server, contents, copies, limit, put, tar_bytes
from waiting import until

pytestmark = pytest.mark.usefixtures("cache")


def on_disk(folder: Path, count: int) -> Source:
    """The same shards as files."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"{number:05d}.tar").write_bytes(tar_bytes(number))
    return pairs(folder)


def problem(uri: str) -> str:
    with pytest.raises(DataError) as caught:
        pairs(uri)
    return str(caught.value)


# Opening


def test_shards_over_http_are_those_on_disk(server: Server, tmp_path: Path, cache: Path) -> None:
    source, local = pairs(put(server, 3)), on_disk(tmp_path / "shards", 3)
    assert contents(source) == contents(local)
    assert source.fingerprint == local.fingerprint
    image = source[0].picture
    assert isinstance(image, TarMember)
    assert str(image).startswith(f"http://127.0.0.1:{server.server_port}/cc/00000.tar: 000000000.png at byte ")
    assert np.array_equal(np.asarray(decode(image)), np.asarray(decode(local[0].picture)))
    assert server.fetched() == len(copies(cache)) == 3
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source)


def test_a_later_start_knows_the_samples_without_fetching(server: Server, cache: Path) -> None:
    uri = put(server, 3)
    before = contents(pairs(uri))
    for copy in copies(cache):
        copy.unlink()
    source = pairs(uri)
    assert [[one.id, one.texts] for one in (source[row] for row in range(len(source)))] == [one[:2] for one in before]
    assert server.fetched() == 3
    assert contents(source, [ROWS])[0] == before[ROWS]
    assert server.fetched() == 4
    assert len(pairs(f"{uri}?image=none")) == 3 * ROWS
    assert server.fetched() == 4


def test_names(server: Server, tmp_path: Path) -> None:
    put(server, 3)
    base = f"http://127.0.0.1:{server.server_port}/cc"
    path = tmp_path / "more.tar"
    path.write_bytes(tar_bytes(9))
    assert pairs(f"{base}/00001.tar?token=a?caption=none")[0].texts == {}
    assert len(pairs(f"{base}/00001.tar?split=a")) == ROWS
    assert pairs(f"{base}/0000{{2..1}}.tar")[0].id == "000020000"
    both = pairs(f"{path}::{base}/00000.tar?token=a&b=c")
    assert [both[row].id for row in (0, ROWS)] == ["000090000", "000000000"]
    again = pairs(f"{base}/00000.tar?token=a::{base}/00000.tar?token=b")
    assert len({again[row].id for row in range(len(again))}) == 2 * ROWS
    assert "is named twice" in problem(f"{base}/00001.tar::{base}/00001.tar")
    assert "2 of 3 shards are not there" not in problem(f"{base}/0000{{2..4}}.tar")
    assert f"{base}/00003.tar: cannot be fetched, tried 3 times: 404" in problem(f"{base}/0000{{2..4}}.tar")
    assert "1 of 2 shards are not there: none.tar" in problem(f"none.tar::{base}/00000.tar")
    assert "found a compressed tar, expected plain .tar files" in problem(f"{base}/00000.tar.gz")
    assert "found a.csv, expected plain .tar files" in problem(f"{base}/a.csv")
    assert "not an address that fsspec knows" in problem("nowhere://a/0.tar")
    assert "unknown kind of data 'nowhere:'" in problem("nowhere:a/0.tar")


def test_fsspecs_file_systems_open_with_stars(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for number in range(2):
        memory.pipe(f"/cc/{number:05d}.tar", tar_bytes(number))
    local = on_disk(tmp_path / "shards", 2)
    for uri in ("memory://cc/*.tar", "memory://cc/{00000..00001}.tar", f"file://{tmp_path}/shards/*.tar"):
        assert contents(pairs(uri)) == contents(local)
    assert "memory://none/*.tar: no file has such a name" in problem("memory://none/*.tar")
    memory.mkdirs("/folder.tar", exist_ok=True)
    assert "found a folder, expected a file" in problem("memory://folder.tar")


def test_ids_that_come_again_have_the_shards_name_in_front(server: Server) -> None:
    server.files |= {"/train/0.tar": tar_bytes(1), "/more/0.tar": tar_bytes(1)}
    base = f"http://127.0.0.1:{server.server_port}"
    source = pairs(f"{base}/train/0.tar::{base}/more/0.tar")
    assert [source[row].id for row in (0, ROWS)] == ["train/0/000010000", "more/0/000010000"]


# Commands


def test_pipes(tmp_path: Path, cache: Path) -> None:
    local = on_disk(tmp_path / "shards", 2)
    uri = f"pipe:cat '{tmp_path}/shards/{{00000..00001}}.tar'"
    source = pairs(uri)
    assert contents(source) == contents(local)
    (tmp_path / "shards" / "00000.tar").write_bytes(tar_bytes(0, ROWS + 1))
    assert contents(pairs(uri)) == contents(local)
    copies(cache)[0].unlink()
    copies(cache)[0].unlink()
    with pytest.raises(DataError, match=r"its content has changed since it was opened"):
        fetch(source[0].picture)
    assert len(pairs(uri)) == 2 * ROWS + 1
    assert len(pairs(f"pipe:cat {tmp_path}/shards/00001.tar # {'x' * 500}")) == ROWS
    doubled = pairs(f"pipe:cat {tmp_path}/shards/00001.tar::pipe:cat < {tmp_path}/shards/00001.tar")
    assert len({doubled[row].id for row in range(2 * ROWS)}) == 2 * ROWS


def test_a_pipe_that_fails_says_what_the_command_said(tmp_path: Path, cache: Path) -> None:
    told = problem("pipe:echo words; echo no such bucket >&2; exit 3")
    assert "cannot be fetched, tried 3 times: the command ended with status 3: no such bucket" in told
    assert "not a tar" in problem("pipe:echo words")
    assert copies(cache) == list(cache.glob("*.part")) == []


# What goes wrong


def test_a_server_that_fails_twice_is_asked_again(server: Server, cache: Path) -> None:
    uri = put(server, 1)
    server.failures = 2
    assert len(contents(pairs(uri))) == ROWS
    assert server.fetched() == 3
    copies(cache)[0].unlink()
    source = pairs(uri)
    server.failures = 3
    with pytest.raises(DataError, match=r"00000\.tar: cannot be fetched, tried 3 times: .*503"):
        fetch(source[0].picture)
    assert copies(cache) == list(cache.glob("*.part")) == []


@pytest.mark.parametrize("told_length", [True, False])
def test_an_answer_that_is_cut_off_is_no_file(server: Server, told_length: bool, cache: Path) -> None:
    uri = put(server, 1)
    server.told_length = told_length
    server.cut = len(tar_bytes(0)) * 2 // 3
    expected = "cannot be fetched, tried 3 times" if told_length else "damaged or cut off"
    assert expected in problem(uri)
    assert copies(cache) == list(cache.glob("*.part")) == list(cache.glob("*.json")) == []
    server.cut = None
    source = pairs(uri)
    assert len(contents(source)) == ROWS
    # Once the size is known, an answer that is shorter is found out without the server's word for it.
    copies(cache)[0].unlink()
    server.cut = 2048
    with pytest.raises(DataError, match="cannot be fetched" if told_length else "its content has changed"):
        fetch(source[0].picture)


def test_content_that_changes_is_never_mixed(server: Server, cache: Path) -> None:
    uri = put(server, 1)
    source = pairs(uri)
    server.files["/cc/00000.tar"] = tar_bytes(7)
    assert contents(source)[0][0] == "000000000"
    copies(cache)[0].unlink()
    with pytest.raises(DataError, match=r"its content has changed since it was opened.*Start again"):
        fetch(source[0].picture)
    assert contents(pairs(uri))[0][0] == "000070000"
    far = look_up([uri.replace("{00000..00000}", "00000")])[0]
    server.files["/cc/00000.tar"] = tar_bytes(8)
    copies(cache)[0].unlink()
    with pytest.raises(DataError, match="its content has changed"):
        far.local()
    assert copies(cache) == list(cache.glob("*.part")) == []


def test_a_file_system_that_ends_too_early_without_a_word_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe("/cut/0.tar", tar_bytes(0))

    def half(system: object, there: str, here: str) -> None:
        Path(here).write_bytes(tar_bytes(0)[:20480])

    monkeypatch.setattr(MemoryFileSystem, "get_file", half)
    assert f"tried 3 times: it ended after 20480 of {len(tar_bytes(0))} bytes" in problem("memory://cut/0.tar")


def test_a_copy_that_was_cut_is_fetched_again(server: Server, cache: Path) -> None:
    source = pairs(put(server, 1))
    before = contents(source)
    os.truncate(copies(cache)[0], 1000)
    assert contents(source) == before
    next(cache.glob("*.texts")).write_bytes(b"")
    assert contents(pairs(source.uri)) == before


def test_a_process_killed_while_it_fetches_leaves_nothing_half(server: Server, cache: Path) -> None:
    uri = put(server, 1)
    server.stall.clear()
    program = f"from clipdistill.data.sources import pairs; pairs({uri!r})"
    child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    until(lambda: any(part.stat().st_size for part in cache.glob("*.part")))
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert copies(cache) == list(cache.glob("*.json")) == []
    assert len(list(cache.glob("*.part"))) == 1
    server.stall.set()
    assert len(contents(pairs(uri))) == ROWS
    assert len(copies(cache)) == 1
    assert list(cache.glob("*.part")) == []


def test_a_missing_package_and_a_cache_that_is_none(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uri = put(server, 1)
    monkeypatch.setenv("CLIPDISTILL_CACHE_GB", "plenty")
    with pytest.raises(ConfigError, match="CLIPDISTILL_CACHE_GB is 'plenty', expected a number"):
        pairs(uri)
    limit(monkeypatch, 0.5)
    assert "GB are more than the cache holds. Raise CLIPDISTILL_CACHE_GB" in problem(uri)
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLIPDISTILL_CACHE", str(tmp_path / "file"))
    assert f"cannot be kept in {tmp_path}/file" in problem(uri)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ConfigError, match=r"pip install 'clipdistill\[data\]'"):
        pairs(uri)


def test_many_threads_share_one_fetch(server: Server) -> None:
    put(server, 1)
    far = look_up([f"http://127.0.0.1:{server.server_port}/cc/00000.tar"])[0]
    found: list[bytes] = []

    def read() -> None:
        with far.open("rb") as file:
            found.append(file.read())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tar_bytes(0)] * 8
    assert server.fetched() == 1
    assert far.size == len(tar_bytes(0))


def test_an_open_file_is_read_to_its_end_after_it_has_left_the_cache(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(server, 3)
    files = look_up([f"http://127.0.0.1:{server.server_port}/cc/0000{number}.tar" for number in range(3)])
    limit(monkeypatch, 2)
    with files[0].open("rb") as file:
        begin = file.read(5000)
        for other in (1, 2, 1):
            files[other].local()
        assert copies(cache) == sorted(file.cached for file in files[1:])
        assert begin + file.read() == tar_bytes(0)
    files[1].local()  # used last: the other one makes room
    files[0].local()
    assert copies(cache) == sorted(file.cached for file in files[:2])


def test_a_command_that_a_file_names_is_not_run(tmp_path: Path, cache: Path) -> None:
    touch = f"pipe:touch {tmp_path}/ran; cat {tmp_path}/00000.tar"
    (tmp_path / "mix.yaml").write_text(json.dumps([{"data": touch}]))
    for uri in (touch, f"{tmp_path}/0.tar::{touch}", f"{tmp_path}/pi{{pe,pe}}:x", str(tmp_path / "mix.yaml")):
        with no_commands(), pytest.raises(DataError):
            pairs(uri)
    with no_commands(), pytest.raises(DataError, match="a command is run only where you name it yourself"):
        pairs(touch)
    assert not (tmp_path / "ran").exists()
    assert look_up([touch])[0].url == touch  # outside, it may be
