"""What the page does while it waits and where things go wrong: each state, and the way out of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from browser.conftest import Opener, Site, asked, ids, serving
from clipdistill.serve.keys import new_key
from clipdistill.serve.settings import Settings


def test_nothing_matches(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.unlikely}")
    expect(page.get_by_role("heading", name="Nothing matches")).to_be_visible()
    expect(page.locator("#status")).to_have_text("Nothing matches")
    expect(page.locator(".message")).to_contain_text("Even the best hit is more likely not what you look for.")
    expect(page.locator(".hits.dim .hit")).to_have_count(24)
    assert float(page.locator(".thumb").nth(5).evaluate("thumb => getComputedStyle(thumb).opacity")) < 0.6


def test_nothing_is_likely_enough(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.unlikely}&least=0.95")
    expect(page.locator(".message")).to_contain_text("No picture is at least 95 % likely to match.")
    expect(page.locator(".hits.dim .hit")).to_have_count(24)
    page.get_by_role("button", name="Show hits of any likelihood").click()
    expect(page.locator(".message")).to_contain_text("Even the best hit")
    assert "least" not in page.url


def test_nothing_passes_the_filter(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}&where=width > 4000")
    expect(page.locator(".message")).to_contain_text("the filter lets none through")
    expect(page.locator(".hit")).to_have_count(0)
    page.get_by_role("button", name="Search without the filter").click()
    expect(page.locator(".hit")).to_have_count(24)


def test_a_slow_search_shows_where_hits_will_be(opened: Opener, site: Site) -> None:
    page = opened()
    held: list[Route] = []
    page.route("**/api/search", lambda route: held.append(route))
    page.fill("#text", site.likely)
    page.keyboard.press("Enter")
    expect(page.locator(".ghost").first).to_be_visible()
    expect(page.locator("#status")).to_have_text("Searching …")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "true")
    held[0].continue_()
    expect(page.locator(".hit .thumb")).to_have_count(24, timeout=30_000)  # the machine may be busy
    expect(page.locator(".ghost")).to_have_count(0)
    assert page.locator("#results").get_attribute("aria-busy") is None


def test_a_newer_search_ends_an_older_one(opened: Opener, site: Site) -> None:
    page = opened()
    held: list[Route] = []
    page.route("**/api/search", lambda route: route.continue_() if held else held.append(route))
    page.fill("#text", site.unlikely)
    page.keyboard.press("Enter")
    expect(page.locator(".ghost").first).to_be_visible()
    page.fill("#text", site.likely)
    page.keyboard.press("Enter")
    expect(page.locator(".hits:not(.dim) .thumb")).to_have_count(24)
    first = ids(page)
    held[0].abort()
    page.wait_for_timeout(50)
    assert ids(page) == first


def test_a_server_that_is_gone(opened: Opener, site: Site) -> None:
    page = opened()
    page.route("**/api/search", lambda route: route.abort())
    page.fill("#text", site.likely)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="The server does not answer")).to_be_visible()
    expect(page.locator("#status")).to_have_text("The server does not answer")
    page.unroute("**/api/search")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".hit")).to_have_count(24)


def test_a_server_that_is_gone_from_the_start(opened: Opener) -> None:
    page = opened()
    page.route("**/api/indexes", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("heading", name="The server does not answer")).to_be_visible()
    page.unroute("**/api/indexes")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Search 60 pictures")


def test_other_failures_are_told_in_the_servers_words(opened: Opener) -> None:
    page = opened("/?q=circle&index=al")
    message = page.locator(".message")
    expect(message).to_contain_text("This search did not work")
    expect(message).to_contain_text("'al'")
    page = opened("/?like=no such picture")
    expect(page.locator(".message")).to_contain_text("no such picture")
    error: dict[str, Any] = {"error": {"message": "late", "type": "timeout_error", "param": None}}
    page.route("**/api/search", lambda route: route.fulfill(status=504, json=error))
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".message")).to_contain_text("The server took too long")


def test_a_busy_server_is_asked_again_after_the_wait(opened: Opener, site: Site) -> None:
    """The real limit: a request a minute for this address, all of which is used up."""
    with serving({"all": site.searchers["all"]}, Settings(rate=2)) as url:
        page = opened("/", root=url)
        expect(page.get_by_role("heading", level=1)).to_have_text("Search 60 pictures")
        page.fill("#text", site.likely)
        page.keyboard.press("Enter")
        expect(page.locator(".hit")).to_have_count(24)
        page.fill("#text", site.unlikely)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="The server is busy")).to_be_visible()
        expect(page.get_by_role("timer")).to_contain_text("Trying again in")
    busy = {"status": 429, "headers": {"Retry-After": "30"}, "json": {"error": {"message": "busy", "type": "x"}}}
    page = opened()
    page.clock.install()  # the seconds pass when the test says so
    page.route("**/api/search", lambda route: route.fulfill(**busy), times=1)  # type: ignore[arg-type]
    page.fill("#text", site.likely)
    page.keyboard.press("Enter")
    expect(page.get_by_role("timer")).to_contain_text("It asks to wait. Trying again in")
    page.clock.run_for(10_000)
    expect(page.get_by_role("timer")).to_be_visible()
    page.clock.run_for(21_000)
    expect(page.locator(".hit")).to_have_count(24)


@pytest.fixture
def locked(site: Site, tmp_path: Path) -> Any:
    """A server that asks for a key, and the key."""
    key = new_key(tmp_path / "keys", "anna")
    with serving({"all": site.searchers["all"]}, Settings(keys=tmp_path / "keys")) as url:
        yield url, key


def test_a_key_is_asked_for_only_where_one_is_needed(opened: Opener, site: Site, locked: tuple[str, str]) -> None:
    url, key = locked
    page = opened(f"/?q={site.likely}", root=url)
    field = page.get_by_label("This server asks for an API key")
    expect(field).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    field = page.get_by_label("The server does not accept this key")
    expect(field).to_be_focused()
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    expect(page.locator(".hit")).to_have_count(24)
    expect(page.locator("#key-form")).to_be_hidden()
    image = page.locator(".hit img").first  # which sends no key by itself
    expect(image).to_have_attribute("src", re.compile("^blob:"))
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 48
    assert key not in page.url
    assert page.evaluate("Object.values(localStorage).join()").find(key) < 0
    asked(page, page.reload)
    expect(page.locator(".hit")).to_have_count(24)
    other: Page = page.context.new_page()
    other.goto(url)
    expect(other.get_by_label("This server asks for an API key")).to_be_visible()


def test_no_key_is_asked_for_elsewhere(opened: Opener, site: Site) -> None:
    page = opened(f"/?q={site.likely}")
    expect(page.locator(".hit")).to_have_count(24)
    expect(page.locator("#key-form")).to_be_hidden()
