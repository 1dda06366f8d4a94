"""A term as a formula, in the notation of the papers.

``g`` is a logit scale, ``g[icl]`` one that a term learns, ``SI·STᵀ`` the similarities of unit rows, ``P`` a row
softmax, ``σ`` a sigmoid, ``CE`` cross entropy against each row's partner, ``M`` a learned map of the teacher's rows,
``W`` of fused ones, ``Σ`` a sum over candidates; everything is averaged over rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipdistill.algebra.nodes import Arrow, Node
from clipdistill.algebra.term import GradNorm, NewScale, Term


def total(terms: Sequence[Term]) -> str:
    """The weighted sum, ``loss = task + 3.90625 fd``."""
    return "loss = " + " + ".join(_weight(term) + term.name for term in terms)


def formula(term: Term) -> str:
    """One term, ``crd = 1/2 [KL(P(gT TI·TTᵀ) ‖ P(gS SI·STᵀ)) + ...]``."""
    parts = [_one(term, index) for index in range(len(term.arrows))]
    mean = parts[0] if len(parts) == 1 else f"1/{len(parts)} [" + " + ".join(parts) + "]"
    if not term.confidence:
        return f"{term.name} = {mean}"
    sure = f"P(g{term.confidence.anchor.model} {_similar(term, term.confidence)})ᵢᵢ"
    return f"{term.name} = {mean}, row i weighed by {sure} over its mean"


def _weight(term: Term) -> str:
    if isinstance(term.weight, GradNorm):
        return f"w({term.weight.share:g}) "
    return "" if term.weight == 1 else f"{term.weight:g} "


def _one(term: Term, index: int) -> str:
    """One arrow's part."""
    arrow = term.arrows[index]
    if term.verb == "feature":
        anchor, other = _node(term, arrow.anchor), _node(term, arrow.other)
        return {
            "mse": f"|{anchor} - {other}|²/D",
            "l2": f"|{anchor} - {other}|²",
            "cosine": f"(1 - cos({anchor}, {other}))",
        }[term.metric]
    names = list(term.scales)
    if term.verb == "classify":
        return _classify(term, index, names)
    logits = _logits(term, arrow, names[0])
    if term.verb == "contrast":
        return f"CE({logits})" if term.metric == "softmax" else f"Σ -log σ(±({logits} + b))"
    likes = [_logits(term, target[index], name) for target, name in zip(term.like, names[1:], strict=True)]
    letters = [target[index].anchor.model for target in term.like]
    return _compared(term, logits, likes, letters)


def _compared(term: Term, logits: str, likes: list[str], letters: list[str]) -> str:
    if term.verb == "gradient":
        return f"|∇CE({logits}) - ∇CE({likes[0]})|²/D"
    if term.metric == "mse":
        return f"mean ({logits} - {_mean(likes)})²"
    if term.metric == "sigmoid":
        p = _mean([f"σ({like} + b{letter})" for like, letter in zip(likes, letters, strict=True)])
        return f"-Σ log σ((2 {p} - 1)({logits} + b))" if term.reference else f"Σ BCE({p}; {logits} + b)"
    q = _mean([f"P({like})" for like in likes])
    return f"KL({q} ‖ P({logits}))" if term.metric == "kl" else f"CE({q}; {logits})"


def _classify(term: Term, index: int, names: list[str]) -> str:
    logits = _factor(term, names[0]) + str(term.arrows[index].anchor)
    logits = f"P({logits})" if term.reference else logits
    target = f"P({_factor(term, names[1])}{term.like[0][index].anchor})" if term.like else "label"
    return f"CE({target}; {logits})"


def _mean(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"1/{len(parts)} ({' + '.join(parts)})"


def _logits(term: Term, arrow: Arrow, name: str) -> str:
    """The similarities of an arrow under its scale, ``gS SI·STᵀ``."""
    return _factor(term, name) + _similar(term, arrow)


def _similar(term: Term, arrow: Arrow) -> str:
    return f"{_node(term, arrow.anchor)}·{_node(term, arrow.other)}ᵀ"


def _node(term: Term, node: Node) -> str:
    """A node as the term reads it: fused by a map W, the teacher's under CLIP-Embed-KD's map M, stacked in brackets."""
    layers = [f"W({layer})" if layer.fused else str(layer) for layer in node.layers]
    if term.adapter == "teacher" and not node.is_student:
        layers = [f"M({layer})" for layer in layers]
    return layers[0] if len(layers) == 1 else f"({'|'.join(layers)})"


def _factor(term: Term, name: str) -> str:
    """A scale before what it multiplies; a learned one has the term's name."""
    scale = term.scales[name]
    inverse = term.verb == "gradient" and term.reference
    if isinstance(scale, NewScale):
        scale = f"[{name}]"
    if isinstance(scale, str):
        return f"g{scale}⁻¹ " if inverse else f"g{scale} "
    value = 1 / scale if inverse else scale
    return "" if value == 1 else f"{value:g} "
