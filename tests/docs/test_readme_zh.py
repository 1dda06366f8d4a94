"""The Chinese README says what the English one says: the same outline, commands, figures and links."""

from __future__ import annotations

import re

import pytest
from desk import ROOT, all_blocks

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
TEXTS = [path.read_text(encoding="utf-8") for path in (ENGLISH, CHINESE)]


def prose(text: str) -> str:
    """A text without its blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def code(block: str) -> list[str]:
    """The lines of a block without their comments, which are translated."""
    return [line for line in (re.sub(r"(^|\s+)# ?.*", "", line) for line in block.splitlines()) if line]


def test_the_outline_is_the_same() -> None:
    english, chinese = (re.findall(r"^(#+) ", prose(text), re.MULTILINE) for text in TEXTS)
    assert len(english) > 4
    assert chinese == english


def test_the_commands_are_the_same() -> None:
    english, chinese = (
        [(language, code(block)) for language, block in all_blocks(page)] for page in (ENGLISH, CHINESE)
    )
    assert len(english) >= 5
    assert chinese == english


def test_the_figures_of_the_tables_are_the_same() -> None:
    english, chinese = (
        [re.findall(r"[\d.,]*\d", line) for line in prose(text).splitlines() if line.startswith("|")] for text in TEXTS
    )
    assert len(english) > 8
    assert chinese == english


@pytest.mark.parametrize("pattern", [r"\]\(([^)]+)\)", r"`([^`\n]+)`"], ids=["links", "words"])
def test_the_links_and_the_words_in_type_are_the_same(pattern: str) -> None:
    english, chinese = (sorted(re.findall(pattern, prose(text))) for text in TEXTS)
    assert [one for one in chinese if one != "README.md"] == [one for one in english if one != "README.zh-CN.md"]


def test_every_link_of_the_chinese_readme_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)", TEXTS[1])
    assert all((ROOT / link).exists() for link in links if not link.startswith("http"))
