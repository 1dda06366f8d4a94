"""A term: one verb over arrows, with its metric, weight and scales. Names and defaults only; no mathematics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from clipdistill.algebra.nodes import STUDENT, Arrow, Node

#: Every verb with its metrics; the first is the default.
VERBS: dict[str, tuple[str, ...]] = {
    "contrast": ("softmax", "sigmoid"),
    "relation": ("kl", "ce", "mse", "sigmoid"),
    "feature": ("mse", "l2", "cosine"),
    "gradient": ("mse",),
    "classify": ("ce",),
}
#: Metrics that see the probabilities a row gives to its candidates.
SOFTMAX = ("softmax", "kl", "ce")
#: Verbs that compare one arrow with another.
COMPARING = ("relation", "gradient")
#: How rows of different width meet: the student's mapped or stretched (Chinese-CLIP) to the teacher's width, or the
#: teacher's mapped to the student's (CLIP-Embed-KD).
ADAPTERS = ("linear", "interpolate", "teacher")
#: CLIP's limit on the logit scale: exp(log scale) <= 100.
MAX_SCALE = 100.0


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
    """One verb over arrows. Its value is the mean over the arrows and over rows; ``weight`` multiplies it in the sum.

    ``scale`` multiplies the similarities of ``arrows``. ``like`` holds the targets, each as many arrows as ``arrows``,
    with one of ``like_scale`` each; several are averaged as probabilities. Targets (``like``, or the far end of a
    feature arrow) are detached unless ``mutual``. ``confidence`` weighs each row by the probability that its arrow
    gives the row's own partner. ``reference`` switches on the quirk of the published code that the verb is known for.
    ``adapter`` says how rows of different width meet. ``classify`` holds, for each end, an arrow from its logits to
    themselves.
    """

    verb: str
    arrows: tuple[Arrow, ...]
    like: tuple[tuple[Arrow, ...], ...]
    metric: str
    weight: float | GradNorm
    scale: Scale
    like_scale: tuple[Scale, ...]
    adapter: str
    confidence: Arrow | None
    mutual: bool
    reference: bool
    name: str

    @cached_property
    def ends(self) -> tuple[Node, ...]:
        """The nodes at the ends of its arrows, in order of appearance; fused and stacked ones as such."""
        arrows = (*self.arrows, *(arrow for target in self.like for arrow in target))
        asked = (*arrows, *([self.confidence] if self.confidence else []))
        return tuple(dict.fromkeys(node for arrow in asked for node in (arrow.anchor, arrow.other)))

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The plain nodes this term reads, in order of appearance."""
        return tuple(dict.fromkeys(part for end in self.ends for part in end.parts))

    @property
    def scales(self) -> dict[str, Scale]:
        """Every scale of the term, by the name under which a learnable one is kept."""
        names = [f"{self.name} like" + (f" {number}" if number else "") for number in range(len(self.like_scale))]
        return {self.name: self.scale, **dict(zip(names, self.like_scale, strict=True))}

    @property
    def letters(self) -> set[str]:
        """The models whose nodes or scales it needs, the student left out."""
        scales = {scale for scale in self.scales.values() if isinstance(scale, str)}
        confident = {self.confidence.anchor.model} if self.confidence else set()
        return ({node.model for node in self.nodes} | scales | confident) - {STUDENT}

    def likes(self, index: int) -> tuple[Arrow, ...]:
        """What its arrow number ``index`` is made like: one arrow of each target."""
        return tuple(target[index] for target in self.like)

    def spelled(self) -> str:
        """Its arrows as they are written in a recipe."""
        return spell(self.arrows, self.verb)

    def __str__(self) -> str:
        like = " and ".join(spell(target, self.verb) for target in self.like)
        return f"{self.name} ({self.verb} {self.spelled()}{f' like {like}' if like else ''})"

    def to_dict(self) -> dict[str, Any]:
        """Spell the term out as plain data, every default written."""
        likes = [spell(target, self.verb) for target in self.like]
        scales = [_plain(scale) for scale in self.like_scale]
        one = len(likes) == 1
        return {
            self.verb: self.spelled(),
            **({"like": likes[0] if one else likes, "like_scale": scales[0] if one else scales} if likes else {}),
            "metric": self.metric,
            "weight": {"grad_norm": self.weight.share} if isinstance(self.weight, GradNorm) else self.weight,
            **({"scale": _plain(self.scale)} if self.verb != "feature" else {}),
            **({"adapter": self.adapter} if self.verb in ("feature", "contrast") else {}),
            **({"confidence": str(self.confidence)} if self.confidence else {}),
            "mutual": self.mutual,
            "reference": self.reference,
            "name": self.name,
        }


def spell(arrows: tuple[Arrow, ...], verb: str = "") -> str:
    """Write arrows as shortly as they can be read back: ``SI-ST`` for a pair of opposite ones."""
    if verb == "classify":
        return ", ".join(str(replace(arrow.anchor, view="")) for arrow in arrows)
    pieces: list[str] = []
    rest = list(arrows)
    while rest:
        first = rest.pop(0)
        if rest and rest[0] == first.reverse and first.anchor != first.other:
            rest.pop(0)
            pieces.append(f"{first.anchor}-{first.other}")
        else:
            pieces.append(str(first))
    return ", ".join(pieces)


def _plain(scale: Scale) -> Any:
    return {"raw" if scale.raw else "new": scale.initial} if isinstance(scale, NewScale) else scale
