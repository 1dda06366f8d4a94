"""The site builds without a warning, knows every page, and asks nobody but itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from desk import DOCS, ROOT

import clipdistill
from clipdistill.algebra.drawing import draw
from clipdistill.algebra.recipe import Recipe


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it: any warning is an error there."""
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_every_verb_and_every_public_name_is_in_the_reference(site: Path) -> None:
    from typer.main import get_command

    from clipdistill.cli import app

    commands = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    verbs = get_command(app).commands  # type: ignore[attr-defined]
    assert len(verbs) > 10
    assert not [verb for verb in verbs if f"<code>clipdistill {verb}</code>" not in commands]
    names = (site / "reference" / "python.html").read_text(encoding="utf-8")
    public = set(clipdistill.__all__) - {"__version__"}
    assert not [name for name in public if f"clipdistill.{name}" not in names]
    assert "Raises" in names


def test_a_page_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    fetched = r"<(?:script|img|iframe|link|source)\b[^>]*?(?:src|href)=[\"']?(https?:)?//(?!127)[^>]*>"
    for page in pages:
        text = page.read_text(encoding="utf-8")
        found = [match[0] for match in re.finditer(fetched, text) if 'rel="canonical"' not in match[0]]
        assert not found, page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import\s)[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", str(nav)))
    made = {"reference/cli.md", "reference/python.md", "changes.md"}
    assert listed == made | {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


@pytest.mark.parametrize("picture", sorted(DOCS.glob("images/recipe-*.svg")), ids=lambda path: path.stem)
def test_drawn_recipes_are_current(picture: Path) -> None:
    """After a change: clipdistill recipes draw NAME --out docs/images/recipe-NAME.svg"""
    assert picture.read_text(encoding="utf-8") == draw(Recipe.load(picture.stem.removeprefix("recipe-")))
