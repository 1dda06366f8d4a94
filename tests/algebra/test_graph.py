"""The graph against naive numpy, one double loop at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipdistill.algebra.graph import InteractionGraph
from clipdistill.algebra.objectives import stretch
from clipdistill.algebra.recipe import Recipe, available
from clipdistill.errors import RecipeError

SCALES = {"S": 14.3, "T": 100.0}


def rows(seed: int, count: int = 6, width: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        node: torch.randn(count, width, generator=generator, dtype=torch.float64) for node in ("SI", "ST", "TI", "TT")
    }


def unit(matrix: torch.Tensor) -> np.ndarray:
    array = matrix.detach().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def compute(terms: Any, embeddings: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    widths = {"S": embeddings["SI"].shape[1], "T": embeddings["TI"].shape[1]}
    return InteractionGraph(Recipe.load(terms), widths).double()(embeddings, SCALES, **options).total


def naive_contrast(a: np.ndarray, b: np.ndarray, scale: float, positives: list[set[int]]) -> float:
    total = 0.0
    for i in range(len(a)):
        logits = [scale * float(a[i] @ b[j]) for j in range(len(b))]
        log_z = np.log(np.sum(np.exp(logits)))
        total -= np.mean([logits[j] - log_z for j in positives[i]])
    return total / len(a)


def same_groups(keys: list[list[int]]) -> list[set[int]]:
    count = len(keys)
    agree = lambda i, j: i == j or any(a == b and a >= 0 for a, b in zip(keys[i], keys[j], strict=True))  # noqa: E731
    return [{j for j in range(count) if agree(i, j)} for i in range(count)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(-1, 2), st.integers(-1, 2)), min_size=2, max_size=7))
def test_groups_are_extra_positives(seed: int, keys: list[tuple[int, int]]) -> None:
    embeddings = rows(seed, len(keys))
    groups = [list(key) for key in keys]
    found = compute([{"contrast": "SI>ST"}], embeddings, positives=torch.tensor(groups))
    expected = naive_contrast(unit(embeddings["SI"]), unit(embeddings["ST"]), 14.3, same_groups(groups))
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_one_column_of_groups_may_be_flat() -> None:
    embeddings, groups = rows(0), torch.tensor([0, 1, 0, 2, -1, -1])
    flat = compute([{"contrast": "SI-ST"}], embeddings, positives=groups)
    assert flat == compute([{"contrast": "SI-ST"}], embeddings, positives=groups[:, None])
    assert flat != compute([{"contrast": "SI-ST"}], embeddings)


@pytest.mark.parametrize("bias", [None, -3.0])
def test_sigmoid_is_a_sum_of_yes_or_no_questions(bias: float | None) -> None:
    embeddings, keys = rows(1), [[0], [1], [0], [2], [3], [4]]
    found = compute(
        [{"contrast": "SI>ST", "metric": "sigmoid"}],
        embeddings,
        positives=torch.tensor(keys),
        biases=None if bias is None else {"S": torch.tensor(bias)},
    )
    a, b, positives = unit(embeddings["SI"]), unit(embeddings["ST"]), same_groups(keys)
    expected = 0.0
    for i in range(6):
        for j in range(6):
            z = 14.3 * float(a[i] @ b[j]) + (-10.0 if bias is None else bias)
            expected += np.log1p(np.exp(-z if j in positives[i] else z)) / 6
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)


def test_a_term_is_the_mean_over_its_arrows_and_the_total_their_weighted_sum() -> None:
    embeddings = rows(2)
    one_way = compute([{"contrast": "SI>ST"}], embeddings)
    other_way = compute([{"contrast": "ST>SI"}], embeddings)
    both = InteractionGraph(
        Recipe.load(
            [
                {"contrast": "SI-ST", "weight": 3, "name": "a"},
                {"feature": "SI>TI", "weight": 0.5, "name": "b"},
            ]
        ),
        {"S": 8, "T": 8},
    )(embeddings, SCALES)
    assert float(both.terms["a"]) == pytest.approx(float(one_way + other_way) / 2)
    assert float(both.total) == pytest.approx(float(3 * both.terms["a"] + 0.5 * both.terms["b"]))


def test_feature_metrics() -> None:
    embeddings = rows(3)
    a, b = unit(embeddings["SI"]), unit(embeddings["TI"])
    squared = ((a - b) ** 2).sum(1).mean()
    values = {
        metric: float(compute([{"feature": "SI>TI", "metric": metric}], embeddings))
        for metric in ("mse", "l2", "cosine")
    }
    assert values == pytest.approx({"mse": squared / 8, "l2": squared, "cosine": squared / 2})


def test_adapters_exist_exactly_where_widths_differ() -> None:
    recipe = Recipe.load("clip-kd")
    assert not InteractionGraph(recipe, {"S": 64, "T": 64}).adapters
    graph = InteractionGraph(recipe, {"S": 32, "T": 64})
    assert {name: tuple(layer.weight.shape) for name, layer in graph.adapters.items()} == {
        "SI_to_64": (64, 32),
        "ST_to_64": (64, 32),
    }
    assert not InteractionGraph(Recipe.load("affinity"), {"S": 32, "T": 64}).adapters
    assert set(InteractionGraph(Recipe.load("chinese-clip-kd"), {"S": 32, "T": 64}).adapters) == {"SI_to_64"}


def test_an_adapted_row_is_the_linear_map_of_the_row() -> None:
    embeddings = rows(4) | {"TI": torch.randn(6, 12, dtype=torch.float64)}
    graph = InteractionGraph(Recipe.load([{"feature": "SI>TI", "metric": "l2"}]), {"S": 8, "T": 12}).double()
    mapped = embeddings["SI"] @ graph.adapters["SI_to_12"].weight.T
    expected = ((unit(mapped) - unit(embeddings["TI"])) ** 2).sum(1).mean()
    assert float(graph(embeddings, SCALES).total.detach()) == pytest.approx(expected)


@pytest.mark.parametrize("width", [5, 8, 12, 17])
def test_interpolation_stretches_rows_as_a_picture_of_the_same_height(width: int) -> None:
    embeddings = rows(5) | {"TI": torch.randn(6, width, dtype=torch.float64)}
    student = torch.tensor(unit(embeddings["SI"]))
    terms = [{"feature": "SI>TI", "metric": "cosine", "adapter": "interpolate"}]
    graph = InteractionGraph(Recipe.load(terms), {"S": 8, "T": width}).double()
    assert not graph.adapters
    resized = torch.nn.functional.interpolate(student[None, None], size=(6, width), mode="bilinear")[0, 0]
    expected = 1 - torch.nn.functional.cosine_similarity(embeddings["TI"], resized).mean()
    assert float(graph(embeddings, SCALES).total) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("width", [3, 7, 20])
def test_a_stretched_row_is_a_blend_of_neighbouring_channels(width: int) -> None:
    matrix = rows(6)["SI"]
    found = stretch(matrix, width)
    for j in range(width):
        place = min(max((j + 0.5) * 8 / width - 0.5, 0), 7)
        low, high = int(place), min(int(place) + 1, 7)
        blend = matrix[:, low] * (1 - (place - low)) + matrix[:, high] * (place - low)
        torch.testing.assert_close(found[:, j], blend)
    assert torch.equal(stretch(matrix, 8), matrix)


def test_interpolation_and_a_learned_adapter_live_side_by_side() -> None:
    terms = [{"feature": "SI>TI", "adapter": "interpolate", "name": "a"}, {"feature": "SI>TI", "name": "b"}]
    graph = InteractionGraph(Recipe.load(terms), {"S": 8, "T": 12}).double()
    losses = graph(rows(7) | {"TI": torch.randn(6, 12, dtype=torch.float64)}, SCALES)
    assert set(graph.adapters) == {"SI_to_12"}
    assert losses.terms["a"] != losses.terms["b"]


def test_targets_are_detached_unless_mutual() -> None:
    def gradient(mutual: bool) -> torch.Tensor:
        embeddings = {node: matrix.requires_grad_() for node, matrix in rows(5).items()}
        compute([{"feature": "SI>ST", "mutual": mutual}], embeddings).backward()
        found = embeddings["ST"].grad
        return torch.zeros(1) if found is None else found

    assert gradient(False).abs().sum() == 0
    assert gradient(True).abs().sum() > 0


def test_teacher_rows_get_no_gradient_through_a_relation() -> None:
    embeddings = {node: matrix.requires_grad_() for node, matrix in rows(6).items()}
    compute([{"relation": "SI-ST", "like": "TI-TT"}], embeddings).backward()
    assert embeddings["TI"].grad is None
    assert embeddings["SI"].grad is not None


def test_new_scales_learn_and_stay_below_a_hundred() -> None:
    graph = InteractionGraph(
        Recipe.load([{"contrast": "SI>TT", "scale": {"new": 14.3}, "name": "icl"}]), {"S": 8, "T": 8}
    )
    graph(rows(7), SCALES).total.backward()
    assert graph.scales["icl"].grad is not None
    graph.scales["icl"].data.fill_(9.0)
    graph.clamp_()
    assert float(graph.scales["icl"].detach().exp()) == pytest.approx(100.0)


@pytest.mark.parametrize("name", sorted(available()))
def test_every_recipe_gives_finite_gradients_at_unequal_widths_in_half_precision(name: str) -> None:
    recipe = Recipe.load(name)
    embeddings = {
        str(node): torch.randn(5, 5 if node.view == "logits" else 8 if node.is_student else 12, dtype=torch.bfloat16)
        for node in recipe.nodes
    }
    for node, matrix in embeddings.items():
        matrix.requires_grad_(node.startswith("S"))
    biases = {"T": -10.0} if name == "siglip-kd" else {}
    labels = torch.tensor([0, 1, 2, 3, 4])
    graph = InteractionGraph(recipe, {"S": 8, "T": 12, "U": 12})
    losses = graph(embeddings, {**SCALES, "U": 50.0}, biases=biases, labels=labels)
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    for node, matrix in embeddings.items():  # rows of which a head makes the logits that the recipe reads
        if matrix.grad is None and f"{node}@logits" in embeddings:
            matrix.grad = torch.zeros_like(matrix)
    assert all(torch.isfinite(m.grad).all() for n, m in embeddings.items() if n.startswith("S"))  # type: ignore[union-attr]


def test_a_missing_node_names_the_term_that_needs_it() -> None:
    with pytest.raises(RecipeError, match=r"term crd \(relation SI-ST like TI-TT\) needs node TI, but no model 'T'"):
        InteractionGraph(Recipe.load("clip-kd"), {"S": 64})
    graph = InteractionGraph(Recipe.load("clip-kd"), {"S": 8, "T": 8})
    embeddings = rows(8)
    del embeddings["TT"]
    with pytest.raises(RecipeError, match=r"needs node TT, but only SI, ST, TI is given"):
        graph(embeddings, SCALES)


def test_bad_shapes_and_missing_scales_are_named() -> None:
    graph = InteractionGraph(Recipe.load("clip"), {"S": 8})
    with pytest.raises(RecipeError, match=r"node SI: expected shape \[B, 8\], found \[6, 4\]"):
        graph({"SI": torch.ones(6, 4), "ST": torch.ones(6, 8)}, SCALES)
    with pytest.raises(RecipeError, match="node ST has 5 rows, another node has 6"):
        graph({"SI": torch.ones(6, 8), "ST": torch.ones(5, 8)}, SCALES)
    with pytest.raises(RecipeError, match="logit scale of model 'S'"):
        graph({"SI": torch.ones(6, 8), "ST": torch.ones(6, 8)}, {"T": 1.0})
    with pytest.raises(RecipeError, match="unknown node 'SQ'"):
        graph({"SI": torch.ones(6, 8), "SQ": torch.ones(6, 8)}, SCALES)
    with pytest.raises(RecipeError, match="positives has 3 rows"):
        graph(
            {"SI": torch.ones(6, 8), "ST": torch.ones(6, 8)},
            SCALES,
            positives=torch.zeros(3, dtype=torch.long),
        )


def test_two_teachers_of_different_width_cannot_be_paired() -> None:
    with pytest.raises(RecipeError, match="only a student node can be adapted"):
        InteractionGraph(Recipe.load([{"relation": "SI>ST", "like": "TI>UT"}]), {"S": 8, "T": 8, "U": 12})
    with pytest.raises(RecipeError, match="confidence SI>TT compares rows 8 and 12 wide"):
        InteractionGraph(Recipe.load([{"contrast": "SI-ST", "confidence": "SI>TT"}]), {"S": 8, "T": 12})


def test_closed_form_gradients_are_those_of_autograd() -> None:
    from clipdistill.algebra.objectives import contrast_gradients, infonce, shared

    generator = torch.Generator().manual_seed(9)
    a, b = (torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    positives = torch.eye(5, dtype=torch.bool)
    positives[0, 1] = positives[1, 0] = True
    infonce((7.0 * a @ b.T).log_softmax(dim=1), shared(positives, a)).mean().backward()
    found = contrast_gradients(a.detach(), b.detach(), 7.0, positives)
    assert a.grad is not None
    assert b.grad is not None
    assert torch.allclose(found[0], a.grad)
    assert torch.allclose(found[1], b.grad)


def test_gradients_of_unequal_widths_meet_at_the_teachers() -> None:
    graph = InteractionGraph(Recipe.load([{"gradient": "SI-ST", "like": "TI-TT"}]), {"S": 8, "T": 12}).double()
    assert set(graph.adapters) == {"SI_to_12", "ST_to_12"}
    wide = {node: torch.randn(6, 12, dtype=torch.float64) for node in ("TI", "TT")}
    graph(rows(10) | wide, SCALES).total.backward()
    assert all(layer.weight.grad is not None for layer in graph.adapters.values())


def test_a_fused_node_is_a_linear_map_of_both_rows() -> None:
    embeddings = rows(11) | {
        "TI": torch.randn(6, 12, dtype=torch.float64),
        "TT": torch.randn(6, 12, dtype=torch.float64),
    }
    graph = InteractionGraph(Recipe.load([{"contrast": "SI+TI>ST+TT", "scale": 5}]), {"S": 8, "T": 12}).double()
    assert not graph.adapters
    fused = []
    for key in ("SI+TI", "ST+TT"):
        layer = graph.fusions[key]
        student, teacher = key.split("+")
        joined = np.concatenate([unit(embeddings[student]), unit(embeddings[teacher])], axis=1)
        fused.append(unit(torch.from_numpy(joined @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())))
    expected = naive_contrast(fused[0], fused[1], 5.0, [{i} for i in range(6)])
    assert float(graph(embeddings, SCALES).total.detach()) == pytest.approx(expected)


def test_a_measured_weight_makes_the_gradient_a_share_of_the_others_and_then_stays() -> None:
    terms = [
        {"contrast": "SI-ST", "weight": 2, "name": "task"},
        {"gradient": "SI-ST", "like": "TI-TT", "weight": {"grad_norm": 0.1}, "name": "gd"},
    ]
    graph = InteractionGraph(Recipe.load(terms), {"S": 8, "T": 8}).double()
    embeddings = {node: matrix.requires_grad_(node[0] == "S") for node, matrix in rows(12).items()}
    losses = graph(embeddings, SCALES)
    weight = float(graph.measured[0])
    assert float(losses.total.detach()) == pytest.approx(
        2 * float(losses.terms["task"].detach()) + weight * float(losses.terms["gd"].detach())
    )
    # With unit rows as inputs the normalisation is the identity in the tangent, so norms compare directly.
    leaves = {node: torch.from_numpy(unit(matrix)).requires_grad_() for node, matrix in embeddings.items()}
    again = graph(leaves, SCALES)
    norms = {}
    for name in ("task", "gd"):
        gradients = torch.autograd.grad(again.terms[name], [leaves["SI"], leaves["ST"]], retain_graph=True)
        norms[name] = float(torch.cat([g.flatten() for g in gradients]).norm())
    assert 0.02 < weight * norms["gd"] / (2 * norms["task"]) < 0.5
    assert float(graph.measured[0]) == weight
    restored = InteractionGraph(Recipe.load(terms), {"S": 8, "T": 8})
    restored.load_state_dict(graph.state_dict())
    assert float(restored.measured[0]) == pytest.approx(weight)


def test_a_recipe_of_measured_weights_alone_is_refused() -> None:
    with pytest.raises(RecipeError, match="a share of the others; give one a number"):
        InteractionGraph(Recipe.load([{"contrast": "SI-ST", "weight": {"grad_norm": 1}}]), {"S": 8})


@pytest.mark.parametrize(
    "keys", [torch.eye(6, dtype=torch.bool), torch.zeros(6), torch.zeros(6, 1, 1, dtype=torch.long)]
)
def test_keys_that_are_no_keys_are_refused(keys: torch.Tensor) -> None:
    with pytest.raises(RecipeError, match=r"positives: expected integer keys of shape \[B\] or \[B, K\]"):
        compute([{"contrast": "SI-ST"}], rows(13), positives=keys)


def test_rows_of_two_precisions_meet_in_the_finer_and_none_are_refused() -> None:
    embeddings = rows(14)
    mixed = embeddings | {"TI": embeddings["TI"].float()}
    graph = InteractionGraph(Recipe.load([{"feature": "SI>TI"}]), {"S": 8, "T": 8})
    assert float(graph(mixed, SCALES).total) == pytest.approx(float(graph(embeddings, SCALES).total), rel=1e-5)
    with pytest.raises(RecipeError, match="has no rows"):
        graph({node: matrix[:0] for node, matrix in embeddings.items()}, SCALES)


def test_a_callers_autocast_changes_nothing() -> None:
    embeddings = {node: matrix.float() for node, matrix in rows(15).items()}
    graph = InteractionGraph(Recipe.load("clip-kd"), {"S": 8, "T": 8})
    plain = graph(embeddings, SCALES).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(graph(embeddings, SCALES).total, plain)
