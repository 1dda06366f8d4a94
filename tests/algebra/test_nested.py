"""Matryoshka: nested widths are so many graphs on the first channels, each with parameters of its own."""

from __future__ import annotations

import pytest
import torch

from clipdistill.algebra.graph import InteractionGraph
from clipdistill.algebra.nested import NestedGraph
from clipdistill.algebra.recipe import Recipe
from clipdistill.errors import RecipeError

WIDTHS = {"S": 8, "T": 8}


def given() -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    torch.manual_seed(0)
    rows = {node: torch.randn(6, 8).requires_grad_(node[0] == "S") for node in ("SI", "ST", "TI", "TT")}
    return rows, {"S": 10.0, "T": 30.0}


def test_the_total_is_the_mean_of_the_recipe_at_every_width() -> None:
    rows, scales = given()
    recipe = Recipe.load("clip-kd")
    nested = NestedGraph(recipe, WIDTHS, [4, 2])
    found = nested(rows, scales)
    totals = []
    for width, inner in zip((8, 4, 2), nested.graphs, strict=True):
        alone = InteractionGraph(recipe, {"S": width, "T": 8})
        alone.load_state_dict(inner.state_dict())
        cut = {node: matrix[:, :width] if node[0] == "S" else matrix for node, matrix in rows.items()}
        losses = alone(cut, scales)
        totals.append(losses.total)
        for name, value in losses.terms.items():
            assert torch.equal(found.terms[name if width == 8 else f"{name}@{width}"], value)
    torch.testing.assert_close(found.total, torch.stack(totals).mean())
    assert len(found.terms) == 15


def test_narrow_rows_learn_and_teachers_are_met_at_their_own_width() -> None:
    rows, scales = given()
    nested = NestedGraph(Recipe.load("feature"), WIDTHS, [2])
    assert {name for name, _ in nested.named_parameters()} == {
        "graphs.1.adapters.SI_to_8.weight",
        "graphs.1.adapters.ST_to_8.weight",
    }
    nested(rows, scales).total.backward()
    gradient = rows["SI"].grad
    assert gradient is not None
    assert gradient[:, :2].abs().sum() > 0
    assert gradient[:, 2:].abs().sum() > 0


def test_logits_are_not_cut() -> None:
    rows, scales = given()
    rows = {"SI": rows["SI"], "SI@logits": torch.randn(6, 5)}
    recipe = Recipe.load([{"classify": "SI"}])
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    whole = InteractionGraph(recipe, {"S": 8})(rows, scales, labels=labels).total
    torch.testing.assert_close(NestedGraph(recipe, {"S": 8}, [2])(rows, scales, labels=labels).total, whole)


@pytest.mark.parametrize("nested", [[8], [4, 4], [0]])
def test_widths_that_are_not_nested_are_refused(nested: list[int]) -> None:
    with pytest.raises(RecipeError, match="below the student's, 8"):
        NestedGraph(Recipe.load("clip"), {"S": 8}, nested)
