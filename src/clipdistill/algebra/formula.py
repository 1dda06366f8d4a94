"""A term as a formula, in the notation of the papers.

``g`` is a logit scale, ``SI·STᵀ`` the similarities of unit rows, ``P`` a row softmax, ``σ`` a sigmoid, ``CE`` cross
entropy against each row's partner; everything is averaged over rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipdistill.algebra.nodes import Arrow
from clipdistill.algebra.term import GradNorm, NewScale, Scale, Term


def total(terms: Sequence[Term]) -> str:
    """The weighted sum, ``loss = task + 3.90625 fd``."""
    return "loss = " + " + ".join(_weight(term) + term.name for term in terms)


def formula(term: Term) -> str:
    """One term, ``crd = ½ [KL(P(gT TI·TTᵀ) ‖ P(gS SI·STᵀ)) + ...]``."""
    parts = [_one(term, index) for index in range(len(term.arrows))]
    mean = parts[0] if len(parts) == 1 else f"1/{len(parts)} [" + " + ".join(parts) + "]"
    weighed = f", rows weighed by P({_logits(term.confidence, None)})" if term.confidence else ""
    return f"{term.name} = {mean}{weighed}"


def _weight(term: Term) -> str:
    if isinstance(term.weight, GradNorm):
        return f"w({term.weight.share:g}) "
    return "" if term.weight == 1 else f"{term.weight:g} "


def _one(term: Term, index: int) -> str:
    """One arrow's part."""
    arrow = term.arrows[index]
    if term.verb == "feature":
        return {
            "mse": f"|{arrow.anchor} - {arrow.other}|²/D",
            "l2": f"|{arrow.anchor} - {arrow.other}|²",
            "cosine": f"(1 - cos({arrow.anchor}, {arrow.other}))",
        }[term.metric]
    if term.verb == "classify":
        return _classify(term, index)
    logits = _logits(arrow, term.scale)
    if term.verb == "contrast":
        return f"CE({logits})" if term.metric == "softmax" else f"Σ -log σ(±({logits} + b))"
    likes = [_logits(target[index], scale) for target, scale in zip(term.like, term.like_scale, strict=True)]
    return _compared(term, logits, likes)


def _compared(term: Term, logits: str, likes: list[str]) -> str:
    if term.verb == "gradient":
        return f"|∇CE({logits}) - ∇CE({likes[0]})|²/D"
    if term.metric == "mse":
        return f"mean({logits} - {_mean(likes)})²"
    if term.metric == "sigmoid":
        p = _mean([f"σ({like} + b)" for like in likes])
        return f"-Σ log σ((2 {p} - 1)({logits} + b))" if term.reference else f"BCE({p}; {logits} + b)"
    q = _mean([f"P({like})" for like in likes])
    return f"KL({q} ‖ P({logits}))" if term.metric == "kl" else f"CE({q}; {logits})"


def _classify(term: Term, index: int) -> str:
    logits = str(term.arrows[index].anchor)
    logits = f"P({logits})" if term.reference else logits
    target = f"P({term.like[0][index].anchor})" if term.like else "label"
    return f"CE({target}; {logits})"


def _mean(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"1/{len(parts)} ({' + '.join(parts)})"


def _logits(arrow: Arrow, scale: Scale | None) -> str:
    """The similarities of an arrow under its scale, ``gS SI·STᵀ``."""
    other = f"({arrow.other})" if arrow.other.stacked else str(arrow.other)
    letter = arrow.anchor.model if scale is None else scale
    if isinstance(letter, str):
        factor = f"g{letter} "
    elif isinstance(letter, NewScale):
        factor = "g "
    else:
        factor = "" if letter == 1 else f"{letter:g} "
    return f"{factor}{arrow.anchor}·{other}ᵀ"
