"""The page of the browser's tutorial, run in a browser: it finds what the student finds in Python."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from desk import DOCS, all_blocks, run_page
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from clipdistill.models.loading import load
from transformers_js import installed

pytestmark = pytest.mark.usefixtures("graphs_once")

PAGE = DOCS / "tutorials" / "browser.md"
CHROMIUM = shutil.which("chromium")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def address(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The site that the tutorial makes, served."""
    run_page(PAGE, desk, tmp_path / "desk", monkeypatch)
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    modules = installed()
    site, found = tmp_path / "desk" / "site", dict(all_blocks(PAGE))
    (site / "index.html").write_text(found["html"])
    (site / "search.js").write_text(found["js"])
    (site / "transformers").mkdir(exist_ok=True)
    shutil.copy(modules / "@huggingface" / "transformers" / "dist" / "transformers.min.js", site / "transformers")
    for file in (modules / "onnxruntime-web" / "dist").glob("ort-wasm-*"):
        shutil.copy(file, site / "transformers")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()
    server.server_close()
    thread.join()


def found_by(page: Page, address: str, pictures: list[Path], query: str) -> list[float]:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_function("document.querySelector('#query').onchange !== null", timeout=120_000)
    page.set_input_files("#files", [str(path) for path in pictures])
    page.fill("#query", query)
    for _ in range(100):  # pictures are embedded one by one; ask again until all are there
        page.evaluate("document.querySelector('#query').dispatchEvent(new Event('change'))")
        page.wait_for_timeout(200)
        if page.locator("#hits img").count() == len(pictures):
            break
    assert all(url.startswith((address.rsplit("/", 1)[0], "blob:", "data:")) for url in asked)
    return [float(one.get_attribute("title") or "nan") for one in page.locator("#hits img").all()]


def test_the_page_finds_what_python_finds(address: str, desk: Path) -> None:
    pictures = [desk / "photos" / "test" / f"{number}.png" for number in range(5)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = found_by(browser.new_page(), address, pictures, "a red circle")
        browser.close()
    model = load(str(desk / "models" / "student"))
    transform = model.transform
    assert transform is not None
    pixels = np.stack([transform(Image.open(path).convert("RGB"))["pixel_values"] for path in pictures])
    with torch.no_grad():
        rows = torch.nn.functional.normalize(model.images({"pixel_values": torch.from_numpy(pixels)}))
        query = torch.nn.functional.normalize(model.texts(model.tokenize(["a red circle"])))
    expected = sorted((rows @ query.T).ravel().tolist(), reverse=True)
    assert shown == pytest.approx(expected, abs=2e-3)
