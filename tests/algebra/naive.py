"""Recipes worked out a second time: plain loops over rows, sharing no line with the package.

Only the words of a recipe are taken from it; what they mean is written down here again. Whatever is not written down is
an error, so a new metric needs one small function in ``CONTRAST``, ``RELATION`` or ``FEATURE``, a new verb one in
``VERBS``, a new adapter one in ``ADAPTERS``, a new key of a term an entry in ``KEYS`` and its use below.

``Values`` holds all numbers by name: rows of a node ``"SI"`` of any length, ``[B, D]``; parameters as the graph's state
names them, ``"adapters.SI_to_5.weight"``; ``"scale of S"`` and ``"bias of S"`` as models bring them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Values = Mapping[str, np.ndarray]
Table = list[list[float]]
#: For every row, the rows that are its positives.
Partners = list[set[int]]

#: The keys of a term that are understood here.
KEYS = {"verb", "arrows", "like", "metric", "weight", "scale", "like_scale", "adapter", "mutual", "reference", "name"}


def known(table: Mapping[str, Any], word: str, what: str) -> Any:
    """Look a word up, loudly."""
    if word not in table:
        raise LookupError(f"tests/algebra/naive.py knows no {what} '{word}': write down there what it means.")
    return table[word]


def terms(recipe: Any, live: Values, partners: Partners, still: Values | None = None) -> dict[str, float]:
    """The value of every term; ``still`` holds the numbers that targets without ``mutual`` keep (default: the same)."""
    return {term.name: value_of(term, live, still or live, partners) for term in recipe.terms}


def value_of(term: Any, live: Values, still: Values, partners: Partners) -> float:
    for field in dataclasses.fields(term):
        known(dict.fromkeys(KEYS), field.name, "key of a term")
    compute = known(VERBS, term.verb, "verb")
    target = live if term.mutual else still
    return sum(compute(term, index, live, target, partners) for index in range(len(term.arrows))) / len(term.arrows)


def total(recipe: Any, values: Mapping[str, float], measured: list[float]) -> float:
    """The weighted sum; ``measured`` holds the weights that are found by gradient norm, in the order of their terms."""
    left = list(measured)
    result = 0.0
    for term in recipe.terms:
        weight = term.weight if isinstance(term.weight, float) else left.pop(0)
        result += weight * values[term.name]
    assert not left
    return result


def partners_of(keys: list[list[int]]) -> Partners:
    """Rows that agree in some column are positives of each other, negative keys in none; each is its own."""
    found: Partners = [{row} for row in range(len(keys))]
    for i in range(len(keys)):
        for j in range(len(keys)):
            for mine, yours in zip(keys[i], keys[j], strict=True):
                if mine == yours and mine >= 0:
                    found[i].add(j)
    return found


# Verbs: one arrow of one term.


def contrast(term: Any, index: int, live: Values, target: Values, partners: Partners) -> float:
    anchor, other = ends(term.arrows[index])
    width = meeting([anchor, other], live)
    logits = table(rows(anchor, width, live), rows(other, width, live), scale(term, False, live))
    if term.metric == "sigmoid":
        own = f"bias of {anchor[0]}"
        bias = float(live[own] if own in live else live[f"biases.{term.name}"])
        logits = [[logit + bias for logit in row] for row in logits]
    found: float = known(CONTRAST, term.metric, "metric of contrast")(logits, partners)
    return found


def relation(term: Any, index: int, live: Values, target: Values, partners: Partners) -> float:
    tables = []
    for arrow, values, is_like in ((term.arrows[index], live, False), (term.like[index], target, True)):
        anchor, other = ends(arrow)
        width = meeting([anchor, other], values)
        tables.append(table(rows(anchor, width, values), rows(other, width, values), scale(term, is_like, values)))
    found: float = known(RELATION, term.metric, "metric of relation")(*tables)
    return found


def feature(term: Any, index: int, live: Values, target: Values, partners: Partners) -> float:
    anchor, other = ends(term.arrows[index])
    width = meeting([anchor, other], live)
    pair = rows(anchor, width, live, term.adapter), rows(other, width, target, term.adapter)
    found: float = known(FEATURE, term.metric, "metric of feature")(*pair)
    return found


def gradient(term: Any, index: int, live: Values, target: Values, partners: Partners) -> float:
    """The gradients of the student's arrow live at the width where they meet the teacher's."""
    known({"mse": None}, term.metric, "metric of gradient")
    ours, theirs = ends(term.arrows[index]), ends(term.like[index])
    width, their_width = meeting([*ours, *theirs], live), meeting(theirs, target)
    multiply, multiply_like = scale(term, False, live), scale(term, True, target)
    if term.reference:
        multiply, multiply_like = 1 / multiply, 1 / multiply_like
    mine = infonce_gradients(rows(ours[0], width, live), rows(ours[1], width, live), multiply, partners)
    wanted = infonce_gradients(
        rows(theirs[0], their_width, target), rows(theirs[1], their_width, target), multiply_like, partners
    )
    return feature_mse(mine[0], wanted[0]) + feature_mse(mine[1], wanted[1])


def infonce_gradients(a: np.ndarray, b: np.ndarray, scale: float, partners: Partners) -> tuple[np.ndarray, np.ndarray]:
    """The derivative of the mean cross entropy in each row of ``a`` and of ``b``, row by row."""
    logits = table(a, b, scale)
    to_a, to_b = np.zeros_like(a), np.zeros_like(b)
    for i in range(len(a)):
        log_p = log_softmax(logits[i])
        for j in range(len(b)):
            share = 1 / len(partners[i]) if j in partners[i] else 0.0
            error = math.exp(log_p[j]) - share
            to_a[i] += scale * error * b[j] / len(a)
            to_b[j] += scale * error * a[i] / len(a)
    return to_a, to_b


# Metrics of contrast: logits and positives.


def infonce(logits: Table, partners: Partners) -> float:
    result = 0.0
    for i, row in enumerate(logits):
        log_p = log_softmax(row)
        for j in partners[i]:
            result -= log_p[j] / len(partners[i])
    return result / len(logits)


def yes_or_no(logits: Table, partners: Partners) -> float:
    result = 0.0
    for i, row in enumerate(logits):
        for j, logit in enumerate(row):
            result += math.log1p(math.exp(-logit if j in partners[i] else logit))
    return result / len(logits)


# Metrics of relation: logits and the logits of the target.


def relation_ce(logits: Table, target: Table) -> float:
    result = 0.0
    for row, wanted in zip(logits, target, strict=True):
        for log_p, log_q in zip(log_softmax(row), log_softmax(wanted), strict=True):
            result -= math.exp(log_q) * log_p
    return result / len(logits)


def relation_kl(logits: Table, target: Table) -> float:
    result = 0.0
    for row, wanted in zip(logits, target, strict=True):
        for log_p, log_q in zip(log_softmax(row), log_softmax(wanted), strict=True):
            result += math.exp(log_q) * (log_q - log_p)
    return result / len(logits)


def relation_mse(logits: Table, target: Table) -> float:
    squares = [(a - b) ** 2 for row, wanted in zip(logits, target, strict=True) for a, b in zip(row, wanted)]  # noqa: B905
    return sum(squares) / len(squares)


# Metrics of feature: rows and rows.


def feature_mse(a: np.ndarray, b: np.ndarray) -> float:
    return feature_l2(a, b) / a.shape[1]


def feature_l2(a: np.ndarray, b: np.ndarray) -> float:
    result = 0.0
    for i in range(len(a)):
        for k in range(a.shape[1]):
            result += float(a[i, k] - b[i, k]) ** 2
    return result / len(a)


def feature_cosine(a: np.ndarray, b: np.ndarray) -> float:
    cosines = [float(a[i] @ b[i]) / math.sqrt(float(a[i] @ a[i]) * float(b[i] @ b[i])) for i in range(len(a))]
    return 1 - sum(cosines) / len(cosines)


VERBS: dict[str, Callable[..., float]] = {
    "contrast": contrast,
    "relation": relation,
    "feature": feature,
    "gradient": gradient,
}
CONTRAST = {"softmax": infonce, "sigmoid": yes_or_no}
RELATION = {"ce": relation_ce, "kl": relation_kl, "mse": relation_mse}
FEATURE = {"mse": feature_mse, "l2": feature_l2, "cosine": feature_cosine}


# Rows and scales.


def ends(arrow: Any) -> list[str]:
    return str(arrow).split(">")


def meeting(nodes: list[str], values: Values) -> int:
    """The width at which nodes meet: a teacher's, for it cannot change; among students the first one's."""
    teachers = [node for node in nodes if node[0] != "S"]
    return int(values[(teachers or nodes)[0].split("+")[0]].shape[1])


def rows(node: str, width: int, values: Values, adapter: str = "linear") -> np.ndarray:
    """Unit rows of a node at a width: fused if it is fused, adapted if it is another width's."""
    found = [unit(row) for row in values[node]] if "+" not in node else fused(node, values)
    if len(found[0]) != width:
        adapt = known(ADAPTERS, adapter, "adapter")
        found = [unit(adapt(row, node, width, values)) for row in found]
    return np.array(found)


