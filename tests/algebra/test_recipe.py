"""Recipes: what they say, what they refuse, and the words of the refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipdistill.algebra.nodes import Arrow, Node, parse_arrows
from clipdistill.algebra.recipe import Recipe, available
from clipdistill.algebra.term import NewScale
from clipdistill.errors import RecipeError


def test_node_spelling_round_trips() -> None:
    for text in ("SI", "TT", "UI", "ST@syn", "TI@bank", "SI+TI", "SI@masked+TI", "TI|TI@bank", "SI+TI|TT|TT@bank"):
        assert str(Node.parse(text)) == text
    assert Node.parse("SI").is_student
    assert not Node.parse("TI").is_student


@pytest.mark.parametrize("text", ["", "S", "SX", "si", "SI@", "SI@Syn", "SSI", "1I"])
def test_unknown_node_names_the_known(text: str) -> None:
    with pytest.raises(RecipeError, match="SI, ST; teacher TI, TT"):
        Node.parse(text)


def test_arrows() -> None:
    image, text = Node("S", "I"), Node("S", "T")
    assert parse_arrows("SI-ST") == (Arrow(image, text), Arrow(text, image))
    assert parse_arrows("SI>TT, ST>TI") == (Arrow(image, Node("T", "T")), Arrow(text, Node("T", "I")))
    with pytest.raises(RecipeError, match="'SI' is no arrow"):
        parse_arrows("SI")


@pytest.mark.parametrize("name", sorted(available()))
def test_shipped_recipes_load_describe_and_round_trip(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.paper
    assert all(term.name in recipe.describe() for term in recipe.terms)
    assert Recipe.load(recipe.to_dict()) == recipe


def test_an_adapter_that_is_not_learned_is_told_and_round_trips() -> None:
    recipe = Recipe.load([{"feature": "SI>TI", "metric": "cosine", "adapter": "interpolate"}])
    assert "cosine, interpolate" in recipe.describe()
    assert Recipe.load(recipe.to_dict()["terms"]) == recipe


def test_the_recipes_of_the_papers_are_there() -> None:
    assert {"clip", "siglip", "clip-kd", "feature", "affinity", "chinese-clip-kd"} <= set(available())
    assert [term.name for term in Recipe.load("clip-kd").terms] == [
        "task",
        "crd",
        "fd_image",
        "fd_text",
        "icl",
    ]
    assert Recipe.load("clip").teachers == ()
    assert Recipe.load("clip-kd").teachers == ("T",)


def test_every_spelling_loads_the_same(tmp_path: Path) -> None:
    terms: list[dict[str, Any]] = [
        {"contrast": "SI-ST"},
        {"feature": "SI>TI", "weight": 2, "metric": "cosine"},
    ]
    file = tmp_path / "mine.yaml"
    file.write_text("terms:\n  - {contrast: SI-ST}\n  - {feature: 'SI>TI', weight: 2, metric: cosine}\n")
    assert Recipe.load(terms).terms == Recipe.load({"terms": terms}).terms == Recipe.load(file).terms
    assert Recipe.load(str(file)).name == "mine"


def test_defaults_follow_the_papers() -> None:
    task, sd, kl = Recipe.load(
        [
            {"contrast": "SI-ST"},
            {"relation": "SI>TI", "like": "TI>TI", "metric": "mse"},
            {"relation": "SI-ST", "like": "TI-TT", "scale": {"new": 10}},
        ]
    ).terms
    assert (task.metric, task.scale, task.weight, task.mutual) == ("softmax", "S", 1.0, False)
    assert (sd.scale, sd.like_scale) == (1.0, (1.0,))
    assert (kl.metric, kl.scale, kl.like_scale) == ("kl", NewScale(10.0), ("T",))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([{"contrats": "SI-ST"}], "unknown key or verb 'contrats'. Did you mean 'contrast'"),
        ([{"contrast": "SI-ST", "wieght": 1}], "unknown key 'wieght'. Did you mean 'weight'"),
        (
            [{"contrast": "SI-ST", "metric": "sofmax"}],
            "unknown metric 'sofmax' for contrast. Did you mean 'softmax'",
        ),
        ([{"relation": "SI-ST", "like": "TI-TT", "metric": "js"}], "Known: ce, kl, mse, sigmoid"),
        ([{"feature": "SI>XX"}], "unknown node 'XX'"),
        ([{"relation": "SI-ST"}], "needs as many under 'like'"),
        ([{"relation": "SI-ST", "like": "TI>TT"}], "has 2 arrows"),
        (
            [{"contrast": "SI-ST", "like": "TI-TT"}],
            "'like' belongs to relation, gradient and classify, not to contrast",
        ),
        (
            [{"feature": "SI>TI", "adapter": "bilinear"}],
            "unknown adapter 'bilinear'. Did you mean 'linear'? Known: interpolate",
        ),
        ([{"contrast": "SI>TI", "adapter": "interpolate"}], "adapter interpolate belongs to feature, not to contrast"),
        ([{"feature": "SI>TI", "adapter": "teacher"}], "adapter teacher belongs to contrast, not to feature"),
        ([{"contrast": "TI@bank>SI"}], "anchors rows at TI@bank, which are not those of the batch"),
        ([{"contrast": "SI|ST>TI"}], "anchors rows at SI|ST"),
        ([{"feature": "SI>TI@classes"}], "feature pairs row with row, and TI@classes is no row of the batch"),
        ([{"contrast": "SI>TI@logits"}], "TI@logits belongs to classify, not to contrast"),
        ([{"classify": "SI@masked"}], "expected a plain node such as SI, found SI@masked"),
        ([{"classify": 3}], "expected a node such as SI, found 3"),
        ([{"classify": "SI", "like": "TI, TI"}], "as many nodes under 'like'"),
        ([{"classify": "TI"}], "teaches the student nothing"),
        ([{"gradient": "SI-ST", "like": ["TI-TT", "UI-UT"]}], "several targets under 'like' belong to relation"),
        ([{"relation": "SI-ST", "like": ["TI-TT", "UI-UT"], "like_scale": [1]}], "has 1 numbers for 2 targets"),
        ([{"contrast": "SI-ST", "confidence": "TI-TT"}], "confidence is one arrow"),
        (
            [{"contrast": "SI>TT@bank"}],
            "and a row's partner need not be among them. Stack them below the batch's: SI>TT|TT@bank",
        ),
        ([{"contrast": "TI-TT"}], "teaches the student nothing"),
        ([{"contrast": "SI-ST", "weight": {"grad_norm": -1}}], "a grad_norm is a positive share"),
        ([{"feature": "SI>TI", "scale": 5}], "has no 'scale'"),
        ([{"contrast": "SI-ST", "like_scale": 5}], "'like_scale' is the scale of 'like', and there is none"),
        ([{"contrast": "SI>SI+TI", "adapter": "teacher"}], "not fused ones"),
        ([{"contrast": "SI-ST", "confidence": "TI>TT@bank"}], "confidence is an arrow within the batch"),
        ([{"gradient": "SI-ST"}], "gradient SI-ST has 2 arrows and needs as many under 'like'"),
        ([{"contrast": "SI-ST", "weight": {"grad_norm": "big"}}], "weight: expected a number"),
        ([{"contrast": "SI-ST", "reference": 1}], "reference is true or false"),
        ([{"contrast": "SI-ST", "feature": "SI>TI"}], "exactly one verb"),
        ([{"contrast": "SI-ST", "weight": "big"}], "weight: expected a number"),
        ([{"contrast": "SI-ST", "weight": float("nan")}], "weight: expected a number"),
        ([{"contrast": "SI-ST", "scale": "hot"}], "unknown scale 'hot'"),
        ([{"contrast": "SI-ST", "scale": -1}], "a scale is positive"),
        ([{"contrast": "SI-ST", "scale": {"new": 200}}], "stays within 1 and 100, found 200"),
        ([{"contrast": "SI-ST", "mutual": "yes"}], "true or false"),
        ([{"feature": "TI>SI"}], "teaches the student nothing: no student's row takes a gradient"),
        ([{"relation": "TI-TT", "like": "SI-ST"}], "teaches the student nothing"),
        ([{"contrast": "SI-ST"}, {"contrast": "SI-ST"}], "second term is called"),
        ([{"contrast": "SI-ST", "name": "a.b"}], "contain a dot"),
        ([], "expected a list of terms"),
        (["SI-ST"], "expected a mapping"),
        ([{"contrast": None}], "expected arrows"),
    ],
)
def test_mistakes_are_named(terms: list[Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(terms)
    assert message in str(caught.value)


def test_unknown_recipe_suggests_the_closest() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'clip-kd'"):
        Recipe.load("clip-kt")


def test_broken_yaml_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text("terms: [}")
    with pytest.raises(RecipeError, match=r"broken\.yaml is not readable YAML"):
        Recipe.load(file)
    file.write_text("terms: [{contrast: SI-ST}]\nextra: 1")
    with pytest.raises(RecipeError, match="unknown key 'extra'"):
        Recipe.load(file)


def test_a_recipe_is_told_as_formulas() -> None:
    """Scales, maps, sums and brackets as they are computed."""
    told = {
        "task": ({"contrast": "SI-ST"}, "1/2 [CE(gS SI·STᵀ) + CE(gS ST·SIᵀ)]"),
        "soft": ({"classify": "SI", "like": "TI", "scale": 0.25}, "CE(P(TI@logits); 0.25 SI@logits)"),
        "gd": ({"gradient": "SI>ST", "like": "TI>TT", "reference": True}, "|∇CE(gS⁻¹ SI·STᵀ) - ∇CE(gT⁻¹ TI·TTᵀ)|²/D"),
        "bank": ({"contrast": "ST>TI|TI@bank", "scale": {"new": 9}}, "CE(g[bank] ST·(TI|TI@bank)ᵀ)"),
        "map": ({"contrast": "SI>TI@classes", "scale": 1, "adapter": "teacher"}, "CE(SI·M(TI@classes)ᵀ)"),
        "afd": ({"contrast": "SI+TI>ST+TT"}, "CE(gS W(SI+TI)·W(ST+TT)ᵀ)"),
        "ens": (
            {"relation": "SI>ST", "like": ["TI>TT", "UI>UT"], "metric": "sigmoid"},
            "Σ BCE(1/2 (σ(gT TI·TTᵀ + bT) + σ(gU UI·UTᵀ + bU)); gS SI·STᵀ + b)",
        ),
        "sure": (
            {"feature": "SI>TI", "metric": "l2", "confidence": "TI>TT"},
            "|SI - TI|², row i weighed by P(gT TI·TTᵀ)ᵢᵢ over its mean",
        ),
    }
    recipe = Recipe.load([{**term, "name": name, "weight": 2} for name, (term, _) in told.items()])
    lines = recipe.describe().splitlines()
    for name, (_, expected) in told.items():
        assert f"{name} = {expected}" in lines
    assert "loss = 2 task + 2 soft + 2 gd" in recipe.describe()
