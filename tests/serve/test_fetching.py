"""Pictures are fetched from named hosts of the public internet alone, without redirects, and not without end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from clipdistill.errors import DataError
from clipdistill.serve import fetching
from clipdistill.serve.fetching import fetch, is_public
from clipdistill.serve.pictures import picture_bytes

SEEN: list[tuple[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        SEEN.append((self.headers["Host"], self.path))
        if self.path.startswith("/redirect"):
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        while self.path == "/drip":
            try:
                self.wfile.write(b"x")
            except OSError:  # the other side has gone
                return
            time.sleep(0.02)
        body = b"picture" if self.path != "/large" else b"x" * 3000
        self.wfile.write(body)

    def log_message(self, *given: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names and the addresses that they lead to, in place of the DNS; changed by the tests."""
    known: dict[str, list[str]] = {}

    def look_up(name: str, port: int, *given: Any, **more: Any) -> list[Any]:
        if name == "127.0.0.1":  # where the connection goes in the end
            return [(2, 1, 6, "", (name, port))]
        if name not in known:
            raise OSError("no such name")
        return [(2, 1, 6, "", (address, port)) for address in known[name]]

    monkeypatch.setattr(fetching.socket, "getaddrinfo", look_up)
    return known


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1",
        "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "fe80::1%eth0",
        "64:ff9b:1::1", "2002:7f00:1::",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_public_internet(address: str, names: dict[str, list[str]]) -> None:
    assert not is_public(address)
    names["photos.example"] = ["93.184.215.14", address]
    with pytest.raises(DataError, match="not of the public internet"):
        fetch("http://photos.example/x.png", ["photos.example"])


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111"])
def test_addresses_of_the_public_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/x.png",
        "http://photos.example.evil.example/x.png",
        "http://evil.example#photos.example/",
        "http://evil.example?photos.example",
        "http://photos.example:8080/x.png",
        "http://me:word@photos.example/x.png",
        "http://photos.example@evil.example/x.png",
        "http://127.0.0.1/x.png",
        "http://[::1]/x.png",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://",
        "http:///x",
        "http://photos.example:99999/",
        "http://[photos.example/",
        "http://photos.example /",
        "HTTP://photos.example\t.evil.example/",
    ],
)
def test_other_hosts_are_not_even_looked_up(url: str, names: dict[str, list[str]]) -> None:
    with pytest.raises(DataError) as found:
        picture_bytes(url, ["photos.example"])
    assert "there is no host" not in str(found.value)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://photos.example/x", "gopher://photos.example/", "/etc/passwd"]
)
def test_other_schemes_are_no_pictures(url: str) -> None:
    with pytest.raises(DataError):
        picture_bytes(url, ["photos.example"])


def test_a_name_that_leads_to_this_machine_is_refused(port: int) -> None:
    SEEN.clear()
    for host in ("localhost", "127.0.0.1"):
        with pytest.raises(DataError, match="not of the public internet"):
            fetch(f"http://{host}:{port}/x.png", [f"{host}:{port}"])
    assert not SEEN


def test_a_picture_is_fetched_from_the_address_that_was_checked(
    port: int, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    SEEN.clear()
    names["photos.example"] = ["127.0.0.1"]
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.1")
    allowed = [f"Photos.Example:{port}"]
    assert picture_bytes(f"http://photos.example:{port}/a/b.png?c=d", allowed) == b"picture"
    assert [(f"photos.example:{port}", "/a/b.png?c=d")] == SEEN
    monkeypatch.setattr(fetching, "MOST_BYTES", 2000)
    for path, word in (("redirect", "redirects are not followed"), ("missing", "404"), ("large", "more than")):
        with pytest.raises(DataError, match=word):
            fetch(f"http://photos.example:{port}/{path}", allowed)
    assert len(SEEN) == 4  # nobody went where the redirect led
    names["photos.example"] = ["127.0.0.1"]
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch("http://photos.example:9/", ["photos.example:9"])


def test_a_host_that_never_ends_is_given_up(
    port: int, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["photos.example"] = ["127.0.0.1"]
    monkeypatch.setattr(fetching, "is_public", lambda address: True)
    monkeypatch.setattr(fetching, "SECONDS", 0.3)
    with pytest.raises(DataError, match="takes more than"):
        fetch(f"http://photos.example:{port}/drip", [f"photos.example:{port}"])
