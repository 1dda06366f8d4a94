"""Where the nodes of a recipe stand in its drawing, and which lines run between them.

Pictures are on the left, captions on the right, the student above its teachers. A view stands outside of its plain
node, a fused node between its parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from clipdistill.algebra.nodes import SIDES, STUDENT, Arrow, Node
from clipdistill.algebra.recipe import Recipe
from clipdistill.algebra.term import GradNorm, Term

Role = Literal["learns", "target", "confidence"]
Point = tuple[float, float]

#: Half the width and half the height of a node.
HALF_WIDTH, HALF_HEIGHT = 56.0, 20.0
_APART, _OUTWARD, _DOWN, _TOP = 380.0, 190.0, 230.0, 175.0
_MARGIN = 100.0


@dataclass(frozen=True)
class Line:
    """One line of a term: from ``start`` to ``end``, in both directions if ``both``; ``rank`` of ``many`` beside it."""

    term: Term
    role: Role
    start: Node
    end: Node
    both: bool = False
    rank: int = 0
    many: int = 1


def places(recipe: Recipe) -> dict[Node, Point]:
    """The centre of every node: the plain ones of every model there is, then views, then fused nodes."""
    letters = [STUDENT, *recipe.teachers]
    ends = _drawn(recipe)
    outside = {side: _views(ends, side) for side in SIDES}
    left = _MARGIN + _OUTWARD * max((len(views) for (_, views) in outside["I"].items()), default=0)
    columns = {"I": (left, -_OUTWARD), "T": (left + _APART, _OUTWARD)}
    found: dict[Node, Point] = {}
    for row, letter in enumerate(letters):
        for side, (x, outward) in columns.items():
            y = _TOP + _DOWN * row
            found[Node(letter, side)] = (x, y)
            for step, view in enumerate(outside[side].get(letter, []), 1):
                found[Node(letter, side, view)] = (x + outward * step, y)
    for node in (end for end in ends if end.fused):
        parts = [found[part] for part in node.parts]
        found[node] = (sum(x for x, _ in parts) / len(parts), sum(y for _, y in parts) / len(parts))
    return found


def size(found: Mapping[Node, Point], drawn: Iterable[Line]) -> Point:
    """The width and the height that nodes and loops below them take."""
    below = 40 if any(line.start == line.end and not line.start.is_student for line in drawn) else 0
    return max(x for x, _ in found.values()) + _MARGIN, max(y for _, y in found.values()) + 2 * HALF_HEIGHT + below


def lines(recipe: Recipe) -> list[Line]:
    """The lines of all terms, two opposite ones as one, those between the same nodes counted."""
    found = [line for term in recipe.terms for line in _of_term(term)]
    many = Counter(_between(line) for line in found)
    seen: Counter[frozenset[Node]] = Counter()
    counted = []
    for line in found:
        counted.append(replace(line, rank=seen[_between(line)], many=many[_between(line)]))
        seen[_between(line)] += 1
    return counted


def weight(term: Term) -> str:
    """A term's weight as it stands before its name, ``2000 `` or nothing for 1."""
    if isinstance(term.weight, GradNorm):
        return f"w({term.weight.share:g}) "
    return "" if term.weight == 1 else f"{term.weight:g} "


def _of_term(term: Term) -> Iterable[Line]:
    own = list(_merged(term, "learns", term.arrows))
    yield from own
    taken = {_between(line) for line in own}
    for target in term.like:
        # A relation between two arrows in both directions would draw each of them twice.
        yield from (line for line in _merged(term, "target", target) if _between(line) not in taken)
    if term.confidence:
        yield from _merged(term, "confidence", (term.confidence,))


def _merged(term: Term, role: Role, arrows: Iterable[Arrow]) -> Iterable[Line]:
    """One line for each pair of nodes; the rows of a stack are drawn one by one."""
    plain = [(arrow.anchor, layer) for arrow in arrows for layer in arrow.other.layers]
    for start, end in dict.fromkeys(plain):
        back = start != end and (end, start) in plain
        if not back or plain.index((start, end)) < plain.index((end, start)):
            yield Line(term, role, start, end, back)


def _between(line: Line) -> frozenset[Node]:
    return frozenset((line.start, line.end))


def _drawn(recipe: Recipe) -> list[Node]:
    """Every node at an end of a line, fused ones whole and stacked ones apart, sorted."""
    return sorted({layer for term in recipe.terms for end in term.ends for layer in end.layers})


def _views(ends: Iterable[Node], side: str) -> dict[str, list[str]]:
    """The views of a side by model, in order."""
    found: dict[str, list[str]] = {}
    for node in (part for end in ends for part in end.parts):
        if node.side == side and node.view and node.view not in found.setdefault(node.model, []):
            found[node.model].append(node.view)
    return found
