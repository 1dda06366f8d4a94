"""What one can do on the page: search by words, pictures and both, refine, go back, share, compare."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Page, Route, expect

from browser.conftest import HOSTILE, Opener, Site, asked, ids
from clipdistill.search.query import Options, Query


def words(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def found(site: Site, query: Query, k: int = 24, name: str = "all") -> list[str]:
    return [hit.id for hit in site.searchers[name].search(query, Options(k=k)).hits]


def test_the_first_visit_offers_captions_to_try(opened: Opener, site: Site) -> None:
    page = opened()
    expect(page.get_by_role("heading", level=1)).to_have_text("Search 60 pictures")
    example = page.locator(".example").first
    text = example.inner_text()
    example.click()
    expect(page.locator(".hit")).to_have_count(24)
    assert ids(page) == found(site, Query(texts={text: 1.0}))
    assert words(page) == {"q": [text]}
    assert page.title() == f"{text} · clipdistill"


def test_one_can_type_before_the_server_has_said_anything(opened: Opener, site: Site) -> None:
    page = opened()
    held: list[Route] = []
    page.route("**/api/indexes", lambda route: held.append(route))
    with page.expect_request("**/api/indexes"):
        page.reload(wait_until="commit")
    page.fill("#text", "a text that is not")
    expect(page.locator("#headline")).to_be_hidden()
    held[0].continue_()
    expect(page.locator("#headline")).to_have_text("Search 60 pictures")
    expect(page.locator("#text")).to_have_value("a text that is not")
    held.clear()
    with page.expect_request("**/api/indexes"):
        page.reload(wait_until="commit")
    page.get_by_text("Refine").click()
    page.get_by_label("At least this likely").press("ArrowRight")
    expect(page.locator("#least-told")).to_have_text("≥ 5 %")
    page.fill("#text", site.likely)
    with page.expect_request("**/api/indexes"):
        page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Searching …")
    body = asked(page, lambda: held[-1].continue_())
    assert (body["texts"], body["min_precision"]) == ([site.likely], 0.05)
    expect(page.locator("#which")).to_be_visible()
    expect(page.locator("#least-told")).to_have_text("≥ 5 %")
    assert words(page) == {"q": [site.likely], "least": ["0.05"]}
    likely = [hit for hit in everything(site) if hit.probability >= 0.05]
    expect(page.locator(".hit")).to_have_count(min(24, len(likely)))


def test_hits_show_what_was_found(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}")
    best = site.searchers["all"].search(Query(texts={site.likely: 1.0}), Options(k=24)).hits[0]
    card = page.locator(".hit").first
    expect(card.locator(".caption")).to_have_text(best.caption)
    assert best.probability is not None
    expect(card.locator(".sure")).to_contain_text(f"{best.probability * 100:.0f} % likely a match")
    assert card.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 48
    bar = card.locator(".bar i").evaluate("bar => bar.offsetWidth / bar.parentElement.offsetWidth")
    assert bar == pytest.approx(best.probability, abs=0.02)
    expect(page.locator("#status")).to_contain_text("24 hits in")
    assert page.locator("#status").get_attribute("aria-live") == "polite"


def test_the_page_is_used_by_keyboard_alone(opened: Opener, site: Site) -> None:
    page = opened()
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type(site.likely)
    page.keyboard.press("Enter")
    expect(page.locator(".hit")).to_have_count(24)
    page.locator("#results").evaluate("results => results.focus()")  # where the link past the form leads
    page.keyboard.press("Tab")
    expect(page.locator(".thumb").first).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    first = dialog.get_by_role("heading").inner_text()
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("heading")).not_to_have_text(first)
    page.keyboard.press("ArrowLeft")
    expect(dialog.get_by_role("heading")).to_have_text(first)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator(".thumb").first).to_be_focused()
    page.keyboard.press("/")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.press("Shift+Tab")
    page.goto(f"{site.url}/?q={site.likely}")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_be_focused()


def test_more_like_this_and_the_way_back(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}")
    expect(page.locator(".hit")).to_have_count(24)
    before = ids(page)
    page.locator(".like").nth(1).click()
    expect(page.locator("#attached img")).to_have_count(1)
    expect(page.locator("#status")).to_contain_text("Scores are cosines")
    assert words(page) == {"like": [before[1]]}
    assert ids(page) == found(site, Query(ids={before[1]: 1.0}))
    assert before[1] not in ids(page)
    asked(page, page.go_back)
    expect(page.locator("#text")).to_have_value(site.likely)
    expect(page.locator(".hit img").first).to_have_attribute("src", f"/thumbnails/all/{quoted(before[0])}?v=1")
    asked(page, page.go_forward)
    expect(page.locator("#text")).to_have_value("")
    page.fill("#text", "a red circle")
    assert asked(page, lambda: page.keyboard.press("Enter"))["ids"] == [before[1]]
    lost: list[str] = []
    page.on("response", lambda answer: answer.status >= 400 and lost.append(answer.url))
    asked(page, page.reload)
    expect(page.get_by_alt_text(f"Pictures like {before[1]}")).to_be_visible()
    assert lost == []
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#attached img")).to_have_count(0)
    assert words(page) == {"q": ["a red circle"]}


def quoted(name: str) -> str:
    return name.replace("/", "%2F").replace(" ", "%20").replace("#", "%23")


def test_filters_tags_and_what_is_left_out(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}")
    tag = page.locator("#tags .chip").first
    name = tag.inner_text()
    assert asked(page, tag.click)["where"] == f"tags has '{name}'"
    expect(page.locator(f"#tags .chip:text-is('{name}')")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(f"#tags .chip:text-is('{name}')")).to_be_focused()
    page.get_by_text("Refine").click()
    page.get_by_label("Only where").fill("caption contains 'circle' or width >= 40")
    body = asked(page, lambda: page.keyboard.press("Enter"))
    assert body["where"] == f"(caption contains 'circle' or width >= 40) and tags has '{name}'"
    shown = page.locator(".hit")
    expect(shown).to_have_count(sum(name in hit.tags for hit in everything(site)))
    page.get_by_label("Without").fill("night")
    body = asked(page, lambda: page.keyboard.press("Enter"))
    assert body["negatives"] == ["night"]
    expect(page.get_by_label("At least this likely")).to_be_disabled()  # a mixture has no probabilities
    expect(page.locator("#refined")).to_have_text("2")
    page.get_by_label("Leave copies out").check()
    expect(page.locator("#refined")).to_have_text("3")
    assert words(page) == {
        "q": [site.likely],
        "tag": [name],
        "where": ["caption contains 'circle' or width >= 40"],
        "without": ["night"],
        "distinct": ["1"],
    }
    page.reload()
    expect(page.get_by_label("Without")).to_have_value("night")
    expect(shown.first).to_be_visible()


def test_enter_in_a_field_searches_once(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}")
    expect(page.locator(".hit").first).to_be_visible()
    page.get_by_text("Refine").click()
    sent: list[Route] = []
    page.route("**/api/search", lambda route: sent.append(route))
    page.get_by_label("Without").fill("night")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Searching …")
    assert [route.request.post_data_json["negatives"] for route in sent] == [["night"]]
    body = asked(page, lambda: sent[0].continue_())
    assert body["negatives"] == ["night"]
    expect(page.locator(".hit").first).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Searching …")
    assert len(sent) == 2, "asked again once it was answered"
    page.unroute("**/api/search")


def everything(site: Site) -> list:
    return list(site.searchers["all"].search(Query(texts={site.likely: 1.0}), Options(k=60)).hits)


def test_a_wrong_filter_is_pointed_at(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}&tag=sand&where=width >= 40 and hight < 3")
    wrong = page.get_by_role("alert")
    expect(wrong).to_contain_text("at character 17: expected a field, found 'hight'. Did you mean 'height'?")
    lines = wrong.inner_text().split("\n")
    assert lines[-2].index("hight") == lines[-1].index("^")
    expect(page.get_by_label("Only where")).to_have_attribute("aria-invalid", "true")
    page.get_by_label("Only where").fill("width >= 40 and height > 3")
    page.keyboard.press("Enter")
    expect(wrong).to_be_hidden()
    expect(page.locator(".hit").first).to_be_visible()


def test_a_wrong_filter_is_pointed_at_in_chinese(opened: Opener, site: Site) -> None:
    wrong = opened(f"/?q={site.likely}&where=hight < 3", locale="zh-CN").get_by_role("alert")
    expect(wrong).to_contain_text("条件的第 1 个字符处有误")
    expect(wrong).to_contain_text("hight < 3")


def test_the_slider_keeps_likely_hits(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}")
    page.get_by_text("Refine").click()
    slider = page.get_by_label("At least this likely")
    slider.focus()
    page.keyboard.press("End")
    page.keyboard.press("Home")
    for _ in range(16):
        page.keyboard.press("ArrowRight")
    expect(page.locator("#least-told")).to_have_text("≥ 80 %")
    likely = [hit for hit in everything(site) if hit.probability >= 0.8]
    assert 0 < len(likely) < 24
    expect(page.locator(".hit")).to_have_count(len(likely))
    assert words(page)["least"] == ["0.8"]


def test_more_hits_are_shown_on_demand(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}")
    more = page.get_by_role("button", name="Show more")
    more.click()
    expect(page.locator(".hit")).to_have_count(48)
    expect(page.locator(".thumb").nth(24)).to_be_focused()
    more.click()
    expect(page.locator(".hit")).to_have_count(60)
    expect(more).to_have_count(0)
    assert ids(page) == found(site, Query(texts={site.likely: 1.0}), 60)


def test_a_hostile_caption_is_only_text(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}&k=60")
    caption = page.locator(".caption", has_text="onerror")
    expect(caption).to_have_text(HOSTILE)
    page.locator(".hit", has=caption).locator(".thumb").click()
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text(HOSTILE)
    page.keyboard.press("Escape")
    page.fill("#text", HOSTILE)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".line.right .caption").first).to_have_text(HOSTILE)
    assert page.evaluate("window.owned") is None


def test_indexes_are_compared_side_by_side(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".column")).to_have_count(3)
    expect(page.locator(".line")).to_have_count(30)
    lists = [found(site, Query(texts={site.likely: 1.0}), 10, name) for name in ("all", "some", "plain")]
    shared = set.intersection(*map(set, lists))
    assert 0 < len(shared) < 10
    expect(page.locator(".marks", has_text="found by all")).to_have_count(3 * len(shared))
    expect(page.locator(".column").first).to_contain_text("10 hits in")
    expect(page.locator(".column").first).to_contain_text("The right picture is")
    page.locator(".column").first.locator(".line").first.hover()
    expect(page.locator(f'.line.same[data-id="{lists[0][0]}"]')).to_have_count(sum(lists[0][0] in one for one in lists))
    page.get_by_role("checkbox", name="plain").uncheck()
    expect(page.locator(".column")).to_have_count(2)
    assert words(page)["compare"] == ["all", "some"]
    page.go_back()
    expect(page.locator(".column")).to_have_count(3)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".hit")).to_have_count(24)


def test_the_right_picture_is_marked_wherever_it_stands(opened: Opener, site: Site) -> None:
    captions = {hit.caption: hit.id for hit in everything(site) if hit.caption != HOSTILE}
    ranks = {}
    for caption, name in captions.items():
        hits = found(site, Query(texts={caption: 1.0}), 10)
        ranks[caption] = hits.index(name) + 1 if name in hits else 0
    inside = next(caption for caption, rank in ranks.items() if rank)
    outside = next(caption for caption, rank in ranks.items() if not rank)
    page = opened(f"/?q={inside}&compare=all")
    expect(page.locator(".column")).to_contain_text(f"The right picture is number {ranks[inside]}.")
    expect(page.locator(f'.line.right[data-id="{captions[inside]}"]')).to_contain_text("the right one")
    page.goto(f"{site.url}/?q={outside}&compare=all")
    expect(page.locator(".column")).to_contain_text("The right picture is not among the first 10.")
    page.goto(f"{site.url}/?q=no such caption&compare=all")
    expect(page.locator(".line")).to_have_count(10)
    expect(page.locator(".column")).not_to_contain_text("The right picture")


def test_another_index_is_chosen(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}")
    expect(page.locator(".hit")).to_have_count(24)
    body = asked(page, lambda: page.get_by_label("Index", exact=True).select_option("some"))
    assert body["index"] == "some"
    assert words(page)["index"] == ["some"]
    expect(page.locator(".hit img").first).to_have_attribute("src", re.compile("/some/"))
    assert ids(page) == found(site, Query(texts={site.likely: 1.0}), 24, "some")
    page.get_by_role("link", name="clipdistill").click()
    expect(page.locator("#headline")).to_be_visible()
    assert page.url == f"{site.url}/"


def test_the_package_ships_the_page() -> None:
    from importlib.resources import files

    folder = Path(str(files("clipdistill.serve"))) / "page"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert {"index.html", "app.js", "style.css", "words.js"} <= set(texts)
    for name, text in texts.items():
        assert text.count("\n") <= 400, name
        assert not any(word in text for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write")), (
            name
        )
        assert name == "icon.svg" or "http://" not in text.replace("http://www.w3.org/2000/svg", ""), name
