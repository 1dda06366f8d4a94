"""A dataset is fetched from a hub: a small one that speaks its protocol on this machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

COMMIT = "c" * 40
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
OPEN = """
import sys
from clipdistill.data.sources import pairs
from clipdistill.errors import DataError

for uri in sys.argv[1:]:
    try:
        source = pairs(uri)
        print(len(source), source[0].id, source[0].captions, source[0].picture.read_bytes(), source.fingerprint)
    except DataError as error:
        print(error)
"""


def parquet(caption: str) -> bytes:
    stream = io.BytesIO()
    image = pa.array([{"bytes": caption.encode() * 2, "path": "a.jpg"}], PICTURE)
    pq.write_table(pa.table({"image": image, "caption": [caption]}), stream)
    return stream.getvalue()


FILES = {f"data/{split}-00000-of-00001.parquet": parquet(split) for split in ("train", "test")}
FILES["README.md"] = b"# photos\n"


class Hub(BaseHTTPRequestHandler):
    """Knows one dataset, ``org/photos``."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        name = path.partition("/resolve/")[2].partition("/")[2]
        if path.startswith("/datasets/org/photos/resolve/"):
            self.answer(FILES.get(name), "EntryNotFound")
        elif path.startswith("/api/datasets/org/photos/tree/"):
            self.answer(json.dumps(list(self.tree(path.partition("/tree/")[2].partition("/")[2]))).encode(), "")
        elif path.startswith("/api/datasets/org/photos"):
            siblings = [{"rfilename": name} for name in FILES]
            self.answer(json.dumps({"id": "org/photos", "sha": COMMIT, "siblings": siblings}).encode(), "")
        else:
            self.answer(None, "RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def tree(self, folder: str) -> Iterator[dict[str, object]]:
        if not folder:
            yield {"type": "directory", "path": "data", "oid": "d" * 40, "size": 0}
        for name, data in FILES.items():
            if str(Path(name).parent) == (folder or "."):
                yield {"type": "file", "path": name, "oid": "f" * 40, "size": len(data)}

    def answer(self, data: bytes | None, error: str) -> None:
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hash(data):x}"')
        if data is None:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data or b"")

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def opened(home: Path, endpoint: str, offline: bool, *uris: str) -> list[str]:
    """Open data in a process of its own: the library looks at its environment when it is imported."""
    told = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    words = [sys.executable, "-c", OPEN, *uris]
    done = subprocess.run(words, env=os.environ | told, capture_output=True, text=True, check=False, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_dataset_is_fetched_once(hub: str, tmp_path: Path) -> None:
    test, both, none = opened(tmp_path, hub, False, "hf:org/photos?split=test", "hf:org/photos", "hf:org/nothing")
    assert test.startswith("1 0 ['test'] b'testtest' ")
    assert both == "hf:org/photos: holds several splits. Choose ?split=train or ?split=test"
    assert "hf:org/nothing: the dataset cannot be opened: Dataset 'org/nothing' doesn't exist on the Hub" in none
    assert "HF_HUB_OFFLINE" not in none
    assert opened(tmp_path, "http://127.0.0.1:1", True, "hf:org/photos?split=test") == [test]
