"""A real HTTP server on this machine that has shards, and does what a test tells it to do wrong."""

from __future__ import annotations

import io
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdistill.data.images import fetch
from clipdistill.data.samples import Source

ROWS = 10


class Server(ThreadingHTTPServer):
    """Serves bytes by path, and does what a test tells it to do wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.failures = 0  # how many of the next GETs end with status 503
        self.cut: int | None = None  # a GET ends after so many bytes
        self.told_length = True
        self.marked = True
        self.stall = threading.Event()  # cleared: a GET stops half way
        self.stall.set()

    def fetched(self) -> int:
        return sum(count for (verb, _), count in self.asked.items() if verb == "GET")


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_GET(self) -> None:
        self.answer("GET")

    def answer(self, verb: str) -> None:
        path = self.path.partition("?")[0]
        self.server.asked[verb, path] += 1
        data = self.server.files.get(path)
        if data is None or (verb == "GET" and self.server.failures):
            self.server.failures -= data is not None
            self.send_error(404 if data is None else 503)
            return
        self.send_response(200)
        if self.server.told_length:
            self.send_header("Content-Length", str(len(data)))
        if self.server.marked:
            self.send_header("ETag", f'"{hash(data):x}"')
        self.end_headers()
        if verb == "GET":
            whole = data[: self.server.cut]
            self.wfile.write(whole[: len(whole) // 2])
            self.server.stall.wait(20)
            self.wfile.write(whole[len(whole) // 2 :])

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Server]:
    """A server while the block runs."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.stall.set()
        server.shutdown()


def tar_bytes(number: int, rows: int = ROWS) -> bytes:
    """Shard ``number``: PNG pictures of noise and their captions."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for row in range(rows):
            picture = io.BytesIO()
            pixels = np.random.default_rng(number * 1000 + row).integers(0, 255, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(picture, format="png")
            key = f"{number:05d}{row:04d}"
            for ending, data in (("png", picture.getvalue()), ("txt", f"caption {key}".encode())):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def put(server: Server, count: int, rows: int = ROWS) -> str:
    """Put ``count`` shards on the server, and return their name."""
    server.files |= {f"/cc/{number:05d}.tar": tar_bytes(number, rows) for number in range(count)}
    return f"http://127.0.0.1:{server.server_port}/cc/{{00000..{count - 1:05d}}}.tar"


def contents(source: Source, rows: Any = None) -> list[list[Any]]:
    """Id, captions and picture of samples, all of them or those at ``rows``."""
    samples = [source[row] for row in (range(len(source)) if rows is None else rows)]
    return [[one.id, one.texts, fetch(one.picture)] for one in samples]


def limit(monkeypatch: pytest.MonkeyPatch, shards: float) -> None:
    """Let the cache hold so many shards."""
    monkeypatch.setenv("CLIPDISTILL_CACHE_GB", str(shards * len(tar_bytes(0)) / 10**9))


def copies(cache: Path) -> list[Path]:
    """The shards in a cache."""
    return sorted(cache.glob("*.tar"))
