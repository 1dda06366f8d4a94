"""For whom the page is: phones, light and dark, English and Chinese, keyboards and screen readers."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from browser.conftest import Opener, Site

FOLDER = Path(str(files("clipdistill.serve"))) / "page"
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
#: Texts whose contrast with what they stand on is too small, as WCAG 2 counts it.
_FAINT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true })
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1)
    return [...canvas.getImageData(0, 0, 1, 1).data]
  }
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4
  const light = ([r, g, b]) => [r, g, b].map(c => linear(c / 255))
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0)
  const ground = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = rgba(getComputedStyle(one).backgroundColor)
      if (colour[3] === 255) return colour
    }
    return rgba(getComputedStyle(document.body).backgroundColor)
  }
  const faint = []
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement
    if (!walk.currentNode.data.trim() || !element.checkVisibility() || element.closest(".unseen, script")) continue
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(ground(element))]
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
    if (contrast < 4.5) faint.push([walk.currentNode.data, contrast])
  }
  return faint
}"""
#: Kinds of element that a screen reader must be able to name.
_NAMED = {"button", "link", "searchbox", "textbox", "slider", "checkbox", "combobox", "image", "dialog", "heading"}


def nameless(page: Page) -> list[Any]:
    """Elements that a screen reader meets without a name."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    met = [node for node in tree if not node["ignored"] and node["role"]["value"] in _NAMED]
    assert len(met) > 5
    return [node for node in met if not node.get("name", {}).get("value", "").strip()]


VIEWS = [
    "/",
    "/?q={likely}&without=&least=0.1",
    "/?q={unlikely}",
    "/?q={likely}&compare=all&compare=some&compare=plain",
]
VIEWS += ["/?q={likely}&where=oops"]


def test_all_texts_can_be_read_and_all_controls_have_names(opened: Opener, site: Site) -> None:
    page = opened()

    def look(view: str) -> None:
        for colours in ("light", "dark"):
            page.emulate_media(color_scheme=colours)
            assert page.evaluate(_FAINT) == [], (view, colours)
        assert nameless(page) == [], view

    for view in VIEWS:
        page.goto(site.url + view.format(likely=site.likely, unlikely=site.unlikely))
        page.wait_for_load_state("networkidle")
        look(view)
    page.goto(f"{site.url}/?q={site.likely}")
    page.locator(".thumb").first.click()
    look("a hit at large")


def test_a_phone_shows_everything_without_scrolling_sideways(opened: Opener, site: Site) -> None:
    page = opened(**PHONE)
    for view in VIEWS:
        page.goto(site.url + view.format(likely=site.likely, unlikely=site.unlikely))
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") == 360, view
    page.goto(f"{site.url}/?q={site.likely}")
    expect(page.locator(".hit")).to_have_count(24)
    boxes = [page.locator(".hit").nth(number).bounding_box() for number in (0, 1)]
    assert all(box and box["width"] > 140 for box in boxes)
    assert boxes[0]["y"] == boxes[1]["y"]  # type: ignore[index]
    page.locator(".thumb").first.tap()
    sheet = page.get_by_role("dialog").bounding_box()
    assert sheet
    assert sheet["x"] >= 0
    assert sheet["x"] + sheet["width"] <= 360
    page.get_by_role("button", name="Close").tap()
    for control in ("#box .go", "#choose", "summary", ".chip", ".like", "#compare", "#language", "#theme", "#index"):
        box = page.locator(control).first.bounding_box()
        assert box
        assert min(box["height"], box["width"]) >= 24, control


def ground(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_colours_follow_the_system_until_they_are_chosen(opened: Opener) -> None:
    page = opened(color_scheme="dark")
    assert ground(page) == "rgb(21, 24, 27)"
    page.get_by_role("button", name="Light colours").click()
    assert ground(page) == "rgb(255, 255, 255)"
    expect(page.get_by_role("button", name="Dark colours")).to_be_visible()
    page.reload(wait_until="commit")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    assert ground(page) == "rgb(255, 255, 255)"
    assert ground(opened(color_scheme="light")) == "rgb(255, 255, 255)"


def test_the_page_speaks_chinese(opened: Opener, site: Site) -> None:
    page = opened(locale="zh-CN")
    expect(page.get_by_role("heading", level=1)).to_have_text("搜索 60 张图片")
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    page.fill("#text", site.likely)
    page.get_by_role("button", name="搜索", exact=True).click()
    expect(page.locator("#status")).to_contain_text("24 个结果")
    assert unspoken(page, site) == []
    page.get_by_role("button", name="English").click()
    expect(page.locator("#status")).to_contain_text("24 hits in")
    expect(page.get_by_role("button", name="Search", exact=True)).to_be_visible()
    page.reload()
    expect(page.locator("#status")).to_contain_text("24 hits in")


def unspoken(page: Page, site: Site) -> list[str]:
    """Texts of the page, but for those of the index, in which there is no Chinese."""
    known = page.locator(".caption, .chip, option, #language, .brand").all_inner_texts()
    lines = page.locator("body").inner_text().split("\n")
    texts = [line.strip() for line in lines if re.search(r"[A-Za-z]{2}", line)]
    return [text for text in texts if text not in known and not re.search(r"[\u4e00-\u9fff]", text)]


def test_both_languages_have_all_words_and_no_other() -> None:
    text = (FOLDER / "words.js").read_text(encoding="utf-8")
    english, chinese = (re.findall(r"^    (\w+): (.+),$", part, re.MULTILINE) for part in text.split("  zh: {"))
    assert [key for key, _ in english] == [key for key, _ in chinese]
    assert len(english) > 50
    for (key, told), (_, in_chinese) in zip(english, chinese, strict=True):
        assert set(re.findall(r"\{(\w+)\}", told)) == set(re.findall(r"\{(\w+)\}", in_chinese)), key
    others = "".join(path.read_text(encoding="utf-8") for path in FOLDER.iterdir() if path.name != "words.js")
    assert [key for key, _ in english if not re.search(rf"[\"']{key}[\"']", others)] == []
