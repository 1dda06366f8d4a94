"""The page in a real browser, on the real server with drawn pictures and a small CLIP."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from clipdistill.data.sources import pairs
from clipdistill.search.build import build_index
from clipdistill.search.corpus_calibration import calibrate_index
from clipdistill.search.index import Index
from clipdistill.search.query import Options, Query
from clipdistill.search.searcher import Searcher
from clipdistill.serve.app import create_app
from clipdistill.serve.settings import Settings

HOSTILE = '<img src=x onerror="window.owned = 1"><script>window.owned = 1</script> \'" & a circle'
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]


@dataclass(frozen=True)
class Site:
    """A server that runs, its searchers by name, and texts whose best hit is likely, and unlikely, in ``all``."""

    url: str
    searchers: dict[str, Searcher]
    likely: str
    unlikely: str


@pytest.fixture(scope="module")  # no longer: while it runs, nothing else in this thread can use asyncio
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no chromium here. Get one with: apt-get install chromium")
    browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
    yield browser
    browser.close()


def write_photos(folder: Path, count: int) -> Path:
    """Write drawn pictures with captions and, as labels, the grounds they are drawn on."""
    source, lines = pairs(f"scenes:test?n={count}"), []
    (folder / "shapes").mkdir(parents=True)
    for number in range(count):
        sample = source[number]
        assert isinstance(sample.image, np.ndarray)
        name, caption = f"shapes/picture {number:02d}#.png", sample.captions[0]
        Image.fromarray(sample.image).save(folder / name)
        line = {"file_name": name, "text": HOSTILE if number == 3 else caption, "label": caption.split()[-1]}
        lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def house(exported: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of indexes: ``all`` of 60 pictures and ``some`` of 40 of them."""
    root = tmp_path_factory.mktemp("house")
    for name, count in (("all", 60), ("some", 40)):
        photos = write_photos(root / f"{name} photos", count)
        build_index(str(photos), str(exported[0]), root / f"{name}.index", workers=0).close()
    return root


def calibrated(folder: Path) -> tuple[str, str]:
    """Give an index probabilities of texts, by which one caption has likely hits and another none; returns both."""
    searcher = Searcher.open(folder)
    captions = [caption for batch in searcher.index.table.scan(["caption"]) for caption in batch["caption"].to_pylist()]
    found = {text: searcher.search(Query(texts={text: 1.0}), Options(k=60)).hits for text in captions}
    plain = [text for text in captions if text != HOSTILE]
    likely, unlikely = (
        max(plain, key=lambda text: found[text][9].score),
        min(plain, key=lambda text: found[text][0].score),
    )
    least = (found[likely][9].score + found[unlikely][0].score) / 2
    far = found[likely][9].score - least
    assert far > 0
    wobble = np.random.default_rng(0).normal(scale=far, size=(len(found), 60))  # as judges who do not always agree
    lines = [
        json.dumps({"query": text, "id": hit.id, "match": int(hit.score + moved > least)})
        for (text, hits), row in zip(found.items(), wobble, strict=True)
        for hit, moved in zip(hits, row, strict=True)
    ]
    labels = folder.with_suffix(".jsonl")
    labels.write_text("\n".join(lines))
    entries = calibrate_index(searcher.index, searcher.runtime, labels)
    replace(searcher.index.manifest, calibration={"text": entries["text"]}).write(folder)
    searcher.close()
    return likely, unlikely


@contextmanager
def serving(searchers: dict[str, Searcher], settings: Settings) -> Iterator[str]:
    """Run the server in a thread; gives its address."""
    config = uvicorn.Config(create_app(searchers, settings), port=0, log_config=None, log_level="error", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def site(house: Path) -> Iterator[Site]:
    """The server with three indexes: ``all`` with probabilities for texts, ``some`` and ``plain`` without any."""
    shutil.copytree(house / "all.index", house / "plain.index")
    for name in ("some", "plain"):
        index = Index.open(house / f"{name}.index")
        replace(index.manifest, calibration={}).write(index.folder)
        index.close()
    likely, unlikely = calibrated(house / "all.index")
    names = ("all", "some", "plain")
    searchers = {name: Searcher.open(house / f"{name}.index", threads=1) for name in names}
    with serving(searchers, Settings()) as url:
        yield Site(url, searchers, likely, unlikely)


#: Opens an address of the site in a new window; keywords are those of a playwright context.
Opener = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, site: Site) -> Iterator[Opener]:
    """Opens pages, and fails the test for anything on their consoles and for any request that leaves the site."""
    contexts, faults = [], []

    def told(message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            faults.append(message.text)

    def open_page(address: str = "/", root: str = site.url, **more: Any) -> Page:
        context = browser.new_context(**more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.on("console", told)
        page.on("pageerror", lambda error: faults.append(str(error)))
        local = (root, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(local) or faults.append(request.url))
        page.goto(root + address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def ids(page: Page) -> list[str]:
    """Ids of the hits that are shown, by their thumbnails' addresses."""
    program = "all => all.map(one => decodeURIComponent(new URL(one.src).pathname.split('/')[3]))"
    return list(page.locator("#results .hit img").evaluate_all(program))


def asked(page: Page, act: Callable[[], object]) -> dict[str, Any]:
    """Do something and return the search that the page sends for it, once it is answered."""
    with page.expect_response("**/api/search") as told:
        act()
    body = told.value.request.post_data_json
    assert isinstance(body, dict)
    return body
