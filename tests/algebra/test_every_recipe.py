"""Every recipe that ships, and every metric of every verb, against plain loops over rows: values, gradients, order."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import naive
import numpy as np
import pytest
import torch
from torch import Tensor

from clipdistill.algebra.graph import InteractionGraph, Losses
from clipdistill.algebra.recipe import Recipe, available
from clipdistill.algebra.term import ADAPTERS, COMPARING, VERBS, GradNorm

COUNT = 5
STEP = 1e-6
#: Two kinds of keys; the second row shares one with each of two rows that share none with each other.
KEYS = [[0, -1], [1, 2], [0, 3], [-1, 2], [1, -1]]
#: The bank's second row agrees with two rows of the batch, its others with none.
BANK_KEYS = [[7, -1], [0, 2], [-1, -1]]
LABELS, CLASSES = [2, 0, 1, 1, 2], 4
COUNTS = {"bank": len(BANK_KEYS), "classes": CLASSES}
#: Width by model letter, and whether there are group keys (and the student has a logit bias of its own).
SETTINGS = {
    "equal widths": ({"S": 4, "T": 4, "U": 4}, False),
    "equal widths, keys": ({"S": 4, "T": 4, "U": 4}, True),
    "narrow student": ({"S": 3, "T": 5, "U": 4}, False),
    "narrow student, keys": ({"S": 3, "T": 5, "U": 4}, True),
    "wide student, keys": ({"S": 6, "T": 5, "U": 4}, True),
}


def every_metric() -> Iterator[Recipe]:
    """What the shipped recipes leave out: targets of the student's own, raw scales, a learnt scale of the target."""
    for verb, metrics in VERBS.items():
        special: list[dict[str, Any]] = [{}]
        if verb in COMPARING:
            special = [{"like": "TI>TT, SI>ST", "like_scale": {"new": 9}}]
        if verb == "relation":
            special.append({"like": ["UI-UT", "TI-TT"], "like_scale": [{"new": 9}, {"raw": 3}], "confidence": "TI>TT"})
            special.append({verb: "SI>ST|TT@bank", "like": "TI>TT|TT@bank"})
            special.append({verb: "SI-ST", "like": ["UI-UT", "TI-TT"]})
        if verb == "feature":
            special = [{"adapter": adapter} for adapter in ADAPTERS if adapter != "teacher"]
            special.append({"confidence": "SI>ST"})
        if verb == "contrast":
            special += [{verb: "SI>TI|TI@bank, ST>SI|TT@bank"}, {verb: "SI>TI@classes", "adapter": "teacher"}]
            special.append({"confidence": "UI>UT"})
        if verb == "classify":
            special = [{verb: "SI"}, {verb: "SI", "like": "TI", "like_scale": {"new": 2}}]
        for metric, flag, more in itertools.product(metrics, (False, True), special):
            term = {verb: "SI>TT, ST>SI", "metric": metric, "weight": 3, "mutual": flag, "reference": flag, **more}
            name = " ".join([verb, metric, *map(str, more.values()), "mutual reference" if flag else ""])
            scale = {} if verb == "feature" else {"scale": {"raw": 2.66}}
            yield Recipe.load({"name": name.strip(), "terms": [{**term, **scale, "name": "one"}]})


RECIPES = {name: Recipe.load(name) for name in available()} | {recipe.name: recipe for recipe in every_metric()}
everything = pytest.mark.parametrize("name", RECIPES)
everywhere = pytest.mark.parametrize("setting", SETTINGS)


class Case:
    """A recipe on random numbers, once as the package computes it and once by plain loops."""

    def __init__(self, name: str, setting: str, order: list[int] | None = None) -> None:
        self.recipe = RECIPES[name]
        widths, has_keys = SETTINGS[setting]
        width_of = lambda node: CLASSES if node.view == "logits" else widths[node.model]  # noqa: E731
        torch.manual_seed(0)
        self.graph = InteractionGraph(self.recipe, widths).double()
        order = order or list(range(COUNT))
        drawn = {node: torch.randn(COUNTS.get(node.view, COUNT), width_of(node)).double() for node in self.recipe.nodes}
        rows = {str(node): matrix if node.is_bank else matrix[order] for node, matrix in drawn.items()}
        self.rows = {node: matrix.requires_grad_(node.startswith("S")) for node, matrix in rows.items()}
        self.scales = {"S": torch.tensor(7.0).double().requires_grad_(), "T": 20.0, "U": 11.0}
        self.biases: dict[str, Tensor | float] = {"T": -2.0, "U": -4.0}
        if has_keys:
            self.biases["S"] = torch.tensor(-3.0).double().requires_grad_()
        keys = [KEYS[row] for row in order] if has_keys else [[-1, -1]] * COUNT
        self.keys = torch.tensor(keys) if has_keys else None
        self.labels = torch.tensor(LABELS)[order]
        self.partners = naive.partners_of(keys, BANK_KEYS, self.labels.tolist())

    def losses(self) -> Losses:
        more = {"labels": self.labels, "bank_keys": torch.tensor(BANK_KEYS)}
        return self.graph(self.rows, self.scales, self.keys, self.biases, **more)

    @property
    def measured(self) -> list[float]:
        """The weights found by gradient norm, which exist after the first call."""
        weights: list[float] = self.graph.measured.tolist()
        return weights

    @property
    def tensors(self) -> dict[str, Tensor | float]:
        """Every number that the losses depend on, by the names the loops use."""
        given = {f"scale of {letter}": value for letter, value in self.scales.items()}
        given |= {f"bias of {letter}": value for letter, value in self.biases.items()}
        return {**self.rows, **dict(self.graph.named_parameters()), **given}

    @property
    def values(self) -> dict[str, np.ndarray]:
        return {name: torch.as_tensor(value).detach().double().numpy() for name, value in self.tensors.items()}

    def total(self, live: naive.Values, still: naive.Values) -> float:
        return naive.total(self.recipe, naive.terms(self.recipe, live, self.partners, still), self.measured)


