"""Searching with a picture: chosen, pasted or dropped, made small before it is sent, and never in a link."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from browser.conftest import Opener, Site, asked, ids

#: Makes a file in the page, and lets it arrive as a browser does.
_ARRIVE = """async ([kind, data, type]) => {
  const bytes = Uint8Array.from(atob(data), one => one.charCodeAt(0))
  const transfer = new DataTransfer()
  transfer.items.add(new File([bytes], "found.png", { type }))
  const more = { bubbles: true, cancelable: true }
  const event = kind === "paste" ? new ClipboardEvent(kind, { ...more, clipboardData: transfer })
    : new DragEvent(kind, { ...more, dataTransfer: transfer })
  document.querySelector("#text").dispatchEvent(event)
}"""


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large photo whose tag says that it lies on its side: red is on top as it should be seen."""
    image = Image.new("RGB", (1200, 800), "blue")
    image.paste("red", (0, 0, 300, 800))  # the left edge, which the tag makes the top
    tag = Image.Exif()
    tag[0x0112] = 6
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    image.save(path, exif=tag, quality=95)
    return path


def sent(body: dict[str, Any]) -> Image.Image:
    (uri,) = body["images"]
    assert uri.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def arrive(page: Page, kind: str, data: bytes, form: str = "image/png") -> None:
    page.evaluate(_ARRIVE, [kind, base64.b64encode(data).decode(), form])


def png(site: Site, name: str) -> bytes:
    """A picture of the index, as the bytes of a file."""
    thumbnail = site.searchers["all"].index.thumbnail(name)
    assert thumbnail is not None
    stream = io.BytesIO()
    Image.open(io.BytesIO(thumbnail)).save(stream, "PNG")
    return stream.getvalue()


def test_a_chosen_picture_is_sent_small_and_upright(opened: Opener, photo: Path) -> None:
    page = opened()
    body = asked(page, lambda: page.set_input_files("#file", photo))
    image = sent(body)
    assert image.size == (341, 512)
    assert image.getpixel((170, 20)) > (200, 0, 0)  # type: ignore[operator]
    red, _, blue = image.getpixel((170, 400))  # type: ignore[misc]
    assert blue > 200 > red
    assert body["texts"] == []
    expect(page.locator(".hit")).to_have_count(24)
    expect(page.get_by_alt_text("Your picture")).to_be_visible()
    expect(page.locator("#note")).to_contain_text("a link to this search leaves it out")
    assert page.url.endswith("/?picture=1")


def test_the_picture_stays_in_the_tab_and_out_of_the_link(opened: Opener, photo: Path) -> None:
    page = opened()
    asked(page, lambda: page.set_input_files("#file", photo))
    page.fill("#text", "a red circle")
    body = asked(page, lambda: page.keyboard.press("Enter"))
    assert body["images"]
    assert body["texts"] == ["a red circle"]
    assert asked(page, page.reload) == body
    asked(page, page.get_by_role("button", name="Remove").click)
    assert asked(page, page.go_back) == body
    shared = opened(page.url.partition(":")[2][page.url.partition(":")[2].index("/?") :])
    expect(shared.locator("#note")).to_contain_text("made with a picture, which links leave out")
    expect(shared.locator("#text")).to_have_value("a red circle")
    asked(shared, lambda: arrive(shared, "paste", photo.read_bytes(), "image/jpeg"))
    expect(shared.locator("#note")).not_to_contain_text("made with")


def test_a_picture_is_pasted_or_dropped(opened: Opener, site: Site) -> None:
    page = opened()
    expect(page.locator(".example").first).to_be_visible()
    name = "shapes/picture 07#.png"
    for kind in ("paste", "drop"):
        if kind == "drop":
            arrive(page, "dragover", b"")
            assert page.evaluate("getComputedStyle(document.body, '::after').content").startswith('"Drop the picture')
        image = sent(asked(page, lambda kind=kind: arrive(page, kind, png(site, name))))
        assert image.size == (48, 48)
        expect(page.locator(".hit")).to_have_count(24)
        assert ids(page)[0] == name
        assert not page.evaluate("document.body.classList.contains('dropping')")
        page.get_by_role("link", name="clipdistill").click()
        expect(page.locator("#headline")).to_be_visible()


def test_what_is_no_picture_is_told_at_once(opened: Opener) -> None:
    page = opened()
    expect(page.locator(".example").first).to_be_visible()
    arrive(page, "drop", b"not a picture", "text/plain")
    expect(page.locator("#note")).to_contain_text("found.png is not a picture that this browser can read")
    assert page.url.endswith("/")
    page.fill("#text", "words")
    page.evaluate("document.querySelector('#text').dispatchEvent(new ClipboardEvent('paste', {bubbles: true}))")
    expect(page.locator("#text")).to_have_value("words")
