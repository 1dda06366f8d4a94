"""Who may ask, how much, and what every answer carries. Keys have tests of their own."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from clipdistill.errors import ConfigError
from clipdistill.search.searcher import Searcher
from clipdistill.serve.buckets import Buckets
from clipdistill.serve.failures import RefusedError, log
from clipdistill.serve.keys import new_key
from clipdistill.serve.settings import is_loopback, own_names, read_origin, read_rate
from clipdistill.serve.towers import Towers
from serve.conftest import gallery_model, kind, running, status
from waiting import until

wait_for = partial(until, seconds=10)
Serve = Callable[..., httpx.Client]
QUESTION = {"texts": ["boat"]}


def test_only_its_own_names_are_answered_on_loopback(serve: Serve) -> None:
    client = serve(hosts=own_names("127.0.0.1"))
    port = client.base_url.port
    for name in ("localhost", f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST"):
        assert client.get("/api/indexes", headers={"Host": name}).status_code == 200
    for name in (
        "evil.example",
        f"127.0.0.1.evil.example:{port}",
        "localhost.evil.example",
        "",
        "[::2]",
        "localhost@x",
    ):
        answer = client.get("/api/indexes", headers={"Host": name})
        assert answer.status_code in (400, 403), name


def test_pages_elsewhere_may_ask_only_if_they_are_named(serve: Serve) -> None:
    asked = {"Origin": "https://photos.example", "Access-Control-Request-Method": "POST"}
    closed = serve()
    assert "access-control-allow-origin" not in closed.options("/api/search", headers=asked).headers
    answer = closed.post("/api/search", json=QUESTION, headers={"Origin": "https://photos.example"})
    assert "access-control-allow-origin" not in answer.headers
    open_one = serve(origins=("https://photos.example",))
    asked["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-lang"  # as OpenAI's client does
    answer = open_one.options("/api/search", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://photos.example"
    answer = open_one.get("/no/such", headers={"Origin": "https://photos.example"})
    assert answer.headers["access-control-allow-origin"] == "https://photos.example"
    other = open_one.get("/api/indexes", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_who_reads_no_answer_keeps_nobody_out(serve: Serve) -> None:
    client = serve(room=1)
    with socket.socket() as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect(("127.0.0.1", client.base_url.port))
        silent.setblocking(False)
        asked = b"GET /page/app.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 400
        with contextlib.suppress(BlockingIOError):
            while asked:
                asked = asked[silent.send(asked) :]
        time.sleep(0.3)
        for _ in range(5):
            assert client.post("/api/search", json=QUESTION).status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/indexes", "/no/such", "/page/../app.py", "/health", "/page/app.js"])
def test_every_answer_tells_browsers_what_to_refuse(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_the_page_is_served_by_a_fixed_table(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" in page.text
    assert client.get("/page/style.css").headers["content-type"].startswith("text/css")
    assert client.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    for name in ("__init__.py", "%2e%2e%2fapp.py", "..%2Fapp.py", ".", "x/y", "app.js%00"):
        assert client.get(f"/page/{name}").status_code == 404


def test_a_body_is_limited_with_and_without_its_length(serve: Serve) -> None:
    client = serve(body=10_000)
    large = json.dumps({"texts": ["x"], "where": "y" * 10_000}).encode()
    assert kind(client.post("/api/search", content=large)) == (413, "request_too_large_error")

    def parts() -> Iterator[bytes]:
        for start in range(0, len(large), 1000):
            yield large[start : start + 1000]

    answer = client.post("/api/search", content=parts(), headers={"Content-Type": "application/json"})
    assert kind(answer) == (413, "request_too_large_error")
    assert client.post("/knn-service", content=parts()).status_code == 413
    assert client.post("/api/search", json=QUESTION).status_code == 200


def test_a_body_that_never_ends_takes_room_and_is_given_up(serve: Serve) -> None:
    client = serve(seconds=1.0, room=1)
    slow = http.client.HTTPConnection("127.0.0.1", client.base_url.port or 0, timeout=20)
    slow.putrequest("POST", "/api/search")
    slow.putheader("Content-Type", "application/json")
    slow.putheader("Content-Length", "1000")
    slow.endheaders()
    slow.send(b'{"texts"')
    wait_for(lambda: client.post("/api/search", json=QUESTION).status_code == 429)
    answer = slow.getresponse()
    assert answer.status == 504
    assert json.loads(answer.read())["error"]["type"] == "timeout_error"
    slow.close()
    assert client.post("/api/search", json=QUESTION).status_code == 200


def bomb(width: int, height: int) -> bytes:
    """A small PNG of so many white pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packed, line = zlib.compressobj(9), b"\0" + b"\xff" * ((width + 7) // 8)
    data = b"".join(packed.compress(line) for _ in range(height)) + packed.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_small_file_of_a_huge_picture_is_refused(client: httpx.Client) -> None:
    import base64

    small = bomb(20_000, 20_000)
    assert len(small) < 100_000
    text = "data:image/png;base64," + base64.b64encode(small).decode()
    for path, body in (
        ("/api/search", {"images": [text]}),
        ("/v1/embeddings", {"input": [{"image": text}]}),
        ("/knn-service", {"image": text.partition(",")[2]}),
        ("/rerank", {"query": "x", "documents": [text]}),
        ("/classify", {"input": [text], "labels": ["a"]}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 400, path
        assert "400.0 megapixels" in answer.json()["error"]["message"]


def test_a_caller_has_so_many_requests_a_minute(serve: Serve, tmp_path: Path) -> None:
    client = serve(rate=3)
    answers = [client.get("/api/indexes") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 2
    assert kind(answers[-1]) == (429, "rate_limit_error")
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 21
    for path in ("/", "/health", "/metrics", "/thumbnails/photos/none"):
        assert client.get(path).status_code in (200, 404)
    key = new_key(tmp_path / "keys", "one")
    guarded = serve(rate=3, keys=tmp_path / "keys")
    guesses = [guarded.get("/api/indexes", headers={"Authorization": "Bearer x"}).status_code for _ in range(5)]
    assert guesses == [401] * 3 + [429] * 2
    assert status(guarded, key) == 200


def test_buckets_fill_at_a_steady_rate() -> None:
    now = 0.0
    buckets = Buckets(6, clock=lambda: now, most=2)
    assert [buckets.wait("a") for _ in range(7)] == [0.0] * 6 + [10.0]
    now = 5.0
    assert buckets.wait("a") == 5.0
    now = 10.0
    assert [buckets.wait("a"), buckets.wait("a")] == [0.0, 10.0]
    now = 1000.0
    assert [buckets.wait("a") for _ in range(7)][-1] == 10.0
    for caller in ("b", "c"):
        buckets.wait(caller)
    assert len(buckets._left) == 2


def test_a_server_that_is_full_says_so_and_one_that_is_slow_gives_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(room=1, seconds=2.0)
    wait_for(lambda: client.get("/ready").status_code == 200)
    searcher = client.app.state.house.searchers["photos"]  # type: ignore[attr-defined]
    begun, go, real = threading.Event(), threading.Event(), searcher.search

    def slow(*given: Any, **more: Any) -> Any:
        begun.set()
        go.wait(20)
        return real(*given, **more)

    monkeypatch.setattr(searcher, "search", slow)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(client.post, "/api/search", json=QUESTION)
        assert begun.wait(20)
        full = client.post("/api/search", json=QUESTION)
        assert kind(full) == (429, "rate_limit_error")
        assert full.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200
        assert kind(late.result()) == (504, "timeout_error")
    go.set()
    wait_for(lambda: client.post("/api/search", json=QUESTION).status_code == 200)


def test_nothing_is_said_of_what_goes_wrong_inside(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve()
    logged = []  # and not by caplog: other libraries of the process may have silenced what it listens to
    monkeypatch.setattr(log, "exception", lambda *words: logged.append(str(sys.exc_info()[1])))

    def fail(*given: Any, **more: Any) -> None:
        raise RuntimeError("the secret")

    house = client.app.state.house  # type: ignore[attr-defined]
    monkeypatch.setattr(house.searchers["photos"], "search", fail)
    answer = client.post("/api/search", json=QUESTION)
    assert kind(answer) == (500, "server_error")
    assert "secret" not in answer.text
    assert logged == ["the secret"]


def test_rows_that_cannot_be_read_are_the_servers_fault_and_are_logged(
    gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(log, "error", lambda form, *words, **more: logged.append(form % words))
    shutil.copytree(gallery / "photos.index", tmp_path / "photos.index")
    searcher = Searcher.open(tmp_path / "photos.index", gallery_model(gallery), threads=1)
    with running({"photos": searcher}) as client:
        assert client.post("/api/search", json=QUESTION).status_code == 200
        shutil.rmtree(tmp_path / "photos.index" / "rows")
        answer = client.post("/api/search", json={"texts": ["boat"], "where": "width > 1"})
    assert kind(answer) == (503, "unavailable_error")
    assert answer.headers["retry-after"] == "5"
    assert str(tmp_path).lstrip("/") not in answer.text
    assert any("cannot be read or written" in line for line in logged)


def test_messages_lose_folders_and_keep_ids(serve: Serve, gallery: Path) -> None:
    house = serve().app.state.house  # type: ignore[attr-defined]
    told = house.hide(
        f"no 'photos/1.png' in {gallery}/photos.index, made from {Path.cwd()}/x by {gallery_model(gallery)}"
    )
    assert told == f"no 'photos/1.png' in photos.index, made from .../x by {gallery_model(gallery).name}"


def test_a_model_that_is_not_served_any_more_ends_what_it_began(serve: Serve) -> None:
    house = serve(seconds=0.2).app.state.house  # type: ignore[attr-defined]
    key = ("another", "model")
    with house._changing:
        house._towers[key] = towers = Towers(house.searchers["photos"].runtime, 8, house.metrics)
    house.refresh()
    assert key not in house._towers
    assert len(towers.texts(["a request that began before"])) == 1
    time.sleep(0.3)
    house.refresh()
    with pytest.raises(RefusedError, match="shutting down"):
        towers.texts(["too late"])


def test_requests_are_counted_by_route_and_not_by_what_was_asked(serve: Serve) -> None:
    client = serve()
    client.post("/api/search", json={"texts": ["my private words"]})
    client.get("/thumbnails/photos/private.png")
    client.get("/no/such/private")
    text = client.get("/metrics").text
    assert 'clipdistill_requests_total{route="/api/search",status="200"} 1.0' in text
    assert 'clipdistill_requests_total{route="other",status="404"} 1.0' in text
    assert 'clipdistill_index_rows{index="photos"} 16.0' in text
    assert 'clipdistill_batch_rows_count{side="text"}' in text
    assert "private" not in text


def test_words_of_the_command_line() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "photos.example")] == [False] * 4
    assert [read_rate(text) for text in ("600/minute", "5")] == [600, 5]
    assert read_origin("https://Photos.example:8443") == "https://photos.example:8443"
    for text in ("0", "5/second", "-1", "x"):
        with pytest.raises(ConfigError, match="--rate"):
            read_rate(text)
    for text in ("photos.example", "https://photos.example/", "ftp://x", "null"):
        with pytest.raises(ConfigError, match="--cors"):
            read_origin(text)
