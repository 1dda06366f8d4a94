"""What the page shows: one file, complete, well formed, and true."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from report_fakes import NASTY, fake

from clipdistill.data.samples import Sample
from clipdistill.evaluation.evaluate import Evaluation
from clipdistill.evidence.report import write_report
from clipdistill.evidence.report.plots import loss_chart
from clipdistill.evidence.report.searches import Search, choose, searches

VOID = {"meta", "link", "br", "img", "hr", "input"}
FACTS: dict[str, Any] = {"retrieval": "scenes:test?n=40", "seed": 7, "data": {"uri": NASTY}, "note": "两只狗"}
CURVES = {
    "baseline": [{"step": step, "loss": 5 / step, "terms": {"task": 5 / step, "<i>": 1.0}} for step in range(1, 40)],
    "distilled": [
        {"step": step, "loss": 9 / step, "terms": {"task": 5 / step, "fd": 2000.0 / step**3}} for step in range(1, 900)
    ],
    "未命名": [{"step": 1, "loss": float("nan"), "terms": {}}, {"step": 2, "loss": None}],
}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    inside: list[Element] = field(default_factory=list)
    text: str = ""

    def all(self, tag: str, css: str = "") -> list[Element]:
        return [e for e in self.walk() if e.tag == tag and css in [*(e.attributes.get("class") or "").split(), ""]]

    def walk(self) -> Iterator[Element]:
        for element in self.inside:
            yield element
            yield from element.walk()

    def whole_text(self) -> str:
        return self.text + "".join(element.whole_text() for element in self.inside)


class Tree(HTMLParser):
    """Parses a page into elements, and insists that each is closed in turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(html)
        self.close()
        assert [element.tag for element in self.open] == [""]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        element = Element(tag, dict(attrs))
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].inside.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].text += data


