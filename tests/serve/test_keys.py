"""Who may ask: the file of keys, and a server that reads it again."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from clipdistill.errors import ConfigError
from clipdistill.files import write_text
from clipdistill.search.searcher import Searcher
from clipdistill.serve import keys as key_files
from clipdistill.serve.keys import Keys, new_key
from serve.conftest import gallery_model, kind, running, status
from waiting import until

wait_for = partial(until, seconds=10)
Serve = Callable[..., httpx.Client]
QUESTION = {"texts": ["boat"]}


def test_a_key_is_asked_for(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = new_key(file, "one")
    client = serve(keys=file, refresh=0.05)
    for path in ("/api/indexes", "/v1/models", "/indices-list", "/metrics", "/thumbnails/photos/0.png", "/no/such"):
        answer = client.get(path)
        assert kind(answer) == (401, "authentication_error")
        assert answer.headers["www-authenticate"] == "Bearer"
    for header in (f"Bearer {key}x", "Bearer", f"Basic {key}", key):
        assert client.post("/api/search", json=QUESTION, headers={"Authorization": header}).status_code == 401
    for path in ("/", "/health", "/openapi.json", "/page/app.js"):
        assert client.get(path).status_code == 200
    assert client.post("/api/search", json=QUESTION, headers={"Authorization": f"bearer {key}"}).status_code == 200


def without_first(file: Path) -> None:
    """Take the key 'first' back, at once: who reads a file that is half written knows nobody."""
    write_text(file, "".join(line for line in file.read_text().splitlines(True) if not line.startswith("first ")))


def test_a_key_can_be_added_and_taken_back(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first = new_key(file, "first")
    client = serve(keys=file, refresh=0.05)
    second = new_key(file, "second")
    wait_for(lambda: status(client, second) == 200)
    without_first(file)
    wait_for(lambda: status(client, first) == 401)
    assert status(client, second) == 200
    third = new_key(file, "third")
    wait_for(lambda: status(client, third) == 200)
    whole = file.read_text()
    kept = "".join(line for line in whole.splitlines(True) if line.startswith("third "))
    file.write_text(f"nonsense\n  # a comment\n{kept}")
    wait_for(lambda: status(client, second) == 401)
    assert status(client, third) == 200
    file.write_text("")
    wait_for(lambda: status(client, third) == 401)


def test_a_file_that_an_editor_has_emptied_is_read_once_it_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(tmp_path / "keys", "one")
    keys, text = Keys(tmp_path / "keys"), (tmp_path / "keys").read_text()
    monkeypatch.setattr(key_files, "_SETTLING", 1.0)
    (tmp_path / "keys").write_text("")
    filling = threading.Timer(0.1, lambda: (tmp_path / "keys").write_text(f"# as before\n{text}"))
    filling.start()
    keys.refresh()
    filling.join()
    assert keys.name_of(key) == "one"


def test_a_key_is_taken_back_although_an_index_is_broken(gallery: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first = new_key(file, "first")
    second = new_key(file, "second")
    shutil.copytree(gallery / "photos.index", tmp_path / "photos.index")
    searcher = Searcher.open(tmp_path / "photos.index", gallery_model(gallery), threads=1)
    with running({"photos": searcher}, keys=file, refresh=0.05) as client:
        wait_for(lambda: status(client, first) == 200)
        (tmp_path / "photos.index" / "index.json").write_text("{")
        without_first(file)
        wait_for(lambda: status(client, first) == 401)
        assert status(client, second) == 200


def test_the_file_of_keys_holds_none(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "keys"
    keys = [new_key(file, name) for name in ("a", "b.c@d-e")]
    assert len({*keys}) == 2
    assert file.stat().st_mode & 0o077 == 0
    text = file.read_text()
    assert not any(key in text or key[3:] in text for key in keys)
    assert [Keys(file).name_of(key) for key in (*keys, "cd-guess")] == ["a", "b.c@d-e", None]
    for name in ("a", "two words", "", "x" * 65):
        with pytest.raises(ConfigError):
            new_key(file, name)
    assert file.read_text() == text
    with pytest.raises(ConfigError, match="--new-key"):
        Keys(tmp_path / "none")
    file.write_text("# a comment\n\na 00 11\n")
    with pytest.raises(ConfigError, match="keys:3"):
        Keys(file)
    file.write_text("# nobody\n")
    with pytest.raises(ConfigError, match="holds no key"):
        Keys(file)
    file.write_bytes(b"\xef\xbb\xbf" + text.encode().strip())  # as some editors save it
    assert Keys(file).name_of(keys[0]) == "a"
