"""A recipe: the weighted sum of terms that a paper calls its loss, read from YAML.

::

    terms:
      - {contrast: SI-ST}
      - {relation: SI-ST, like: TI-TT, metric: kl, name: crd}
      - {feature: "SI>TI", metric: l2, weight: 3.9, name: fd_image}

A term is one verb over arrows, with optional keys; everything else about it has a default that says what the
papers mean. This file knows names and defaults only; the mathematics is in ``objectives`` and ``graph``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipdistill.algebra.nodes import STUDENT, Arrow, Node, parse_arrows
from clipdistill.errors import RecipeError, did_you_mean

#: Every verb with its metrics; the first is the default.
VERBS: dict[str, tuple[str, ...]] = {
    "contrast": ("softmax", "sigmoid"),
    "relation": ("kl", "ce", "mse"),
    "feature": ("mse", "l2", "cosine"),
    "gradient": ("mse",),
}
#: Verbs that compare one arrow with another.
COMPARING = ("relation", "gradient")
TERM_KEYS = (*VERBS, "like", "metric", "weight", "scale", "like_scale", "adapter", "mutual", "reference", "name")
#: How a student's row reaches another width: a learned map, or Chinese-CLIP's stretching.
ADAPTERS = ("linear", "interpolate")
RECIPE_KEYS = ("name", "paper", "notes", "terms")
#: CLIP's limit on the logit scale: exp(log scale) <= 100.
MAX_SCALE = 100.0
RECIPE_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class NewScale:
    """A fresh learnable logit scale that belongs to one term; stored as a logarithm.

    ``raw`` stores the number itself, without bounds: what CLIP-KD's code does with its extra scales.
    """

    initial: float
    raw: bool = False

    def __str__(self) -> str:
        return f"{'raw' if self.raw else 'new'} {self.initial:g}"


@dataclass(frozen=True)
class GradNorm:
    """A weight found at the first step: the term's gradient is ``share`` of that of the fixed-weight terms together.

    Both are norms of gradients with respect to the student's unit rows, so the weight carries over between batch
    sizes and widths, which a number such as CLIP-KD's 1e8 for GD does not.
    """

    share: float

    def __str__(self) -> str:
        return f"grad_norm {self.share:g}"


#: A model letter (that model's own logit scale), a fixed number, or a fresh learnable one.
Scale = str | float | NewScale


@dataclass(frozen=True)
class Term:
    """One verb over arrows. Its value is the mean over the arrows; ``weight`` multiplies it in the sum.

    ``scale`` multiplies the similarities of ``arrows``, ``like_scale`` those of ``like``. Targets (``like``, or the
    far end of a feature arrow) are detached unless ``mutual``. ``reference`` switches on the quirk of the published
    code that the verb is known for. ``adapter`` says how a feature's student row reaches the teacher's width.
    """

    verb: str
    arrows: tuple[Arrow, ...]
    like: tuple[Arrow, ...]
    metric: str
    weight: float | GradNorm
    scale: Scale
    like_scale: Scale
    adapter: str
    mutual: bool
    reference: bool
    name: str

    @property
    def ends(self) -> tuple[Node, ...]:
        """The nodes at the ends of its arrows, in order of appearance; fused ones as such."""
        ends = (node for arrow in (*self.arrows, *self.like) for node in (arrow.anchor, arrow.other))
        return tuple(dict.fromkeys(ends))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The plain nodes this term reads, in order of appearance."""
        return tuple(dict.fromkeys(part for end in self.ends for part in end.parts))

    def __str__(self) -> str:
        like = f" like {_spell(self.like)}" if self.like else ""
        return f"{self.name} ({self.verb} {_spell(self.arrows)}{like})"