@pytest.fixture(scope="module")
def html(trio: list[Evaluation], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_report(trio, tmp_path_factory.mktemp("report"), f"Report {NASTY}", CURVES, FACTS)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Element:
    return Tree(html).root


def test_page_fetches_nothing(html: str, page: Element) -> None:
    assert "http:" not in html
    assert "https:" not in html
    assert "//" not in re.sub(r"base64,[\w+/=]+", "", html)
    assert "@import" not in html
    assert not page.all("link") + page.all("script") + page.all("img") + page.all("iframe")
    for element in page.walk():
        for name in ("src", "href", "xlink:href"):
            assert (element.attributes.get(name) or "#").startswith("#")
    targets = re.findall(r"url\(([^)]*)\)", html)
    assert targets
    assert all(target.startswith(("data:image/jpeg;base64,", "#")) for target in targets)


def test_charset_comes_first_and_chinese_is_there(html: str, page: Element) -> None:
    assert html.startswith("<!DOCTYPE html>")
    assert b'<meta charset="utf-8">' in html.encode()[:1024]
    assert page.all("meta")[1].attributes["name"] == "viewport"
    assert "两只狗" in html
    assert "prefers-color-scheme: dark" in html


def test_what_users_give_is_escaped(html: str, page: Element) -> None:
    assert "<script" not in html
    assert page.all("h1")[0].text == f"Report {NASTY}"
    assert NASTY in page.all("dl")[0].whole_text().replace('\\"', '"')
    assert "<i>" in [caption.text for caption in page.all("figcaption")]
    assert NASTY in {tile.attributes.get("title") for tile in page.all("span", "pic")}


def test_ids_are_unique_and_references_are_met(html: str, page: Element) -> None:
    ids = [element.attributes["id"] for element in page.walk() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", html)) | set(re.findall(r'href="#([^"]*)"', html)) == set(ids)


def test_table_says_what_the_metrics_say(trio: list[Evaluation], page: Element) -> None:
    table = page.all("table")[0]
    assert [cell.text for cell in table.all("thead")[0].all("th")][1:] == [
        *(f.name for f in trio),
        "gain",
        "gap closed",
    ]
    found = [row.whole_text() for row in table.all("tr") if row.all("td")]
    values = [model.metrics["image_to_image_mAP"] for model in trio]
    gain, gap = values[2] - values[1], values[0] - values[1]
    expected = "".join([*(f"{value:.1f}" for value in values), f"+{gain:.1f}", f"{100 * gain / gap:.0f}\u00a0%"])
    assert values[0] > values[2] > values[1]
    assert f"mAP{expected}" in found
    bold = {strong.text for strong in table.all("strong")}
    assert f"{values[2]:.1f}" in bold
    assert all(len(row.all("td")) == 5 for row in table.all("tr") if row.all("td"))
    assert f"{values[0]:.1f}" not in bold


def test_there_is_a_chart_per_direction_and_per_term(page: Element) -> None:
    titles = [figure.all("figcaption")[0].text for figure in page.all("figure")]
    assert titles == ["Text to image", "Image to text", "Image to image", "total", "task", "<i>", "fd"]
    colours = [set(re.findall(r"var\(--s\d\)", str(list(f.walk())))) for f in page.all("figure")]
    assert [len(found) for found in colours] == [3, 3, 3, 2, 2, 1, 1]


def test_recall_curves_pass_through_the_metrics(trio: list[Evaluation]) -> None:
    for model in trio:
        found = searches(model)
        assert set(found) == {"text_to_image", "image_to_text", "image_to_image"}
        for way, search in found.items():
            curve = search.curve()
            assert curve == sorted(curve)
            assert [curve[k - 1] for k in (1, 5, 10)] == pytest.approx(
                [model.metrics[f"{way}_R@{k}"] for k in (1, 5, 10)]
            )
        assert len(found["text_to_image"].curve()) == 40
        assert len(found["image_to_image"].curve()) == 39
        assert found["image_to_image"].curve()[-1] == 100


def test_marked_hits_are_those_of_a_naive_search(trio: list[Evaluation], samples: list[Sample], page: Element) -> None:
    shown = [article for article in page.all("article") if "told" in (article.attributes["class"] or "")]
    assert len(shown) == 6
    captions = [(owner, caption) for owner, sample in enumerate(samples) for caption in sample.captions]
    for article in shown:
        row = next(i for i, (_, caption) in enumerate(captions) if caption == article.all("p", "asked")[0].text)
        for model, strip in zip(trio, article.all("div", "strip"), strict=True):
            images, text = model.galleries["retrieval"].images, model.texts
            assert text is not None
            order = np.argsort(-(images @ text[row]) / np.linalg.norm(images, axis=1))
            owner = captions[row][0]
            own = {5, 6} if owner in (5, 6) else {owner}
            _agrees(strip, [samples[i] for i in order[:10]], [i in own for i in order[:10]])
            if len(own) == 1:
                assert strip.all("small")[0].text == f"rank {list(order).index(owner) + 1}"


def test_picture_queries_find_their_label_and_never_themselves(
    trio: list[Evaluation], samples: list[Sample], page: Element
) -> None:
    shown = [article for article in page.all("article") if "told" not in (article.attributes["class"] or "")]
    asked = choose([searches(model)["image_to_image"] for model in trio], 6)
    assert len(shown) == len(asked) == 6
    for query, article in zip(asked, shown, strict=True):
        for model, strip in zip(trio, article.all("div", "strip"), strict=True):
            unit = model.galleries["image_retrieval"].images.astype(np.float64)
            unit /= np.linalg.norm(unit, axis=1, keepdims=True)
            order = [int(i) for i in np.argsort(-(unit @ unit[query])) if i != query][:10]
            asked_for = samples[query]
            hits = [
                (sample.group is not None and sample.group == asked_for.group)
                or (sample.label is not None and sample.label == asked_for.label)
                for sample in (samples[i] for i in order)
            ]
            _agrees(strip, [samples[i] for i in order], hits)
            assert strip.all("small")[0].text == f"{sum(hits)} of 10"


def _agrees(strip: Element, expected: list[Sample], hits: list[bool]) -> None:
    tiles = strip.all("li")
    assert [tile.all("span")[0].attributes["title"] for tile in tiles] == [sample.captions[0] for sample in expected]
    assert ["hit" in (tile.attributes.get("class") or "") for tile in tiles] == hits
    assert [", match" in (tile.all("span")[0].attributes["aria-label"] or "") for tile in tiles] == hits


def test_every_picture_is_embedded_once_and_is_small(html: str, page: Element) -> None:
    uris = re.findall(r"data:image/jpeg;base64,([\w+/=]+)", html)
    assert len(uris) == len(set(uris)) <= 40
    for uri in uris:
        with Image.open(io.BytesIO(base64.b64decode(uri))) as picture:
            assert max(picture.size) <= 96
    used = {css for tile in page.all("span", "pic") for css in (tile.attributes["class"] or "").split()} - {"pic"}
    assert used == set(re.findall(r"^\.(p\d+) ", html, re.MULTILINE))


def test_queries_come_from_all_over_and_prefer_disagreement() -> None:
    eye = np.eye(20, dtype=np.float32)
    moved = eye.copy()
    moved[[3, 17]] *= -1
    own = [np.array([query]) for query in range(20)]
    good, worse = Search(eye, eye, own), Search(moved, eye, own)
    assert choose([good, worse], 2) == choose([worse, good], 2) == [3, 17]
    assert choose([good], 4) == [0, 5, 10, 15]
    assert choose([good], 50) == list(range(20))


def test_equally_similar_results_count_against() -> None:
    same = np.ones((5, 4), np.float32) / 2
    answer = Search(same, same, [np.array([0])] * 5).answer(0)
    assert answer.top == [1, 2, 3, 4, 0]
    assert (answer.first, answer.matches) == (5, 1)


def test_same_input_gives_same_bytes_and_no_state_is_left(trio: list[Evaluation], html: str, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    for _ in range(2):
        path = write_report(trio, tmp_path, f"Report {NASTY}", CURVES, FACTS)
        assert path == tmp_path / "report.html"
        assert path.read_text(encoding="utf-8") == html
    assert dict(mpl.rcParams) == before
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert {"report.html", "report.json"} < files
    assert len(files) == 2 + 6
    assert all(name.startswith(("report.", "clip_benchmark/")) for name in files)


def test_models_without_embeddings_still_make_a_page(tmp_path: Path) -> None:
    found = [Evaluation("a", "hub/a", 1, 1, 0), Evaluation("b", "hub/b", 1, 1, 0, {"zeroshot_acc1": 5.0}, skipped=3)]
    root = Tree(write_report(found, tmp_path, "t").read_text(encoding="utf-8")).root
    assert not root.all("figure") + root.all("article")
    assert "b: 3 pictures could not be read" in root.whole_text()


def test_models_of_other_data_are_left_out_of_the_strips(samples: list[Sample], tmp_path: Path) -> None:
    found = [fake("one", samples, 1.0), fake("other", samples[:30], 1.0), fake("third", samples, 1.5)]
    root = Tree(write_report(found, tmp_path, "t").read_text(encoding="utf-8")).root
    names = {who.all("span")[0].text for who in root.all("p", "who")}
    assert names == {"one", "third"}


def test_a_picture_lost_since_is_an_empty_tile(samples: list[Sample], tmp_path: Path) -> None:
    lost = [replace(samples[0], image=tmp_path / "gone.jpg"), *samples[1:12]]
    html = write_report([fake("m", lost, 1.0)], tmp_path, "t").read_text(encoding="utf-8")
    tiles = Tree(html).root.all("span", "pic")
    assert {tile.attributes["class"] for tile in tiles if tile.attributes.get("title") == "caption 0"} == {"pic "}


def test_odd_bytes_in_names_do_not_stop_a_report(tmp_path: Path) -> None:
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    write_report([Evaluation("m", odd, 1, 1, 0)], tmp_path, odd)
    assert "caf?" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "caf?" in (tmp_path / "report.json").read_text(encoding="utf-8")


def test_loss_charts_leave_out_what_is_not_finite() -> None:
    assert loss_chart("x", {0: ([1, 2], [float("nan"), float("inf")])}) is None
    chart = loss_chart("x", {0: ([1, 2, 3], [1.0, float("nan"), 2.0])})
    assert chart is not None
    assert "nan" not in chart.svg
    constant = loss_chart("zero", {0: ([1, 2], [0.0, 0.0])})
    assert constant is not None
