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
ASKED: list[str] = []
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
DATASETS = {
    "photos": FILES,
    "tables": {"train.csv": b"image,caption\na.jpg,a dog\n"},
    "files": {"a.jpg": b"a picture", "metadata.csv": b"file_name,caption\na.jpg,a dog\n"},
    "paths": {},
}


class Hub(BaseHTTPRequestHandler):
    """Knows datasets of parquet files (``org/photos``, ``org/paths``), of a table, and of files."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        ASKED.append(f"{self.command} {path}")
        begin, _, end = path.partition("/datasets/org/")
        name, *rest = end.split("/")
        files, inside = DATASETS.get(name), "/".join(rest[2:])
        if files is None:
            self.answer(None, "RepoNotFound")
        elif not begin:
            self.answer(files.get(inside), "EntryNotFound")
        elif rest[:1] == ["tree"]:
            self.answer(json.dumps(list(self.tree(files, inside))).encode(), "")
        else:
            siblings = [{"rfilename": file} for file in files]
            self.answer(json.dumps({"id": f"org/{name}", "sha": COMMIT, "siblings": siblings}).encode(), "")

    def do_HEAD(self) -> None:
        self.do_GET()

    def tree(self, files: dict[str, bytes], folder: str) -> Iterator[dict[str, object]]:
        if not folder and files is FILES:
            yield {"type": "directory", "path": "data", "oid": "d" * 40, "size": 0}
        for name, data in files.items():
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
    ASKED.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def opened(home: Path, endpoint: str, offline: bool, *uris: str) -> list[str]:
    """Open data in a process of its own: the library looks at its environment when it is imported."""
    told = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    told["CLIPDISTILL_CACHE"] = str(home / "shards")
    words = [sys.executable, "-c", OPEN, *uris]
    done = subprocess.run(words, env=os.environ | told, capture_output=True, text=True, check=False, cwd=home)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_dataset_is_fetched_once(hub: str, tmp_path: Path) -> None:
    test, both, none = opened(tmp_path, hub, False, "hf:org/photos?split=test", "hf:org/photos", "hf:org/nothing")
    assert test.startswith("1 test/0 ['test'] b'testtest' ")
    assert both == "hf:org/photos: holds several splits. Choose ?split=train or ?split=test"
    assert "hf:org/nothing: the dataset cannot be opened: Dataset 'org/nothing' doesn't exist on the Hub" in none
    assert "HF_HUB_OFFLINE" not in none
    assert opened(tmp_path, "http://127.0.0.1:1", True, "hf:org/photos?split=test") == [test]


def test_a_stream_fetches_the_files_of_its_split_alone(hub: str, tmp_path: Path) -> None:
    uris = [f"hf:org/photos?streaming=true&split={split}" for split in ("test", "test,train", "tset")]
    test, both, unknown, *more = opened(
        tmp_path,
        hub,
        False,
        *uris,
        "hf:org/photos?streaming=true",
        "hf:org/tables?streaming=true",
        "hf:org/photos?streaming=yes",
        "hf:org/photos?streaming=true&split=test&revision=v1",
        "hf://datasets/org/photos/data/train-*.parquet",
    )
    fetched = [line for line in ASKED if line.startswith("GET /datasets/") and line.endswith(".parquet")]
    assert sorted(fetched) == sorted(
        f"GET /datasets/org/photos/resolve/{revision}/data/{split}-00000-of-00001.parquet"
        for revision, split in (("main", "test"), ("main", "train"), ("v1", "test"))
    )
    assert not list(tmp_path.rglob("*.arrow"))
    (without,) = opened(tmp_path, "http://127.0.0.1:1", True, uris[0])
    assert "Nothing is fetched: HF_HUB_OFFLINE is set" in without
    assert [test, both] == opened(tmp_path, hub, False, *(uri.replace("streaming=true&", "") for uri in uris[:2]))
    (converted,) = opened(tmp_path, "http://127.0.0.1:1", True, uris[0])
    assert "found no list of its files, which streaming=true asks the hub for. Without a network" in converted
    assert "unknown split 'tset'. Did you mean 'test'?" in unknown
    several, tables, neither, revision, named = more
    assert several.endswith("holds several splits. Choose ?split=train or ?split=test")
    assert "train.csv, expected parquet files, which alone can be read with streaming=true. Leave it out" in tables
    assert "hf://datasets/org/tables/*.parquet" in tables
    assert neither.endswith("streaming is 'yes', expected true or false")
    assert revision == test
    assert named.startswith("1 0 ['train'] b'traintrain' ")


def test_pictures_that_are_files_come_from_the_hub_and_from_nowhere_else(hub: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"mine")
    stream = io.BytesIO()
    image = pa.array([{"bytes": None, "path": f"{tmp_path}/secret"}, {"bytes": b"theirs", "path": None}], PICTURE)
    pq.write_table(pa.table({"image": image, "caption": ["a", "b"]}), stream)
    DATASETS["paths"] = {"train.parquet": stream.getvalue()}
    files, paths = opened(tmp_path, hub, False, "hf:org/files", "hf:org/paths")
    assert files.startswith("1 0 ['a dog'] b'a picture' ")
    assert paths.startswith("1 1 ['b'] b'theirs' ")
