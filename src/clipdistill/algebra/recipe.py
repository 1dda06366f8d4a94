"""A recipe: the weighted sum of terms that a paper calls its loss, read from YAML.

::

    terms:
      - {contrast: SI-ST}
      - {relation: SI-ST, like: TI-TT, metric: kl, name: crd}
      - {feature: "SI>TI", metric: l2, weight: 3.9, name: fd_image}

A term is one verb over arrows, with optional keys (``term``); everything else about it has a default that says what
the papers mean (``reading``). The mathematics is in ``objectives`` and ``graph``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from clipdistill.algebra.formula import formula, total
from clipdistill.algebra.nodes import Node
from clipdistill.algebra.reading import read_term
from clipdistill.algebra.term import ADAPTERS, GradNorm, Term, spell
from clipdistill.errors import RecipeError, did_you_mean, unreadable_yaml

RECIPE_KEYS = ("name", "paper", "notes", "terms")
RECIPE_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """A named sum of terms, with the paper it comes from."""

    name: str
    terms: tuple[Term, ...]
    paper: str = ""
    notes: str = ""

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node some term reads, sorted."""
        return tuple(sorted({node for term in self.terms for node in term.nodes}))

    @cached_property
    def teachers(self) -> tuple[str, ...]:
        """The letters of the teachers whose nodes or scales this recipe needs, sorted."""
        return tuple(sorted({letter for term in self.terms for letter in term.letters}))

    @classmethod
    def load(cls, source: Recipe | str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Recipe:
        """Read a recipe by name, from a YAML file, a mapping, or a bare list of terms.

        Raises:
            RecipeError: the name or file is unknown, or a term names an unknown verb, key, metric or node; the
                message lists the known ones.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, (str, Path)):
            path = _find(source)
            return _read(path.stem, _load_yaml(path), str(path) if path.parent != RECIPE_FOLDER else path.stem)
        if isinstance(source, Mapping):
            return _read(str(source.get("name", "custom")), source, "the recipe")
        return _read("custom", {"terms": source}, "the recipe")

    def providers(self, missing: Node) -> Term:
        """Return the first term that needs the node ``missing``."""
        return next(term for term in self.terms if missing in term.nodes)

    def to_dict(self) -> dict[str, Any]:
        """Spell the recipe out as plain data, every default written; ``Recipe.load`` reads it back equal."""
        terms = [term.to_dict() for term in self.terms]
        return {"name": self.name, "paper": self.paper, "notes": self.notes, "terms": terms}

    def describe(self) -> str:
        """Return the recipe as plain text: paper, notes, the terms as a table, and as formulas."""
        head = ("term", "verb", "arrows", "like", "metric", "weight", "scale")
        rows = [head, *map(_row, self.terms)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        title = f"{self.name}: {self.paper}".rstrip(": ")
        formulas = [total(self.terms), *map(formula, self.terms)]
        parts = [title, self.notes.strip(), "\n".join(table), "\n".join(formulas)]
        return "\n\n".join(part for part in parts if part)


def available() -> dict[str, Path]:
    """Return the recipes that ship with the package: name to file."""
    return {path.stem: path for path in sorted(RECIPE_FOLDER.glob("*.yaml"))}


def _row(term: Term) -> tuple[str, ...]:
    """One term as a line of the table."""
    scale = " / ".join(map(str, (term.scale, *term.like_scale))) if term.verb != "feature" else "-"
    like = " + ".join(spell(target, term.verb) for target in term.like) or "-"
    weight = str(term.weight) if isinstance(term.weight, GradNorm) else f"{term.weight:g}"
    extras = [term.adapter] if term.adapter != ADAPTERS[0] else []
    extras += [f"confidence {term.confidence}"] if term.confidence else []
    extras += [flag for flag in ("mutual", "reference") if getattr(term, flag)]
    return term.name, term.verb, term.spelled(), like, ", ".join([term.metric, *extras]), weight, scale


def _find(source: str | Path) -> Path:
    known = available()
    if str(source) in known:
        return known[str(source)]
    path = Path(source)
    if path.is_file():
        return path
    raise RecipeError(
        f"unknown recipe '{source}': neither a recipe's name nor a YAML file." + did_you_mean(str(source), known)
    )


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(unreadable_yaml(path, error)) from error


def _read(name: str, data: Any, where: str) -> Recipe:
    if isinstance(data, list):
        data = {"terms": data}
    if not isinstance(data, Mapping) or not isinstance(data.get("terms"), (list, tuple)) or not data["terms"]:
        raise RecipeError(f"{where}: expected a list of terms under 'terms', found {data!r:.80}.")
    for key in data:
        if key not in RECIPE_KEYS:
            raise RecipeError(f"{where}: unknown key '{key}'." + did_you_mean(str(key), RECIPE_KEYS))
    terms: list[Term] = []
    for number, item in enumerate(data["terms"], 1):
        terms.append(read_term(item, f"{where}, term {number}", {term.name for term in terms}))
    return Recipe(str(data.get("name", name)), tuple(terms), str(data.get("paper", "")), str(data.get("notes", "")))
