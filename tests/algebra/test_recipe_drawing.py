"""Recipes as pictures: well-formed, complete, the same every time, and without names on top of each other."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from clipdistill.algebra.drawing import draw
from clipdistill.algebra.nodes import Node
from clipdistill.algebra.places import lines, places
from clipdistill.algebra.recipe import Recipe, available
from clipdistill.cli import main

SVG = "{http://www.w3.org/2000/svg}"


def words_of(root: ET.Element, kind: str) -> list[str]:
    return [item.text or "" for item in root.iter(f"{SVG}text") if kind in (item.get("class") or "").split()]


def boxes_of(root: ET.Element, kind: str) -> list[tuple[float, float, float, float]]:
    found = [item for item in root.iter(f"{SVG}rect") if kind in (item.get("class") or "").split()]
    sides = [[float(item.get(key, "")) for key in ("x", "y", "width", "height")] for item in found]
    return [(x, y, x + width, y + height) for x, y, width, height in sides]


@pytest.mark.parametrize("name", available())
def test_every_recipe_is_drawn_whole(name: str) -> None:
    recipe = Recipe.load(name)
    text = draw(recipe)
    assert text == draw(Recipe.load(name))
    root = ET.fromstring(text)
    labels = words_of(root, "label")
    for term in recipe.terms:
        assert any(label.endswith(term.name) for label in labels)
        assert any(term.spelled() in (item.text or "") for item in root.iter(f"{SVG}text"))
    assert {str(node) for node in recipe.nodes} <= {
        part for node in words_of(root, "node") for part in [node, *node.split("+")]
    }
    assert len(labels) == len(lines(recipe))


@pytest.mark.parametrize("name", available())
def test_names_are_on_the_page_and_clear_of_nodes_and_of_each_other(name: str) -> None:
    root = ET.fromstring(draw(Recipe.load(name)))
    labels, nodes, (page,) = boxes_of(root, "behind"), boxes_of(root, "box"), boxes_of(root, "page")
    for place, (left, top, right, bottom) in enumerate(labels):
        assert page[0] <= left
        assert right <= page[2]
        for other in [*labels[:place], *nodes]:
            assert left >= other[2] or right <= other[0] or top >= other[3] or bottom <= other[1]


def test_an_arrow_is_one_line_between_its_nodes() -> None:
    recipe = Recipe.load(
        [
            {"contrast": "SI-ST", "name": "both"},
            {"contrast": "SI>TT|TT@bank", "name": "stack"},
            {"relation": "SI>SI", "like": "TI>TI", "metric": "mse", "name": "loop"},
        ]
    )
    found = [(line.term.name, line.role, str(line.start), str(line.end), line.both) for line in lines(recipe)]
    assert found == [
        ("both", "learns", "SI", "ST", True),
        ("stack", "learns", "SI", "TT", False),
        ("stack", "learns", "SI", "TT@bank", False),
        ("loop", "learns", "SI", "SI", False),
        ("loop", "target", "TI", "TI", False),
    ]
    root = ET.fromstring(draw(recipe))
    both = [path for path in root.iter(f"{SVG}path") if path.get("marker-start")]
    assert [path.get("class") for path in both] == ["line contrast learns"]


def test_pictures_are_left_captions_right_and_the_student_above() -> None:
    found = places(Recipe.load("mobileclip"))
    for letter in "STU":
        assert found[Node(letter, "I")][0] < found[Node(letter, "T")][0]
    assert [found[Node(letter, "I")][1] for letter in "STU"] == sorted(found[Node(letter, "I")][1] for letter in "STU")
    fused = places(Recipe.load("clip-kd-afd"))
    between = fused[Node.parse("SI+TI")]
    assert fused[Node("S", "I")][1] < between[1] < fused[Node("T", "I")][1]


def test_words_of_a_recipe_are_escaped() -> None:
    recipe = Recipe.load({"name": "a<b", "paper": "x & y", "terms": [{"contrast": "SI-ST", "name": "<task>"}]})
    root = ET.fromstring(draw(recipe))
    assert "<task>" in words_of(root, "label")
    assert "a<b" in words_of(root, "title")


def test_the_verb_writes_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("terms: [{feature: 'SI>UI', name: near}]")
    assert main(["recipes", "draw", "mine.yaml"]) == 0
    assert "near" in words_of(ET.fromstring(Path("mine.svg").read_text(encoding="utf-8")), "label")
    assert main(["recipes", "draw", "clip-kd", "--out", "kd.svg"]) == 0
    assert Path("kd.svg").read_text(encoding="utf-8") == draw(Recipe.load("clip-kd"))
    assert main(["recipes", "draw", "clip-kx"]) == 1
    assert "Did you mean 'clip-kd'" in capsys.readouterr().err
    assert main(["recipes", "draw", "clip", "--out", "nowhere/x.svg"]) == 1
    assert "nowhere" in capsys.readouterr().err
