"""Recipes worked out a second time: plain loops over rows, sharing no line with the package.

Only the words of a recipe are taken from it; what they mean is written down here again. Whatever is not written down is
an error, so a new metric needs one small function in ``CONTRAST``, ``RELATION`` or ``FEATURE``, a new verb one in
``VERBS``, a new adapter one in ``ADAPTERS``, a new key of a term an entry in ``KEYS`` and its use below.

``Values`` holds all numbers by name: rows of a node ``"SI"`` of any length, ``[B, D]``; parameters as the graph's state
names them, ``"adapters.SI_to_5.weight"``; ``"scale of S"`` and ``"bias of S"`` as models bring them. Terms are computed
row by row: a function of a verb returns one number for each row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Values = Mapping[str, np.ndarray]
Table = list[list[float]]
#: For every row, the rows that are its positives: of the batch under "", of the bank, of the classes.
Partners = Mapping[str, list[set[int]]]

#: The keys of a term that are understood here.
KEYS = {
    "verb",
    "arrows",
    "like",
    "metric",
    "weight",
    "scale",
    "like_scale",
    "adapter",
    "mutual",
    "reference",
    "name",
} | {"confidence"}


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
    values = [compute(term, index, live, target, partners) for index in range(len(term.arrows))]
    sure = certain(term, still, partners) if term.confidence else [1.0] * len(values[0])
    whole = sum(weight * value for one in values for weight, value in zip(sure, one, strict=True))
    return whole / len(values) / len(sure)


def certain(term: Any, values: Values, partners: Partners) -> list[float]:
    """The probability that the confidence's arrow gives to a row's positives, over the mean of all rows'."""
    anchor, other = ends(term.confidence)
    width = meeting([anchor, other], values)
    multiply = float(values[f"scale of {anchor[0]}"])
    logits = table(rows(anchor, width, values), rows(other, width, values), multiply)
    found = [sum(math.exp(log_softmax(row)[j]) for j in partners[""][i]) for i, row in enumerate(logits)]
    return [value * len(found) / sum(found) for value in found]


def total(recipe: Any, values: Mapping[str, float], measured: list[float]) -> float:
    """The weighted sum; ``measured`` holds the weights that are found by gradient norm, in the order of their terms."""
    left = list(measured)
    result = 0.0
    for term in recipe.terms:
        weight = term.weight if isinstance(term.weight, float) else left.pop(0)
        result += weight * values[term.name]
    assert not left
    return result


def partners_of(keys: list[list[int]], bank: list[list[int]], labels: list[int]) -> Partners:
    """Rows that agree in some column are positives of each other, negative keys in none; each is its own."""
    agreeing = [
        {j for j, yours in enumerate(bank) if any(a == b >= 0 for a, b in zip(mine, yours, strict=True))}
        for mine in keys
    ]
    return {"": within(keys), "bank": agreeing, "classes": [{label} for label in labels]}


def within(keys: list[list[int]]) -> list[set[int]]:
    found: list[set[int]] = [{row} for row in range(len(keys))]
    for i in range(len(keys)):
        for j in range(len(keys)):
            for mine, yours in zip(keys[i], keys[j], strict=True):
                if mine == yours and mine >= 0:
                    found[i].add(j)
    return found


# Verbs: one arrow of one term.


def contrast(term: Any, index: int, live: Values, target: Values, partners: Partners) -> list[float]:
    arrow = term.arrows[index]
    as_given = term.reference and term.adapter == "teacher"
    logits = similarities(arrow, scale(term, None, live), live, term.adapter, as_given)
    if term.metric == "sigmoid":
        logits = biased(logits, arrow, term, live)
    found: list[float] = known(CONTRAST, term.metric, "metric of contrast")(logits, candidates(arrow, live, partners))
    return found


def relation(term: Any, index: int, live: Values, target: Values, partners: Partners) -> list[float]:
    arrow = term.arrows[index]
    logits = similarities(arrow, scale(term, None, live), live)
    likes = [target_arrows[index] for target_arrows in term.like]
    targets = [similarities(like, scale(term, number, target), target) for number, like in enumerate(likes)]
    if term.metric == "sigmoid":
        logits = biased(logits, arrow, term, live)
        targets = [biased(table, like, term, target) for table, like in zip(targets, likes, strict=True)]
    metric = term.metric + (" reference" if term.metric == "sigmoid" and term.reference else "")
    found: list[float] = known(RELATION, metric, "metric of relation")(logits, targets)
    return found


def similarities(arrow: Any, multiply: float, values: Values, adapter: str = "linear", as_given: bool = False) -> Table:
    """Scaled similarities of every row with every candidate, those of stacked nodes one after another."""
    anchor, other = ends(arrow)
    stacked = other.split("|")
    width = meeting([anchor, *stacked], values, adapter)
    below = np.concatenate([rows(node, width, values, adapter, as_given) for node in stacked])
    return table(rows(anchor, width, values, adapter), below, multiply)