def mapped(row: np.ndarray, node: str, width: int, values: Values) -> np.ndarray:
    return values[f"adapters.{node if '+' in node else node[:2]}_to_{width}.weight"] @ row


def stretched(row: np.ndarray, node: str, width: int, values: Values) -> np.ndarray:
    """The row as a line through the middles of its channels, read at the middles of ``width`` channels."""
    result = []
    for channel in range(width):
        place = min(max((channel + 0.5) * len(row) / width - 0.5, 0.0), len(row) - 1.0)
        below = int(place)
        above = min(below + 1, len(row) - 1)
        result.append((below + 1 - place) * row[below] + (place - below) * row[above])
    return np.array(result)


ADAPTERS = {"linear": mapped, "interpolate": stretched}


def fused(node: str, values: Values) -> list[np.ndarray]:
    parts = [[unit(row) for row in values[part]] for part in node.split("+")]
    weight, bias = values[f"fusions.{node}.weight"], values[f"fusions.{node}.bias"]
    return [unit(weight @ np.concatenate(row) + bias) for row in zip(*parts, strict=True)]


def scale(term: Any, is_like: bool, values: Values) -> float:
    """A letter is that model's, a number itself; anything else is a parameter, kept as a logarithm unless raw."""
    asked = term.like_scale if is_like else term.scale
    if isinstance(asked, str):
        return float(values[f"scale of {asked}"])
    if isinstance(asked, float):
        return asked
    stored = float(values[f"scales.{term.name} like" if is_like else f"scales.{term.name}"])
    return stored if asked.raw else math.exp(stored)


def unit(row: np.ndarray) -> np.ndarray:
    return row / math.sqrt(float(row @ row))


def table(a: np.ndarray, b: np.ndarray, scale: float) -> Table:
    return [[scale * float(a[i] @ b[j]) for j in range(len(b))] for i in range(len(a))]


def log_softmax(row: list[float]) -> list[float]:
    log_sum = math.log(sum(math.exp(logit) for logit in row))
    return [logit - log_sum for logit in row]
