"""The verb, in processes of its own: it stops without dropping anything, and shows what is published meanwhile."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from clipdistill.cli import main
from clipdistill.search.build import build_index
from clipdistill.search.index import Index
from clipdistill.search.sync import sync
from serve.conftest import draw_pictures
from waiting import until

Start = Callable[..., tuple[subprocess.Popen[str], httpx.Client]]
QUESTION = {"texts": ["boat"], "k": 100}


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts ``clipdistill serve`` on a free port; whatever still runs in the end is killed."""
    running: list[tuple[subprocess.Popen[str], httpx.Client]] = []

    def begin(*words: str) -> tuple[subprocess.Popen[str], httpx.Client]:
        command = [sys.executable, "-m", "clipdistill", "serve", *words, "--port", "0", "--threads", "1"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r"http://\S+", line)
        assert address, line + process.stderr.read()
        client = httpx.Client(base_url=address[0], timeout=60, trust_env=False)
        running.append((process, client))
        return process, client

    yield begin
    for process, client in running:
        client.close()
        process.kill()
        process.communicate()


wait_for = partial(until, seconds=30)


def ready(client: httpx.Client) -> bool:
    return client.get("/ready").status_code == 200


def test_it_finishes_what_it_has_begun(start: Start, gallery: Path) -> None:
    process, client = start(str(gallery / "photos.index"), str(gallery / "more.index"))
    assert [one["name"] for one in client.get("/api/indexes").json()["indexes"]] == ["photos", "more"]
    body = json.dumps({"input": [f"caption {place}" for place in range(100)]}).encode()
    begun = http.client.HTTPConnection("127.0.0.1", client.base_url.port or 0, timeout=60)
    begun.putrequest("POST", "/v1/embeddings")
    begun.putheader("Content-Type", "application/json")
    begun.putheader("Content-Length", str(len(body)))
    begun.endheaders()
    begun.send(body[:100])
    assert client.get("/health").status_code == 200  # by now the other request is being read
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: is_closed(client))
    begun.send(body[100:])
    answer = begun.getresponse()
    assert answer.status == 200
    assert len(json.loads(answer.read())["data"]) == 100
    begun.close()
    process.wait(timeout=30)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def is_closed(client: httpx.Client) -> bool:
    try:
        httpx.get(f"{client.base_url}/health")
    except httpx.TransportError:
        return True
    return False


def test_a_new_version_is_served_without_a_gap(start: Start, exported: tuple[Path, Any], tmp_path: Path) -> None:
    draw_pictures(tmp_path / "photos", "scenes:test?n=8")
    folder = tmp_path / "photos.index"
    build_index(tmp_path / "photos", exported[0], folder, workers=0).close()
    _, client = start(str(folder), "--rate", "100000/minute")
    wait_for(lambda: ready(client))
    seen: list[tuple[int, int, int]] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            while not stop.is_set():
                answer = own.post("/api/search", json=QUESTION)
                body = answer.json()
                seen.append((answer.status_code, body.get("version", 0), len(body.get("hits", ()))))

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    wait_for(lambda: seen)
    first = seen[0][1]
    shutil.rmtree(tmp_path / "photos")
    draw_pictures(tmp_path / "photos", "scenes:test?n=10")
    with_more = Index.open(folder)
    sync(with_more, workers=0)
    with_more.close()
    wait_for(lambda: seen[-1][1] > first)
    stop.set()
    for thread in asking:
        thread.join()
    assert {status for status, _, _ in seen} == {200}
    assert {(version, hits) for _, version, hits in seen} == {(first, 8), (seen[-1][1], 10)}
    assert client.get("/api/indexes").json()["indexes"][0]["count"] == 10


def test_others_need_a_key_and_have_so_many_requests(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], start: Start
) -> None:
    file = tmp_path / "keys"
    assert main(["serve", "--new-key", "me", "--keys", str(file)]) == 0
    key = capsys.readouterr().out.strip()
    assert key.startswith("cd-")
    assert key not in file.read_text()
    _, client = start(str(gallery / "more.index"), "--keys", str(file), "--host", "0.0.0.0", "--rate", "2/minute")
    address = f"http://127.0.0.1:{client.base_url.port}/api/search"
    assert httpx.post(address, json=QUESTION).status_code == 401
    known = {"Authorization": f"Bearer {key}", "Host": "photos.example"}
    answers = [httpx.post(address, json=QUESTION, headers=known) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 31


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["X", "--host", "0.0.0.0"], "others can reach 0.0.0.0"),
        (["X", "--host", "::"], "others can reach ::"),
        (["X", "--keys", "FILE", "--no-keys"], "opposite"),
        (["X", "--keys", "FILE"], "cannot be read"),
        (["X", "--rate", "lots"], "--rate is 'lots'"),
        (["X", "--cors", "photos.example"], "--cors is"),
        (["--new-key", "me"], "--keys FILE"),
        (["X", "X"], "two indexes are called 'photos'"),
        (["X", "--port", "TAKEN"], "cannot be listened on (address already in use)"),
        (["X", "--host", "no.such.host.invalid", "--no-keys"], "cannot be listened on"),
        (["none.index"], "none.index is not an index"),
        ([], "name one or more"),
    ],
)
def test_what_cannot_be_served_is_said(
    gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {
            "X": str(gallery / "photos.index"),
            "FILE": str(tmp_path / "keys"),
            "TAKEN": str(taken.getsockname()[1]),
        }
        assert main(["serve", *(names.get(word, word) for word in words)]) == 1
    assert message in capsys.readouterr().err