def candidates(arrow: Any, values: Values, partners: Partners) -> list[set[int]]:
    """Each row's positives among the candidates, counted through the stacked nodes."""
    found: list[set[int]] = [set() for _ in partners[""]]
    start = 0
    for node in ends(arrow)[1].split("|"):
        view = node.partition("@")[2]
        for row, own in enumerate(partners[view if view in ("bank", "classes") else ""]):
            found[row] |= {start + place for place in own}
        start += len(values[node.split("+")[0]])
    return found


def biased(logits: Table, arrow: Any, term: Any, values: Values) -> Table:
    letter = ends(arrow)[0][0]
    learned = f"biases.{term.scale if isinstance(term.scale, str) else term.name}"
    bias = float(values[f"bias of {letter}" if f"bias of {letter}" in values else learned])
    return [[logit + bias for logit in row] for row in logits]


def feature(term: Any, index: int, live: Values, target: Values, partners: Partners) -> list[float]:
    anchor, other = ends(term.arrows[index])
    width = meeting([anchor, other], live)
    pair = rows(anchor, width, live, term.adapter), rows(other, width, target, term.adapter)
    found: list[float] = known(FEATURE, term.metric, "metric of feature")(*pair)
    return found


def classify(term: Any, index: int, live: Values, target: Values, partners: Partners) -> list[float]:
    known({"ce": None}, term.metric, "metric of classify")
    node = ends(term.arrows[index])[0]
    logits = [[scale(term, None, live) * float(logit) for logit in row] for row in live[node]]
    if term.reference:
        logits = [[math.exp(log_p) for log_p in log_softmax(row)] for row in logits]
    if not term.like:
        return infonce(logits, partners["classes"])
    wanted = target[ends(term.like[0][index])[0]]
    return relation_ce(logits, [[[scale(term, 0, target) * float(logit) for logit in row] for row in wanted]])


def gradient(term: Any, index: int, live: Values, target: Values, partners: Partners) -> list[float]:
    """The gradients of the student's arrow live at the width where they meet the teacher's."""
    known({"mse": None}, term.metric, "metric of gradient")
    (like,) = term.like
    ours, theirs = ends(term.arrows[index]), ends(like[index])
    width, their_width = meeting([*ours, *theirs], live), meeting(theirs, target)
    multiply, multiply_like = scale(term, None, live), scale(term, 0, target)
    if term.reference:
        multiply, multiply_like = 1 / multiply, 1 / multiply_like
    mine = infonce_gradients(rows(ours[0], width, live), rows(ours[1], width, live), multiply, partners[""])
    wanted = infonce_gradients(
        rows(theirs[0], their_width, target), rows(theirs[1], their_width, target), multiply_like, partners[""]
    )
    return [a + b for a, b in zip(feature_mse(mine[0], wanted[0]), feature_mse(mine[1], wanted[1]), strict=True)]


def infonce_gradients(
    a: np.ndarray, b: np.ndarray, scale: float, partners: list[set[int]]
) -> tuple[np.ndarray, np.ndarray]:
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


def infonce(logits: Table, partners: list[set[int]]) -> list[float]:
    return [-sum(log_softmax(row)[j] for j in own) / len(own) for row, own in zip(logits, partners, strict=True)]


def yes_or_no(logits: Table, partners: list[set[int]]) -> list[float]:
    return [
        sum(math.log1p(math.exp(-logit if j in own else logit)) for j, logit in enumerate(row))
        for row, own in zip(logits, partners, strict=True)
    ]


# Metrics of relation: logits and the logits of the targets.


def relation_ce(logits: Table, targets: list[Table]) -> list[float]:
    result = []
    for i, row in enumerate(logits):
        log_p = log_softmax(row)
        result.append(-sum(chance(targets, i, j, softmax) * log_p[j] for j in range(len(row))))
    return result


def relation_kl(logits: Table, targets: list[Table]) -> list[float]:
    result = []
    for i, row in enumerate(logits):
        chances = [chance(targets, i, j, softmax) for j in range(len(row))]
        result.append(sum(q * (math.log(q) - log_p) for q, log_p in zip(chances, log_softmax(row), strict=True)))
    return result


def relation_mse(logits: Table, targets: list[Table]) -> list[float]:
    result = []
    for i, row in enumerate(logits):
        wanted = [sum(target[i][j] for target in targets) / len(targets) for j in range(len(row))]
        result.append(sum((a - b) ** 2 for a, b in zip(row, wanted, strict=True)) / len(row))
    return result


def relation_sigmoid(logits: Table, targets: list[Table]) -> list[float]:
    result = []
    for i, row in enumerate(logits):
        value = 0.0
        for j, logit in enumerate(row):
            p = chance(targets, i, j, sigmoids)
            value += p * math.log1p(math.exp(-logit)) + (1 - p) * math.log1p(math.exp(logit))
        result.append(value)
    return result


def relation_sigmoid_reference(logits: Table, targets: list[Table]) -> list[float]:
    result = []
    for i, row in enumerate(logits):
        turned = [(2 * chance(targets, i, j, sigmoids) - 1) * logit for j, logit in enumerate(row)]
        result.append(sum(math.log1p(math.exp(-logit)) for logit in turned))
    return result


