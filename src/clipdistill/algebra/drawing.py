"""A recipe as a picture: its nodes, and a line for each arrow of its terms, in SVG that reads on light and dark."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from clipdistill.algebra.nodes import STUDENT, Node
from clipdistill.algebra.places import HALF_HEIGHT, HALF_WIDTH, Line, Point, lines, places, size, weight
from clipdistill.algebra.recipe import Recipe
from clipdistill.algebra.term import VERBS, Term, spell

#: Colours of the verbs, on light and on dark.
_COLOURS = {
    "contrast": ("#0b5fc0", "#79b8ff"),
    "relation": ("#b04a00", "#ffab5e"),
    "feature": ("#14753a", "#63d48f"),
    "gradient": ("#7a3fd0", "#c9a9ff"),
    "classify": ("#b81d5b", "#ff8fb8"),
}
_STYLE = """
text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#1c2128}
.title{font-size:18px;font-weight:bold}.side{fill:#5b6470}.node{font-size:14px;font-weight:bold;text-anchor:middle}
.label{font-size:11px;text-anchor:middle}.behind{fill:#fff;opacity:.88}
.page{fill:#fff}.box{fill:#eef1f5;stroke:#4a5360;stroke-width:1.5}.student{fill:#d7e6fb}
.idle rect{stroke-opacity:.35}.idle text{opacity:.4}.bank{stroke-dasharray:3 3}
.part{stroke:#8a93a0;stroke-dasharray:2 4}
.line{fill:none;stroke-width:1.8}.plain{stroke:#5b6470}.target{stroke-dasharray:7 4}.confidence{stroke-dasharray:2 3}
"""
_DARK = """
text{fill:#e6eaf0}.side{fill:#9aa5b1}.page,.behind{fill:#14171c}
.box{fill:#262c35;stroke:#9aa5b1}.student{fill:#1d3a5f}.part{stroke:#7a8491}.plain{stroke:#9aa5b1}
"""
_ROLES = {
    "learns": "learns",
    "target": "what it is made like (like)",
    "confidence": "how sure a row is (confidence)",
}
#: The control points of a curve: three for a line, four for a loop.
Curve = tuple[Point, ...]
_PER_LETTER = 7.3
#: Points of a curve that are tried for where it leaves a node.
_STEPS = 200
_WIDEST = 110


@dataclass(frozen=True)
class Box:
    """A rectangle that labels keep clear of, or that the page has to hold."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def draw(recipe: Recipe) -> str:
    """Draw a recipe's nodes, lines and a table of its terms as SVG; the same recipe gives the same text."""
    found, drawn = places(recipe), lines(recipe)
    width, height = size(found, drawn)
    taken = [_around(point) for point in found.values()]
    curves = [piece for line in drawn for piece in _line(line, found, taken)]
    longest = max(len(words) for words in _sentences(recipe)) * _PER_LETTER + 96
    left = min(0.0, *(box.left - 24 for box in taken))
    width = max(width, longest, *(box.right + 24 for box in taken)) - left
    table, end = _table(recipe, drawn, height)
    page = f'x="{left:.0f}" y="0" width="{width:.0f}" height="{end:.0f}"'
    body = [*_head(recipe, width), *_parts(found), *curves, *_nodes(found, drawn), *table]
    style = _STYLE + _colours(0) + "@media(prefers-color-scheme:dark){" + _DARK + _colours(1) + "}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.0f} 0 {width:.0f} {end:.0f}" '
            f'width="{width:.0f}" height="{end:.0f}" role="img" aria-label="{escape(recipe.name)}">',
            f"<title>{escape(recipe.name)}</title>",
            f"<style>{style}</style>",
            f"<defs>{''.join(map(_marker, VERBS))}</defs>",
            f'<rect class="page" {page}/>',
            *body,
            "</svg>\n",
        ]
    )


def _around(centre: Point) -> Box:
    """The room of a node."""
    x, y = centre
    return Box(x - HALF_WIDTH, y - HALF_HEIGHT, x + HALF_WIDTH, y + HALF_HEIGHT)


def _colours(mode: int) -> str:
    return "".join(
        f".{verb}{{stroke:{colours[mode]}}}.fill-{verb}{{fill:{colours[mode]}}}" for verb, colours in _COLOURS.items()
    )


def _marker(verb: str) -> str:
    return (
        f'<marker id="head-{verb}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto-start-reverse"><path class="fill-{verb}" d="M0 0L10 5L0 10z"/></marker>'
    )


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{named} xml:space="preserve">{escape(words)}</text>'


def _head(recipe: Recipe, width: float) -> list[str]:
    paper = textwrap.wrap(recipe.paper, max(40, int((width - 48) / _PER_LETTER)))[:3]
    return [
        _text(24.0, 36.0, recipe.name, "title"),
        *(_text(24.0, 58.0 + 17 * row, words, "side") for row, words in enumerate(paper)),
    ]


def _nodes(found: Mapping[Node, Point], drawn: Iterable[Line]) -> Iterable[str]:
    """A box for each node; a plain one that no line meets is faint."""
    met = {node for line in drawn for end in (line.start, line.end) for node in (end, *end.parts)}
    for node, (x, y) in found.items():
        kinds = ["box", *(["student"] if node.is_student else []), *(["bank"] if node.is_bank else [])]
        yield f'<g class="{"" if node in met else "idle"}">'
        yield (
            f'<rect class="{" ".join(kinds)}" x="{x - HALF_WIDTH:.1f}" y="{y - HALF_HEIGHT:.1f}" '
            f'width="{2 * HALF_WIDTH:.0f}" height="{2 * HALF_HEIGHT:.0f}" rx="{HALF_HEIGHT if node.fused else 6:.0f}"/>'
        )
        yield _text(x, y + 5, str(node), "node") + "</g>"


def _parts(found: Mapping[Node, Point]) -> Iterable[str]:
    """Dotted lines from a fused node to its parts, and from logits to their model's rows."""
    for node, (x, y) in found.items():
        parts = node.parts if node.fused else [Node(node.model, node.side)] if node.view == "logits" else []
        for px, py in (found[part] for part in parts):
            yield f'<path class="part" d="M{x:.1f} {y:.1f}L{px:.1f} {py:.1f}"/>'


def _line(line: Line, found: Mapping[Node, Point], taken: list[Box]) -> Iterable[str]:
    """A curve with its heads, and the term's name on it, where no other name or node is."""
    loop = line.start == line.end
    curve = _loop(line, found[line.start]) if loop else _bent(line, found)
    level = abs(curve[0][1] - curve[-1][1]) < HALF_HEIGHT
    upright = abs(curve[0][0] - curve[-1][0]) < HALF_WIDTH
    verb, words = line.term.verb, weight(line.term) + line.term.name
    box = _free(curve, len(words) * _PER_LETTER, 0.5 if level or upright else 0.75 if line.end.is_bank else 0.3, taken)
    taken.append(box)
    points = " ".join(f"{x:.1f} {y:.1f}" for x, y in curve[1:])
    back = f' marker-start="url(#head-{verb})"' if line.both else ""
    yield (
        f'<path class="line {verb} {line.role}" d="M{curve[0][0]:.1f} {curve[0][1]:.1f}{"C" if loop else "Q"}{points}"'
        f'{back} marker-end="url(#head-{verb})"/>'
    )
    yield (
        f'<rect class="behind" x="{box.left:.1f}" y="{box.top:.1f}" width="{box.right - box.left:.1f}" height="16" '
        'rx="4"/>'
    )
    yield _text((box.left + box.right) / 2, box.top + 12, words, f"label fill-{verb}")


def _free(curve: Curve, wide: float, best: float, taken: Sequence[Box]) -> Box:
    """Room for a name along a curve, as near to ``best`` as there is any."""
    for place in sorted((step / 40 for step in range(4, 37)), key=lambda t: (abs(t - best), t)):
        x, y = _at(curve, place)
        box = Box(x - wide / 2, y - 8, x + wide / 2, y + 8)
        if not any(box.meets(other) for other in taken):
            return box
    x, y = _at(curve, best)
    return Box(x - wide / 2, y - 8, x + wide / 2, y + 8)


def _loop(line: Line, centre: Point) -> Curve:
    """From a node to itself: above it for the student, below it for a teacher."""
    x, y = centre
    up = -1 if line.start.model == STUDENT else 1
    edge, far = y + up * HALF_HEIGHT, y + up * (HALF_HEIGHT + 44 + 24 * line.rank)
    wide = 34 + 10 * line.rank
    return (x - 16, edge), (x - wide, far), (x + wide, far), (x + 16, edge)


def _bent(line: Line, found: Mapping[Node, Point]) -> Curve:
    """Between two nodes, bent away from the other lines between them, and from nodes in its way."""
    # All lines between two nodes are bent to sides of the same direction, whichever of the two they start from.
    first, second = sorted((line.start, line.end))
    (ax, ay), (bx, by) = found[first], found[second]
    length = ((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5
    nx, ny = -(by - ay) / length, (bx - ax) / length
    gap = 30 if abs(by - ay) < 1 else 44 if abs(bx - ax) < 1 else 34
    bend = gap * (line.rank - (line.many - 1) / 2) + _detour(first, second, found)
    start, end = found[line.start], found[line.end]
    return _clipped(start, ((ax + bx) / 2 + 2 * bend * nx, (ay + by) / 2 + 2 * bend * ny), end)


def _detour(first: Node, second: Node, found: Mapping[Node, Point]) -> float:
    """How far a line goes round the nodes between its ends; an upright one to the outside."""
    (ax, ay), (bx, by) = found[first], found[second]
    upright = abs(bx - ax) < 1
    for node, (x, y) in found.items():
        between = min(ax, bx) - 1 <= x <= max(ax, bx) + 1 and min(ay, by) - 1 <= y <= max(ay, by) + 1
        if node not in (first, second) and between and abs((bx - ax) * (y - ay) - (by - ay) * (x - ax)) < 1:
            outward = (first.side == "I") == (by > ay)
            return 2.2 * HALF_WIDTH * (1 if outward else -1) if upright else 3.2 * HALF_HEIGHT
    return 0.0


def _at(curve: Curve, t: float) -> Point:
    """A point of a curve, by de Casteljau's rule."""
    points = curve
    while len(points) > 1:
        points = tuple(((1 - t) * ax + t * bx, (1 - t) * ay + t * by) for (ax, ay), (bx, by) in pairwise(points))
    return points[0]


def _clipped(start: Point, middle: Point, end: Point) -> Curve:
    """The part of a curve outside of the nodes at its ends."""
    curve = (start, middle, end)
    steps = [step / _STEPS for step in range(_STEPS + 1)]
    first = next(t for t in steps if not _inside(_at(curve, t), start))
    last = next(t for t in reversed(steps) if not _inside(_at(curve, t), end))
    u, v = 1 - first, 1 - last
    control = tuple(
        u * v * a + (u * last + v * first) * b + first * last * c for a, b, c in zip(start, middle, end, strict=True)
    )
    return _at(curve, first), (control[0], control[1]), _at(curve, last)


def _inside(point: Point, centre: Point) -> bool:
    return abs(point[0] - centre[0]) < HALF_WIDTH + 3 and abs(point[1] - centre[1]) < HALF_HEIGHT + 3


def _table(recipe: Recipe, drawn: Iterable[Line], top: float) -> tuple[list[str], float]:
    """The terms one below the other, then what kinds of lines there are; and where it ends."""
    rows, y = [], top + 10
    for term, words in zip(recipe.terms, _sentences(recipe), strict=True):
        rows += [_sample(term.verb, "learns", y), _text(72.0, y + 4, words)]
        y += 22
    y += 10
    for role in dict.fromkeys(line.role for line in drawn):
        rows += [_sample("", role, y), _text(72.0, y + 4, _ROLES[role], "side")]
        y += 20
    return rows, y + 6


def _sample(verb: str, role: str, y: float) -> str:
    head = f' marker-end="url(#head-{verb})"' if verb else ""
    return f'<path class="line {verb or "plain"} {role}" d="M24 {y:.1f}L62 {y:.1f}"{head}/>'


def _sentences(recipe: Recipe) -> list[str]:
    """Each term in words: weight, name, verb, arrows, targets, metric; names in one column."""
    names = [weight(term) + term.name for term in recipe.terms]
    column = max(map(len, names))
    return [f"{name:<{column}}  {_told(term)}"[:_WIDEST] for name, term in zip(names, recipe.terms, strict=True)]


def _told(term: Term) -> str:
    like = f" like {' + '.join(spell(target, term.verb) for target in term.like)}" if term.like else ""
    return f"{term.verb} {term.spelled()}{like}, {term.metric}" + (", mutual" if term.mutual else "")
