"""bench loss on small batches: real processes, and the three forms are one loss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from clipdistill.algebra.graph import InteractionGraph
from clipdistill.algebra.recipe import Recipe
from clipdistill.bench import loss, loss_forms
from clipdistill.bench.process import ask
from clipdistill.bench.result import Result
from clipdistill.errors import TrainingError

SCOPE = loss.Scope(batches=(64, 128), width=8, recipes=("clip-kd",))


def here(module: str, **words: Any) -> dict[str, Any]:
    """Answer in this process, which has started already."""
    return loss_forms.measure(**words) if "form" in words else loss_forms.agreement(**words)


@pytest.fixture(scope="module")
def found() -> Iterator[Result]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "ask", here)
        yield loss.run(replace(SCOPE, batches=(64,)))


def test_a_case_is_measured_in_a_process_of_its_own() -> None:
    found = ask("clipdistill.bench.loss_forms", recipe="clip", form="reference", batch=1024, width=8)
    assert set(found) == {"seconds", "bytes", "device"}
    if found["device"] == "cpu":
        assert found["bytes"] > 2 * 1024 * 1024 * 4  # the logits and their gradient at the least


def test_every_form_is_measured_beside_ours(found: Result) -> None:
    measured = json.loads(json.dumps(found.measured, allow_nan=False))
    assert [case["form"] for case in measured["cases"]] == ["strips", "whole", "reference"]
    assert all(case["found"]["seconds"] > 0 for case in measured["cases"])
    assert measured["cases"][0]["ratios"]["time"] == 1
    assert set(found.ratios) == {"clip_kd_loss_time", "clip_kd_loss_memory"}
    assert found.ratios["clip_kd_loss_time"] == found.measured["cases"][2]["ratios"]["time"]
    assert "clip-kd reference" in found.text


@pytest.mark.parametrize("recipe", ["clip", "clip-kd"])
def test_the_forms_are_one_loss(recipe: str) -> None:
    assert max(loss_forms.agreement(recipe, 48, 8).values()) < 1e-12


def test_the_published_way_is_the_recipe_with_its_terms_summed() -> None:
    leaves = loss_forms.make_leaves("clip-kd", 12, 8, torch.float64, torch.device("cpu"))
    graph = InteractionGraph(Recipe.load("clip-kd"), {"S": 8, "T": 8})
    rows = {name: leaf for name, leaf in leaves.items() if leaf.ndim == 2}
    expected = graph(rows, {"S": leaves["scale"].exp(), "T": 100.0}).total
    value = loss_forms.make_loss("clip-kd", "reference", 8)(leaves)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_forms_that_differ_are_not_compared_in_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "ask", lambda module, **words: {"whole": 1e-15, "reference": 1e-3})
    with pytest.raises(TrainingError, match=r"in form reference differ by 1\.0e-03 at 64 rows"):
        loss.run(SCOPE)


@pytest.mark.parametrize(
    ("seconds", "size", "left_out"),
    [
        (200.0, 10.0, {"strips": "time", "whole": "time", "reference": "time"}),
        (1.0, 3e9, {"strips": "", "whole": "memory", "reference": "memory"}),
        (1.0, 10.0, {"strips": "", "whole": "", "reference": ""}),
    ],
)
def test_what_would_not_fit_is_left_out(
    seconds: float, size: float, left_out: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the rows take four times the time, and four times the memory but in strips."""

    def answer(module: str, **words: object) -> dict[str, object]:
        return {"seconds": seconds, "bytes": size, "device": "cpu"} if "form" in words else {"whole": 0.0}

    monkeypatch.setattr(loss, "ask", answer)
    monkeypatch.setattr(loss, "_available", lambda: 1e10)
    result = loss.run(SCOPE)
    larger = {case["form"]: case["left_out"] for case in result.measured["cases"] if case["batch"] == 128}
    assert larger == left_out
    assert result.text.count("left out") == sum(map(bool, left_out.values()))