@everything
@everywhere
def test_every_term_is_what_plain_loops_compute(name: str, setting: str) -> None:
    case = Case(name, setting)
    losses = case.losses()
    expected = naive.terms(case.recipe, case.values, case.partners)
    found = {term: float(value.detach()) for term, value in losses.terms.items()}
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(losses.total.detach()) == pytest.approx(naive.total(case.recipe, expected, case.measured), rel=1e-9)


@everything
@everywhere
def test_gradients_are_the_slopes_of_the_loops(name: str, setting: str) -> None:
    """Central differences along one random direction for each matrix of student rows and each parameter."""
    case = Case(name, setting)
    case.losses().total.backward()
    still = case.values
    draw = np.random.default_rng(1)
    compared = 0
    for leaf, tensor in case.tensors.items():
        if isinstance(tensor, Tensor) and tensor.requires_grad:
            direction = draw.standard_normal(tensor.shape)
            ahead, behind = (
                case.total({**still, leaf: still[leaf] + step * direction}, still) for step in (STEP, -STEP)
            )
            found = 0.0 if tensor.grad is None else float((tensor.grad.numpy() * direction).sum())
            assert found == pytest.approx((ahead - behind) / (2 * STEP), rel=1e-5, abs=1e-7), leaf
            compared += found != 0
    assert compared >= 1


@everything
@everywhere
def test_the_order_of_the_rows_does_not_matter(name: str, setting: str) -> None:
    """Rows and keys in another order; weights by gradient norm are found again."""
    plain, mixed = Case(name, setting), Case(name, setting, [3, 0, 4, 2, 1])
    assert not all(torch.equal(plain.rows[node], mixed.rows[node]) for node in plain.rows)
    before, after = plain.losses(), mixed.losses()
    for term, value in before.terms.items():
        torch.testing.assert_close(after.terms[term], value, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(after.total, before.total, rtol=1e-11, atol=1e-13)


@everything
def test_the_total_is_the_weighted_sum(name: str) -> None:
    case = Case(name, "narrow student, keys")
    losses = case.losses()
    written = [float("nan") if isinstance(term.weight, GradNorm) else term.weight for term in case.recipe.terms]
    found = iter(case.measured)
    weights = [next(found) if np.isnan(weight) else weight for weight in written]
    assert all(weight > 0 for weight in weights)
    values = [float(losses.terms[term.name].detach()) for term in case.recipe.terms]
    assert float(losses.total.detach()) == pytest.approx(np.dot(weights, values), rel=1e-12)


def test_a_weight_by_gradient_norm_is_the_share_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of gradients with respect to unit rows as free variables: every entry's slope, nothing normalised again."""
    case = Case("clip-kd-gd", "equal widths")
    case.losses()
    units = case.values
    for node in case.rows:
        units[node] = np.array([naive.unit(row) for row in units[node]])
    monkeypatch.setattr(naive, "unit", lambda row: row)
    slopes: dict[str, list[float]] = {"task": [], "gd": []}
    for node in ("SI", "ST"):
        for entry in np.ndindex(units[node].shape):
            nudge = np.zeros_like(units[node])
            nudge[entry] = STEP
            ahead, behind = (
                naive.terms(case.recipe, {**units, node: units[node] + side * nudge}, case.partners, units)
                for side in (1, -1)
            )
            for term, found in slopes.items():
                found.append((ahead[term] - behind[term]) / (2 * STEP))
    share = case.measured[0] * np.linalg.norm(slopes["gd"]) / np.linalg.norm(slopes["task"])
    assert share == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize(("field", "word"), [("verb", "repel"), ("metric", "js")])
def test_the_loops_refuse_what_they_do_not_know(field: str, word: str) -> None:
    case = Case("clip-kd", "equal widths")
    strange = tuple(dataclasses.replace(term, **{field: word}) for term in case.recipe.terms)
    with pytest.raises(LookupError, match=f"'{word}'"):
        naive.terms(dataclasses.replace(case.recipe, terms=strange), case.values, case.partners)