def chance(targets: list[Table], i: int, j: int, kind: Callable[[list[float]], list[float]]) -> float:
    """What the targets say of a pair, as a probability, on average."""
    return sum(kind(target[i])[j] for target in targets) / len(targets)


def softmax(row: list[float]) -> list[float]:
    return [math.exp(log_p) for log_p in log_softmax(row)]


def sigmoids(row: list[float]) -> list[float]:
    return [1 / (1 + math.exp(-logit)) for logit in row]


# Metrics of feature: rows and rows.


def feature_mse(a: np.ndarray, b: np.ndarray) -> list[float]:
    return [value / a.shape[1] for value in feature_l2(a, b)]


def feature_l2(a: np.ndarray, b: np.ndarray) -> list[float]:
    return [sum(float(a[i, k] - b[i, k]) ** 2 for k in range(a.shape[1])) for i in range(len(a))]


def feature_cosine(a: np.ndarray, b: np.ndarray) -> list[float]:
    return [1 - float(a[i] @ b[i]) / math.sqrt(float(a[i] @ a[i]) * float(b[i] @ b[i])) for i in range(len(a))]


VERBS: dict[str, Callable[..., list[float]]] = {
    "contrast": contrast,
    "relation": relation,
    "feature": feature,
    "gradient": gradient,
    "classify": classify,
}
CONTRAST = {"softmax": infonce, "sigmoid": yes_or_no}
RELATION = {
    "ce": relation_ce,
    "kl": relation_kl,
    "mse": relation_mse,
    "sigmoid": relation_sigmoid,
    "sigmoid reference": relation_sigmoid_reference,
}
FEATURE = {"mse": feature_mse, "l2": feature_l2, "cosine": feature_cosine}


# Rows and scales.


def ends(arrow: Any) -> list[str]:
    return str(arrow).split(">")


def meeting(nodes: list[str], values: Values, adapter: str = "linear") -> int:
    """The width at which nodes meet: a teacher's, for it cannot change, unless the teacher is to be mapped; among
    students the first one's."""
    fixed = [node for node in nodes if (node[0] == "S") == (adapter == "teacher")]
    return int(values[(fixed or nodes)[0].split("+")[0]].shape[1])


def rows(node: str, width: int, values: Values, adapter: str = "linear", as_given: bool = False) -> np.ndarray:
    """Unit rows of a node at a width: fused if it is fused, adapted if it is another width's."""
    found = [row if as_given else unit(row) for row in values[node]] if "+" not in node else fused(node, values)
    if len(found[0]) != width or (adapter == "teacher" and node[0] != "S"):
        adapt = known(ADAPTERS, adapter, "adapter")
        return np.array([unit(adapt(row, node, width, values)) for row in found])
    return np.array([unit(row) for row in found])


def mapped(row: np.ndarray, node: str, width: int, values: Values) -> np.ndarray:
    name = f"adapters.{node if '+' in node else node[:2]}_to_{width}"
    bias = values.get(f"{name}.bias", 0.0)
    return values[f"{name}.weight"] @ row + bias


def stretched(row: np.ndarray, node: str, width: int, values: Values) -> np.ndarray:
    """The row as a line through the middles of its channels, read at the middles of ``width`` channels."""
    result = []
    for channel in range(width):
        place = min(max((channel + 0.5) * len(row) / width - 0.5, 0.0), len(row) - 1.0)
        below = int(place)
        above = min(below + 1, len(row) - 1)
        result.append((below + 1 - place) * row[below] + (place - below) * row[above])
    return np.array(result)


ADAPTERS = {"linear": mapped, "interpolate": stretched, "teacher": mapped}


def fused(node: str, values: Values) -> list[np.ndarray]:
    parts = [[unit(row) for row in values[part]] for part in node.split("+")]
    weight, bias = values[f"fusions.{node}.weight"], values[f"fusions.{node}.bias"]
    return [unit(weight @ np.concatenate(row) + bias) for row in zip(*parts, strict=True)]


def scale(term: Any, target: int | None, values: Values) -> float:
    """A letter is that model's, a number itself; anything else is a parameter, kept as a logarithm unless raw."""
    asked = term.scale if target is None else term.like_scale[target]
    if isinstance(asked, str):
        return float(values[f"scale of {asked}"])
    if isinstance(asked, float):
        return asked
    name = f"scales.{term.name}" + ("" if target is None else f" like {target}" if target else " like")
    stored = float(values[name])
    return stored if asked.raw else math.exp(stored)


def unit(row: np.ndarray) -> np.ndarray:
    return row / math.sqrt(float(row @ row))


def table(a: np.ndarray, b: np.ndarray, scale: float) -> Table:
    return [[scale * float(a[i] @ b[j]) for j in range(len(b))] for i in range(len(a))]


def log_softmax(row: list[float]) -> list[float]:
    log_sum = math.log(sum(math.exp(logit) for logit in row))
    return [logit - log_sum for logit in row]
