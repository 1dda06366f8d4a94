"""The README and the docs are run: every command on real files, every Python block in order, every link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from desk import PAGES, ROOT, blocks, run_page

pytestmark = pytest.mark.usefixtures("graphs_once")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "browser.md"], ids=lambda page: page.name)
def test_every_block_runs(page: Path, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, desk, tmp_path / "desk", monkeypatch)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    for link in links:
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_every_run_key_is_documented() -> None:
    from clipdistill.config import _Section
    from clipdistill.models.presets import StudentSpec

    sections = [*_Section.__subclasses__(), StudentSpec]
    assert len(sections) > 8

    text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    for model in sections:
        for key in model.model_fields:
            assert re.search(rf"\b{key}\b", text), f"{model.__name__}.{key} is not in docs/runs.md"


def test_every_documented_run_file_is_a_run() -> None:
    from clipdistill.config import make_run
    from clipdistill.training.stages import stage_runs

    runs = [yaml.safe_load(block) for block in blocks(ROOT / "docs" / "runs.md", "yaml")]
    assert len(runs) >= 3
    assert max(len(stage_runs(make_run(run))) for run in runs) == 4


def test_every_key_of_a_term_is_documented() -> None:
    from clipdistill.algebra.reading import TERM_KEYS
    from clipdistill.algebra.term import ADAPTERS, VERBS

    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    words = {*TERM_KEYS, *ADAPTERS, *(metric for metrics in VERBS.values() for metric in metrics)}
    # Two stand in the table of verbs: "relation ... like ...", and "metrics" heads a column.
    assert not [word for word in words - {"like", "metric"} if not re.search(rf"`{word}\b", text)]


def test_every_flag_of_chinese_clip_is_documented() -> None:
    from clipdistill.coming_from.chinese_clip_flags import IDLE, MAPPED, REFUSED

    text = (ROOT / "docs" / "coming-from-chinese-clip.md").read_text(encoding="utf-8").replace("_", "-")
    assert not [flag for flag in (*MAPPED, *IDLE, *REFUSED) if f"`--{flag}`" not in text]


def test_every_recipe_is_documented() -> None:
    from clipdistill.algebra.recipe import available

    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in available())


METHODS = ROOT / "docs" / "methods.md"


@pytest.mark.parametrize("block", blocks(METHODS, "yaml"))
def test_every_documented_method_is_a_recipe(block: str) -> None:
    """A block headed by a recipe's name is that recipe."""
    from clipdistill.algebra.recipe import Recipe

    recipe = Recipe.load(yaml.safe_load(block))
    name = re.match(r"# recipe ([\w-]+)\n", block)
    assert name is None or recipe.terms == Recipe.load(name[1]).terms


def test_every_test_that_the_methods_name_exists() -> None:
    named = set(re.findall(r"\btest_\w+", METHODS.read_text(encoding="utf-8")))
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 20
    assert named <= set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))
