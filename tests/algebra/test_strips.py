"""Loss memory linear in the batch: strip by strip, every recipe has the same values and gradients."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from test_every_recipe import Case, everything, everywhere
from torch import Tensor

from clipdistill.algebra import strips
from clipdistill.algebra.call import Call
from clipdistill.algebra.graph import InteractionGraph
from clipdistill.algebra.nodes import Arrow
from clipdistill.algebra.recipe import Recipe
from clipdistill.algebra.term import Term


def by_strips(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    monkeypatch.setattr(strips, "WHOLE", 0)
    monkeypatch.setattr(strips, "STRIP", numbers)
    monkeypatch.setattr(strips, "LOWEST", 1)


def outcome(name: str, setting: str) -> dict[str, Tensor]:
    case = Case(name, setting)
    losses = case.losses()
    losses.total.backward()
    found = {"total": losses.total.detach(), "measured": case.graph.measured, **losses.terms}
    leaves = {name: leaf for name, leaf in case.tensors.items() if isinstance(leaf, Tensor) and leaf.requires_grad}
    found |= {f"gradient of {name}": torch.zeros_like(t) if t.grad is None else t.grad for name, t in leaves.items()}
    return {key: value.detach() for key, value in found.items()}


@everything
@everywhere
def test_strips_change_nothing(name: str, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outcome(name, setting)
    by_strips(monkeypatch, 11)  # two rows of five candidates, and the last one alone
    found = outcome(name, setting)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-10, atol=1e-13, equal_nan=False, msg=f"{name}, {key}")


@everywhere
@pytest.mark.parametrize("times", [1.0, -3.0])
def test_a_gradient_of_another_sum_is_exact_too(setting: str, times: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the total is taken with its value; that of one term, or of a mixture, is asked for later."""

    def asked() -> list[Tensor]:
        case = Case("clip-kd", setting)
        losses = case.losses()
        leaves = [leaf for leaf in case.tensors.values() if isinstance(leaf, Tensor) and leaf.requires_grad]
        value = times * losses.total + losses.terms["crd"].square()
        return [grad for grad in torch.autograd.grad(value, leaves, allow_unused=True) if grad is not None]

    expected = asked()
    by_strips(monkeypatch, 11)
    found = asked()
    assert len(found) == len(expected) > 2
    for ours, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("terms", "matrices"),
    [
        ("clip", {"SI>ST"}),
        ("clip-kd", {"SI>ST", "TI>TT", "SI>TT", "ST>TI"}),
        ([{"relation": "ST-SI", "like": "TT-TI"}], {"ST>SI", "TT>TI"}),
        ([{"contrast": "SI-ST", "confidence": "TI>TT"}], {"SI>ST", "ST>SI", "TI>TT"}),
        ([{"relation": "SI-ST", "like": "TI-TT", "mutual": True}], {"SI>ST", "ST>SI", "TI>TT", "TT>TI"}),
    ],
)
def test_an_arrow_and_its_reverse_share_their_strips(
    terms: str | list[dict[str, Any]], matrices: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_strips(monkeypatch, 11)
    computed, similarities = set[str](), Call._similarities

    def noted(call: Call, term: Term, arrow: Arrow, scale: float) -> Tensor:
        computed.add(str(arrow))
        return similarities(call, term, arrow, scale)

    monkeypatch.setattr(Call, "_similarities", noted)
    graph = InteractionGraph(Recipe.load(terms), {"S": 4, "T": 4})
    rows = {node: torch.randn(5, 4, requires_grad=node[0] == "S") for node in ("SI", "ST", "TI", "TT")}
    graph(rows, {"S": 7.0, "T": 20.0}).total.backward()
    assert computed == matrices


def test_without_gradients_nothing_is_kept_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Case("clip-kd", "equal widths").losses().total
    by_strips(monkeypatch, 11)
    with torch.no_grad():
        found = Case("clip-kd", "equal widths").losses().total
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("rows", "candidates", "lowest", "heights"),
    [(5, 5, 1, [5]), (5, 6, 1, [2, 2, 1]), (3, 20, 1, [1, 1, 1]), (5, 20, 3, [3, 2])],
)
def test_rows_are_cut_where_the_whole_is_large(
    rows: int, candidates: int, lowest: int, heights: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "WHOLE", 25)
    monkeypatch.setattr(strips, "STRIP", 14)
    monkeypatch.setattr(strips, "LOWEST", lowest)
    parts = strips.cut(rows, candidates)
    assert [len(range(rows)[part]) for part in parts] == heights
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))


PEAK = """
import resource, sys, torch
from clipdistill.algebra.graph import InteractionGraph
torch.set_num_threads(1)
rows = int(sys.argv[1])
graph = InteractionGraph("clip-kd", {"S": 8, "T": 8})
given = {node: torch.randn(rows, 8, requires_grad=node[0] == "S") for node in ("SI", "ST", "TI", "TT")}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
graph(given, {"S": 14.0, "T": 100.0}).total.backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_no_matrix_of_the_whole_batch_is_stored() -> None:
    """In a process of its own: a step adds less to the peak than two such matrices; stored whole there would be 20."""
    rows = 8192
    added = int(subprocess.check_output([sys.executable, "-c", PEAK, str(rows)])) * 1024
    assert added < 2 * rows * rows * 4
