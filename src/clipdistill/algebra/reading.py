"""Reading a term from YAML: every word checked, every default filled in, every mistake named with its place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clipdistill.algebra.nodes import BANK, LOGITS, Arrow, Node, parse_arrows
from clipdistill.algebra.term import ADAPTERS, COMPARING, MAX_SCALE, VERBS, GradNorm, NewScale, Scale, Term, spell
from clipdistill.errors import RecipeError, did_you_mean

TERM_KEYS = (
    *VERBS,
    "like",
    "metric",
    "weight",
    "scale",
    "like_scale",
    "adapter",
    "confidence",
    "mutual",
    "reference",
    "name",
)
#: Which verbs an adapter serves; the linear one serves all.
_ADAPTED = {"interpolate": "feature", "teacher": "contrast"}


def read_term(item: Any, where: str, taken: set[str]) -> Term:
    """Read one term; ``taken`` holds the names of the terms before it.

    Raises:
        RecipeError: a word is unknown or does not fit; names ``where``.
    """
    if not isinstance(item, Mapping):
        raise RecipeError(f"{where}: expected a mapping such as {{contrast: SI-ST}}, found {item!r}.")
    verb = _verb(item, where)
    try:
        arrows, like, confidence = _parse(verb, item[verb]), _likes(verb, item), _confidence(item)
    except RecipeError as error:
        raise RecipeError(f"{where} ({verb}): {error}") from error
    _check_like(verb, arrows, like, where)
    _check_idle(verb, item, where)
    metric = _metric(verb, item, where)
    # Similarities compared as they are carry no temperature; softmaxes carry their model's own.
    bare = verb in ("feature", "classify") or (verb, metric) == ("relation", "mse")
    term = Term(
        verb=verb,
        arrows=arrows,
        like=like,
        metric=metric,
        weight=_weight(item.get("weight", 1.0), where),
        scale=_scale(item.get("scale", 1.0 if bare else arrows[0].anchor.model), where),
        like_scale=_like_scales(item, like, bare, where),
        adapter=_adapter(verb, item, where),
        confidence=confidence,
        mutual=_flag(item, "mutual", where),
        reference=_flag(item, "reference", where),
        name=_name(item, verb, arrows, taken, where),
    )
    _check_ends(term, where)
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


def _parse(verb: str, text: Any) -> tuple[Arrow, ...]:
    """Read arrows; for ``classify`` nodes, whose logits are meant."""
    if verb != "classify":
        return parse_arrows(text)
    if not isinstance(text, str) or not text.strip():
        raise RecipeError(f"expected a node such as SI, found {text!r}.")
    nodes = [Node.parse(piece) for piece in text.split(",")]
    for node in nodes:
        if node.view or node.fused or node.stacked:
            raise RecipeError(f"expected a plain node such as SI, found {node}.")
    logits = [Node(node.model, node.side, LOGITS) for node in nodes]
    return tuple(Arrow(node, node) for node in logits)


def _likes(verb: str, item: Mapping[str, Any]) -> tuple[tuple[Arrow, ...], ...]:
    """The targets: none, one, or a list of several."""
    if "like" not in item:
        return ()
    written = item["like"]
    return tuple(_parse(verb, text) for text in (written if isinstance(written, (list, tuple)) else [written]))


def _confidence(item: Mapping[str, Any]) -> Arrow | None:
    if item.get("confidence") is None:
        return None
    arrows = parse_arrows(item["confidence"])
    if len(arrows) != 1:
        raise RecipeError(f"confidence is one arrow such as TI>TT, found '{item['confidence']}'.")
    return arrows[0]


def _check_like(verb: str, arrows: tuple[Arrow, ...], like: tuple[tuple[Arrow, ...], ...], where: str) -> None:
    if verb in COMPARING and not (like and all(len(target) == len(arrows) for target in like)):
        found = " and ".join(str(len(target)) for target in like) or "0"
        raise RecipeError(
            f"{where}: {verb} {spell(arrows)} has {len(arrows)} arrows and needs as many under 'like', "
            f"found {found}. Write for instance {{{verb}: SI-ST, like: TI-TT}}."
        )
    if verb == "classify" and any(len(target) != len(arrows) for target in like):
        raise RecipeError(f"{where}: classify needs as many nodes under 'like' as it has itself, as in SI like TI.")
    if len(like) > 1 and verb != "relation":
        raise RecipeError(f"{where}: several targets under 'like' belong to relation, not to {verb}.")
    if verb not in (*COMPARING, "classify") and like:
        raise RecipeError(f"{where}: 'like' belongs to {', '.join(COMPARING)} and classify, not to {verb}.")


def _check_idle(verb: str, item: Mapping[str, Any], where: str) -> None:
    """Refuse keys that would say nothing."""
    if verb == "feature" and "scale" in item:
        raise RecipeError(f"{where}: a feature compares unit rows and has no 'scale'.")
    if "like_scale" in item and "like" not in item:
        raise RecipeError(f"{where}: 'like_scale' is the scale of 'like', and there is none.")


def _check_ends(term: Term, where: str) -> None:
    """Refuse banks, stacks and logits where rows of the batch are meant."""
    for node in term.ends:
        if term.verb != "classify" and any(part.view == LOGITS for part in node.parts):
            raise RecipeError(f"{where}: {node} belongs to classify, not to {term.verb}.")
    arrows = (*term.arrows, *(arrow for target in term.like for arrow in target))
    for arrow in (*arrows, *([term.confidence] if term.confidence else [])):
        if arrow.anchor.stacked or arrow.anchor.is_bank:
            raise RecipeError(
                f"{where}: {arrow} anchors rows at {arrow.anchor}, which are not those of the batch. Banks and stacks "
                "are candidates: write SI>TT|TT@bank."
            )
        if term.verb in ("feature", "gradient") and (arrow.other.stacked or arrow.other.is_bank):
            raise RecipeError(f"{where}: {term.verb} pairs row with row, and {arrow.other} is no row of the batch.")
    if term.verb == "contrast" and term.metric == "softmax":
        for arrow in term.arrows:
            if all(layer.view == BANK for layer in arrow.other.layers):
                raise RecipeError(
                    f"{where}: {arrow} has stored candidates only, and a row's partner need not be among them. Stack "
                    f"them below the batch's: {arrow.anchor}>{arrow.other.model}{arrow.other.side}|{arrow.other}."
                )
    if term.adapter == "teacher" and any(node.fused for end in term.ends for node in end.layers):
        raise RecipeError(f"{where}: adapter teacher maps plain teacher nodes, not fused ones.")
    if term.confidence and (term.verb == "gradient" or term.confidence.other.stacked or term.confidence.other.is_bank):
        raise RecipeError(f"{where}: confidence is an arrow within the batch, for any verb but gradient.")


def _check_learner(term: Term, where: str) -> None:
    """Refuse a term through which no gradient reaches the student."""
    comparing = term.verb in (*COMPARING, "feature", "classify") and not term.mutual
    learners = (
        [arrow.anchor for arrow in term.arrows]
        if term.verb in ("feature", "classify")
        else [end for arrow in term.arrows for end in (arrow.anchor, arrow.other)]
    )
    if (comparing or term.verb == "contrast") and not any(part.is_student for node in learners for part in node.parts):
        raise RecipeError(
            f"{where}: {term} teaches the student nothing: no student's row takes a gradient from it. Put the student "
            "first, as in SI>TI" + (", or add mutual: true." if term.verb != "contrast" else ".")
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
    if _ADAPTED.get(adapter, verb) != verb:
        raise RecipeError(f"{where}: adapter {adapter} belongs to {_ADAPTED[adapter]}, not to {verb}.")
    return adapter


def _name(item: Mapping[str, Any], verb: str, arrows: tuple[Arrow, ...], taken: set[str], where: str) -> str:
    """The name given, or the verb with its arrows; a name is also a key in logs and checkpoints, so no dots."""
    name = str(item.get("name", f"{verb} {spell(arrows, verb)}"))
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
        share = _number(value["grad_norm"], f"{where}: weight")
        if share <= 0:
            raise RecipeError(f"{where}: weight: a grad_norm is a positive share of the others', found {share:g}.")
        return GradNorm(share)
    return _number(value, f"{where}: weight")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecipeError(f"{where}: expected a number, found {value!r}.")
    return float(value)


def _like_scales(
    item: Mapping[str, Any], like: tuple[tuple[Arrow, ...], ...], bare: bool, where: str
) -> tuple[Scale, ...]:
    """One scale for each target: as listed, one for all, or each target's own."""
    if "like_scale" not in item:
        return tuple(1.0 if bare else target[0].anchor.model for target in like)
    written = item["like_scale"]
    values = list(written) if isinstance(written, (list, tuple)) else [written] * len(like)
    if len(values) != len(like):
        raise RecipeError(f"{where}: like_scale has {len(values)} numbers for {len(like)} targets under 'like'.")
    return tuple(_scale(value, where) for value in values)


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
