"""Two small indexes of drawn pictures, and servers of them in threads of the test."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from clipdistill.search.build import build_index
from clipdistill.search.index import Index
from clipdistill.search.searcher import Searcher
from clipdistill.serve.app import create_app
from clipdistill.serve.settings import Settings
from drawn_pictures import draw_pictures
from search.conftest import picture, png

__all__ = ["draw_pictures", "picture", "png"]  # fixtures

Serve = Callable[..., Any]


@pytest.fixture(scope="session")
def gallery(exported: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos.index`` (16 pictures) and ``more.index`` (8), made with the exported model."""
    root = tmp_path_factory.mktemp("gallery")
    for name, count in (("photos", 16), ("more", 8)):
        draw_pictures(root / name, f"scenes:test?n={count}")
        build_index(str(root / name), exported[0], root / f"{name}.index", workers=0).close()
    return root


def gallery_model(gallery: Path) -> Path:
    """The model that ``photos.index`` was made with."""
    return Index.open(gallery / "photos.index").model


def kind(answer: httpx.Response) -> tuple[int, str]:
    """The status of an answer, and the kind of error it tells of."""
    return answer.status_code, answer.json()["error"]["type"]


def status(client: httpx.Client, key: str) -> int:
    """The status of an answer to who holds ``key``."""
    return client.get("/api/indexes", headers={"Authorization": f"Bearer {key}"}).status_code


@contextmanager
def running(searchers: Mapping[str, Searcher], **settings: Any) -> Iterator[httpx.Client]:
    """A real server in a thread, and a client of it; its searchers are closed in the end."""
    app = create_app(searchers, Settings(**settings))
    config = uvicorn.Config(app, port=0, log_config=None, log_level="error", access_log=False, server_header=False)
    socket = config.bind_socket()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([socket],))
    thread.start()
    address = f"http://127.0.0.1:{socket.getsockname()[1]}"
    try:
        with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
            client.app = app  # type: ignore[attr-defined]
            yield client
    finally:
        server.should_exit = True
        thread.join()
        socket.close()


@pytest.fixture
def serve(gallery: Path) -> Iterator[Serve]:
    """Starts servers of ``photos`` with any settings."""
    from contextlib import ExitStack

    with ExitStack() as open_ones:

        def start(**settings: Any) -> httpx.Client:
            searchers = {"photos": Searcher.open(gallery / "photos.index", threads=1)}
            return open_ones.enter_context(running(searchers, **settings))

        yield start


@pytest.fixture(scope="module")
def client(gallery: Path) -> Iterator[httpx.Client]:
    """A client of a server of both indexes, with the settings that it has by itself."""
    searchers = {name: Searcher.open(gallery / f"{name}.index", threads=1) for name in ("photos", "more")}
    with running(searchers) as found:
        yield found


@pytest.fixture(scope="session")
def data_uri(gallery: Path) -> Callable[[int], str]:
    """A picture of ``photos`` as a data URI."""

    def make(place: int) -> str:
        return "data:image/png;base64," + base64.b64encode((gallery / "photos" / f"{place}.png").read_bytes()).decode()

    return make