@dataclass(frozen=True)
class Recipe:
    """A named sum of terms, with the paper it comes from."""

    name: str
    terms: tuple[Term, ...]
    paper: str = ""
    notes: str = ""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node some term reads, sorted."""
        return tuple(sorted({node for term in self.terms for node in term.nodes}))

    @property
    def teachers(self) -> tuple[str, ...]:
        """The letters of the teachers whose nodes or scales this recipe needs, sorted."""
        scales = {scale for term in self.terms for scale in (term.scale, term.like_scale) if isinstance(scale, str)}
        return tuple(sorted(({node.model for node in self.nodes} | scales) - {STUDENT}))

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
        terms = [
            {
                term.verb: _spell(term.arrows),
                **({"like": _spell(term.like), "like_scale": _plain(term.like_scale)} if term.like else {}),
                "metric": term.metric,
                "weight": {"grad_norm": term.weight.share} if isinstance(term.weight, GradNorm) else term.weight,
                **({"scale": _plain(term.scale)} if term.verb != "feature" else {"adapter": term.adapter}),
                "mutual": term.mutual,
                "reference": term.reference,
                "name": term.name,
            }
            for term in self.terms
        ]
        return {"name": self.name, "paper": self.paper, "notes": self.notes, "terms": terms}

    def describe(self) -> str:
        """Return the recipe as a table of plain text."""
        head = ("term", "verb", "arrows", "like", "metric", "weight", "scale")
        rows = [head]
        for term in self.terms:
            scale = str(term.scale) + (f" / {term.like_scale}" if term.like else "")
            like, scale = _spell(term.like) or "-", scale if term.verb != "feature" else "-"
            weight = str(term.weight) if isinstance(term.weight, GradNorm) else f"{term.weight:g}"
            metric = term.metric if term.adapter == ADAPTERS[0] else f"{term.metric}, {term.adapter}"
            rows.append((term.name, term.verb, _spell(term.arrows), like, metric, weight, scale))
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"{self.name}: {self.paper}".rstrip(": "), self.notes.strip(), "", *table]).replace(
            "\n\n\n", "\n\n"
        )


def available() -> dict[str, Path]:
    """Return the recipes that ship with the package: name to file."""
    return {path.stem: path for path in sorted(RECIPE_FOLDER.glob("*.yaml"))}


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
        raise RecipeError(f"{path} is not readable YAML: {error}") from error


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
        terms.append(_term(item, f"{where}, term {number}", {term.name for term in terms}))
    return Recipe(str(data.get("name", name)), tuple(terms), str(data.get("paper", "")), str(data.get("notes", "")))


def _term(item: Any, where: str, taken: set[str]) -> Term:
    """Read one term; ``taken`` holds the names of the terms before it."""
    if not isinstance(item, Mapping):
        raise RecipeError(f"{where}: expected a mapping such as {{contrast: SI-ST}}, found {item!r}.")
    verb = _verb(item, where)
    try:
        arrows = parse_arrows(item[verb])
        like = parse_arrows(item["like"]) if "like" in item else ()
    except RecipeError as error:
        raise RecipeError(f"{where} ({verb}): {error}") from error
    _check_like(verb, arrows, like, where)
    metric = _metric(verb, item, where)
    # Similarities compared as they are carry no temperature; softmaxes carry their model's own.
    bare = verb == "feature" or (verb, metric) == ("relation", "mse")
    term = Term(
        verb=verb,
        arrows=arrows,
        like=like,
        metric=metric,
        weight=_weight(item.get("weight", 1.0), where),
        scale=_scale(item.get("scale", 1.0 if bare else arrows[0].anchor.model), where),
        like_scale=_scale(item.get("like_scale", 1.0 if bare or not like else like[0].anchor.model), where),
        adapter=_adapter(verb, item, where),
        mutual=_flag(item, "mutual", where),
        reference=_flag(item, "reference", where),
        name=_name(item, verb, arrows, taken, where),
    )
    _check_learner(term, where)
    return term


def _verb(item: Mapping[str, Any], where: str) -> str:
    for key in item:
        if key not in TERM_KEYS:
            kind = "key or verb" if not any(verb in item for verb in VERBS) else "key"
            raise RecipeError(f"{where}: unknown {kind} '{key}'." + did_you_mean(str(key), TERM_KEYS))
    verbs = [key for key in item if key in VERBS]
    if len(verbs) != 1:
        raise RecipeError(f"{where}: a term has exactly one verb, found {verbs or 'none'}. Known: {', '.join(VERBS)}.")
    return verbs[0]


def _check_like(verb: str, arrows: tuple[Arrow, ...], like: tuple[Arrow, ...], where: str) -> None:
    if verb in COMPARING and len(like) != len(arrows):
        raise RecipeError(
            f"{where}: {verb} {_spell(arrows)} has {len(arrows)} arrows and needs as many under 'like', "
            f"found {len(like)}. Write for instance {{{verb}: SI-ST, like: TI-TT}}."
        )
    if verb not in COMPARING and like:
        raise RecipeError(f"{where}: 'like' belongs to {' and '.join(COMPARING)}, not to {verb}.")


def _check_learner(term: Term, where: str) -> None:
    """Refuse a term through which no gradient reaches the student."""
    comparing = term.verb in (*COMPARING, "feature") and not term.mutual
    learners = (
        [arrow.anchor for arrow in term.arrows]
        if term.verb == "feature"
        else [end for arrow in term.arrows for end in (arrow.anchor, arrow.other)]
    )
    if comparing and not any(part.is_student for node in learners for part in node.parts):
        raise RecipeError(
            f"{where}: {term} teaches the student nothing, since its target is held fixed. Put the student first, "
            "as in SI>TI, or add mutual: true."
        )


def _metric(verb: str, item: Mapping[str, Any], where: str) -> str:
    metric = str(item.get("metric", VERBS[verb][0]))
    if metric not in VERBS[verb]:
        raise RecipeError(f"{where}: unknown metric '{metric}' for {verb}." + did_you_mean(metric, VERBS[verb]))
    return metric


def _adapter(verb: str, item: Mapping[str, Any], where: str) -> str:
    adapter = str(item.get("adapter", ADAPTERS[0]))
    if adapter not in ADAPTERS:
        raise RecipeError(f"{where}: unknown adapter '{adapter}'." + did_you_mean(adapter, ADAPTERS))
    if "adapter" in item and verb != "feature":
        raise RecipeError(f"{where}: 'adapter' belongs to feature, not to {verb}.")
    return adapter


def _name(item: Mapping[str, Any], verb: str, arrows: tuple[Arrow, ...], taken: set[str], where: str) -> str:
    """The name given, or the verb with its arrows; a name is also a key in logs and checkpoints, so no dots."""
    name = str(item.get("name", f"{verb} {_spell(arrows)}"))
    if "." in name or not name.strip():
        raise RecipeError(f"{where}: the name {name!r} may not be empty or contain a dot.")
    if name in taken:
        raise RecipeError(f"{where}: a second term is called '{name}'. Give one of them another 'name'.")
    return name


def _flag(item: Mapping[str, Any], key: str, where: str) -> bool:
    value = item.get(key, False)
    if not isinstance(value, bool):
        raise RecipeError(f"{where}: {key} is true or false, found {value!r}.")
    return value


def _weight(value: Any, where: str) -> float | GradNorm:
    if isinstance(value, Mapping) and set(value) == {"grad_norm"}:
        return GradNorm(_number(value["grad_norm"], f"{where}: weight"))
    return _number(value, f"{where}: weight")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecipeError(f"{where}: expected a number, found {value!r}.")
    return float(value)


def _scale(value: Any, where: str) -> Scale:
    if isinstance(value, NewScale):
        return value
    if isinstance(value, str) and len(value) == 1 and value.isupper():
        return value
    if isinstance(value, Mapping) and len(value) == 1 and set(value) <= {"new", "raw"}:
        ((kind, initial),) = value.items()
        value = NewScale(_number(initial, f"{where}: scale"), raw=kind == "raw")
    elif not isinstance(value, (int, float)):
        raise RecipeError(
            f"{where}: unknown scale {value!r}. Known: a model letter (S, T, ...), a number, {{new: 14.3}} (learnable)."
        )
    number = value.initial if isinstance(value, NewScale) else _number(value, f"{where}: scale")
    if number <= 0:
        raise RecipeError(f"{where}: a scale is positive, found {number:g}.")
    if isinstance(value, NewScale) and not value.raw and not 1 <= number <= MAX_SCALE:
        raise RecipeError(f"{where}: a learnable scale stays within 1 and {MAX_SCALE:g}, found {number:g}.")
    return value if isinstance(value, NewScale) else number


def _spell(arrows: tuple[Arrow, ...]) -> str:
    """Write arrows as shortly as they can be read back: ``SI-ST`` for a pair of opposite ones."""
    pieces: list[str] = []
    rest = list(arrows)
    while rest:
        first = rest.pop(0)
        if rest and rest[0] == Arrow(first.other, first.anchor) and first.anchor != first.other:
            rest.pop(0)
            pieces.append(f"{first.anchor}-{first.other}")
        else:
            pieces.append(str(first))
    return ", ".join(pieces)


def _plain(scale: Scale) -> Any:
    return {"raw" if scale.raw else "new": scale.initial} if isinstance(scale, NewScale) else scale
