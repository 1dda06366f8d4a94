"""Values and gradients of the published code, executed by its authors' own functions: ours must agree.

The vectors in tests/golden are float64. Gradients named ``d_X`` are with respect to the unnormalised student rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clipdistill.algebra.graph import InteractionGraph
from clipdistill.algebra.recipe import Recipe

GOLDEN = Path(__file__).parent.parent / "golden"
INPUTS = load_file(GOLDEN / "inputs-b8d16.safetensors")
RAW_SCALE = 2.659260036932778  # ln(1 / 0.07): CLIP-KD's cross scale, used without the exponential
TAU = 0.07

TASK = {"contrast": "SI-ST"}
CRD = {"relation": "SI-ST", "like": "TI-TT", "metric": "kl"}
FD = [
    {"feature": "SI>TI", "metric": "mse", "weight": 2000},
    {"feature": "ST>TT", "metric": "mse", "weight": 2000},
]
AFFINITY = {"relation": "SI-ST", "like": "TI-TT", "metric": "ce"}
AFD = {"contrast": "SI+TI-ST+TT", "scale": {"raw": RAW_SCALE}, "name": "fusion"}
GD = {"gradient": "SI-ST", "like": "TI-TT", "weight": 2e8, "reference": True}
CASES: dict[str, list[dict[str, Any]]] = {
    "clipkd-task": [TASK],
    "clipkd-crd": [CRD],
    "clipkd-fd": FD,
    "clipkd-icl": [{"contrast": "SI>TT, ST>TI", "scale": {"raw": RAW_SCALE}, "name": "cross"}],
    "clipkd-crosskd": [
        {
            "relation": "SI>TT, ST>TI",
            "like": "TI-TT",
            "metric": "kl",
            "scale": {"raw": RAW_SCALE},
            "name": "cross",
        }
    ],
    "clipkd-afd": [AFD],
    "clipkd-gd": [GD],
    "openclip-contrastive": [TASK],
    "openclip-distill": [AFFINITY],
    "tinyclip-affinity": [AFFINITY],
    "chineseclip-total": [TASK, {"feature": "SI>TI", "metric": "cosine", "weight": 0.5}],
    "chineseclip-imgcos": [{"feature": "SI>TI", "metric": "cosine"}],
}


def mobileclip(scales: tuple[float, float], weight: float, views: tuple[str, ...]) -> list[dict[str, Any]]:
    """The task and the mean of two teachers' softmaxes, for the real captions and for synthetic ones."""
    terms: list[dict[str, Any]] = []
    for view in views:
        likes = [f"{letter}I-{letter}T{view}" for letter in "TU"]
        relation = {"relation": f"SI-ST{view}", "like": likes, "metric": "ce", "like_scale": list(scales)}
        terms += [{"contrast": f"SI-ST{view}", "weight": 1 - weight}, {**relation, "weight": weight}]
    return terms


for version, pair in (("1", (100.0, 100.0)), ("2", (70.0, 60.0))):
    for tag, share in (("l1", 1.0), ("l075", 0.75)):
        CASES[f"mobileclipv{version}-dr_{tag}"] = mobileclip(pair, share, ("",))
        CASES[f"mobileclipv{version}-dr_syn_{tag}"] = mobileclip(pair, share, ("", "@syn"))


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-30))


def evaluate(
    terms: list[dict[str, Any]],
    dtype: torch.dtype,
    biases: dict[str, float] | None = None,
    **given: torch.Tensor,
) -> tuple[Any, dict[str, torch.Tensor]]:
    """The total and the leaves it depends on, by the names the golden files use."""
    source = {**INPUTS, **given}
    leaves = {
        name: source[name].to(dtype, copy=True).requires_grad_() for name in ("SI_raw", "ST_raw", "SY_raw", "s_scale")
    }
    constants = {name: source[name].to(dtype) for name in ("TI", "TT", "TI2", "TT2")}
    recipe = Recipe.load(terms)
    graph = InteractionGraph(recipe, {"S": 16, "T": 16, "U": 16}).to(dtype)
    for name, parameter in graph.scales.items():
        term = next(term for term in recipe.terms if term.name == name)
        parameter.data = torch.tensor(term.scale.initial, dtype=dtype)  # type: ignore[union-attr]
        leaves[name] = parameter
    if graph.fusions:
        for node, side in (("SI+TI", "visual"), ("ST+TT", "text")):
            for kind in ("weight", "bias"):
                parameter = getattr(graph.fusions[node], kind)
                parameter.data = source[f"{side}_fusion_proj.{kind}"].to(dtype)
                leaves[f"{side}_fusion_proj.{kind}"] = parameter
    embeddings = {"SI": leaves["SI_raw"], "ST": leaves["ST_raw"], "ST@syn": leaves["SY_raw"]}
    embeddings |= {"TI": constants["TI"], "TT": constants["TT"], "TT@syn": constants["TT2"]}
    embeddings |= {"UI": constants["TI2"], "UT": constants["TT2"], "UT@syn": constants["TT"]}
    scales = {"S": leaves["s_scale"], "T": source["t_scale"].to(dtype)}
    losses = graph(embeddings, scales, biases=biases)
    losses.total.backward()
    return losses, leaves


@pytest.mark.parametrize(
    ("dtype", "loss_tolerance", "gradient_tolerance"), [("float64", 1e-10, 1e-9), ("float32", 1e-3, 1e-3)]
)
@pytest.mark.parametrize("case", sorted(CASES))
def test_published_code(case: str, dtype: str, loss_tolerance: float, gradient_tolerance: float) -> None:
    golden = load_file(GOLDEN / f"{case}-b8d16.safetensors")
    losses, leaves = evaluate(CASES[case], getattr(torch, dtype))
    assert close(losses.total.detach(), golden["loss"], loss_tolerance)
    compared = 0
    for name in leaves:
        if f"d_{name}" in golden:
            gradient = leaves[name].grad
            gradient = torch.zeros_like(leaves[name]) if gradient is None else gradient
            assert close(gradient, golden[f"d_{name}"], gradient_tolerance), name
            compared += 1
    for name, key in (("cross", "d_cross_logit_scale"), ("fusion", "d_fusion_logit_scale")):
        if name in leaves:
            assert close(leaves[name].grad, golden[key], gradient_tolerance)
            compared += 1
    assert compared >= 1


@pytest.mark.parametrize(("kind", "reference"), [("code", True), ("intended", False)])
def test_gradient_distillation_with_either_temperature(kind: str, reference: bool) -> None:
    golden = load_file(GOLDEN / "clipkd-gdparts-b8d16.safetensors")
    given = {"SI_raw": golden["SIn"], "ST_raw": golden["STn"]}
    # The mean over two arrows, each the sum of two matrices, is half the sum of the published four.
    losses, leaves = evaluate([{**GD, "weight": 2.0, "reference": reference}], torch.float64, **given)
    assert close(losses.total.detach(), golden[f"{kind}.gd_unweighted"], 1e-10)
    for name in ("SI", "ST"):  # theirs are free rows: remove what normalising takes away
        rows, free = golden[f"{name}n"], golden[f"{kind}.d_{name}n"]
        tangent = free - rows * (rows * free).sum(dim=1, keepdim=True)
        assert close(leaves[f"{name}_raw"].grad, tangent, 1e-9)


EDGES = {
    "intra_ts": (("SI>TI", "ST>TT"), ("TI>TI", "TT>TT")),
    "intra_ss": (("SI>SI", "ST>ST"), ("TI>TI", "TT>TT")),
    "inter_ts": (("SI>TT", "ST>TI"), ("TI>TT", "TT>TI")),
    "inter_ss": (("SI>ST", "ST>SI"), ("TI>TT", "TT>TI")),
}


def conaclip(edges: str, strategy: str) -> list[dict[str, Any]]:
    """One learning type with one supervision strategy of ConaCLIP, as an expression of the algebra."""
    (image, text), targets = EDGES[edges]
    both, like, partner = f"{image}, {text}", ", ".join(targets), f"{text}, {image}"
    gamma = {"scale": 1 / TAU, "like_scale": 1 / TAU}
    spelled: dict[str, dict[str, Any]] = {
        "infonce": {"contrast": both, "scale": 1 / TAU},
        "fd": {"feature": both, "metric": "l2", "mutual": True},
        "sd": {"relation": both, "like": like, "metric": "mse"},
        "kl_tp": {"relation": both, "like": like, "metric": "kl", **gamma},
        "kl_pt": {"relation": like, "like": both, "metric": "kl", "mutual": True, **gamma},
        "symsd": {"relation": both, "like": partner, "metric": "mse", "mutual": True},
        "symkl_tp": {"relation": both, "like": partner, "metric": "kl", "mutual": True, **gamma},
    }
    return [spelled[strategy]]


@pytest.mark.parametrize("strategy", ["infonce", "fd", "sd", "kl_tp", "kl_pt", "symsd", "symkl_tp"])
@pytest.mark.parametrize("edges", sorted(EDGES))
def test_conaclip_graph(edges: str, strategy: str) -> None:
    golden = load_file(GOLDEN / f"conaclip-{edges}-b8d16.safetensors")
    if f"{strategy}.loss" not in golden:
        assert (edges, strategy) == ("intra_ss", "fd"), "only the distance of a row to itself is undefined"
        return
    given = {name: golden[name] for name in ("SI_raw", "ST_raw", "TI", "TT")}
    losses, leaves = evaluate(conaclip(edges, strategy), torch.float64, **given)
    assert close(losses.total.detach(), golden[f"{strategy}.loss"], 1e-10)
    for name in ("SI_raw", "ST_raw"):
        assert close(leaves[name].grad, golden[f"{strategy}.d_{name}"], 1e-9), name


@pytest.mark.parametrize("strategy", ["symsd", "symkl_tp"])
@pytest.mark.parametrize("edges", ["intra_ts", "inter_ts", "inter_ss", "intra_ss"])
def test_conaclip_with_detached_partner(edges: str, strategy: str) -> None:
    golden = load_file(GOLDEN / f"conaclip-{edges}-b8d16.safetensors")
    (term,) = conaclip(edges, strategy)
    given = {name: golden[name] for name in ("SI_raw", "ST_raw", "TI", "TT")}
    _, leaves = evaluate([{**term, "mutual": False}], torch.float64, **given)
    for name in ("SI_raw", "ST_raw"):
        assert close(leaves[name].grad, golden[f"{strategy}.d_{name}_stopgrad"], 1e-9), name


def test_affinity_is_crd_plus_the_teachers_entropy() -> None:
    affinity = load_file(GOLDEN / "tinyclip-affinity-b8d16.safetensors")
    crd = load_file(GOLDEN / "clipkd-crd-b8d16.safetensors")
    teacher = INPUTS["t_scale"] * INPUTS["TI"] @ INPUTS["TT"].T
    entropy = sum(-(z.softmax(1) * z.log_softmax(1)).sum(1).mean() for z in (teacher, teacher.T)) / 2
    ours_affinity, _ = evaluate([AFFINITY], torch.float64)
    ours_crd, _ = evaluate([CRD], torch.float64)
    assert close(affinity["loss"] - entropy, crd["loss"], 1e-10)
    assert close((ours_affinity.total - entropy).detach(), ours_crd.total.detach(), 1e-10)


def test_sigmoid_distillation_of_mobileclip2() -> None:
    """Their soft target is no cross entropy: the quirk is switched on by name."""
    golden = load_file(GOLDEN / "mobileclipv2-distillsiglip-b8d16.safetensors")
    term = {"relation": "SI>ST", "like": ["TI>TT", "UI>UT"], "metric": "sigmoid", "like_scale": [70, 60]}
    biases = dict.fromkeys("STU", -10.0)
    found = {}
    for reference in (True, False):
        terms = [{**term, "scale": 10, "reference": reference}]
        losses, leaves = evaluate(terms, torch.float64, biases=biases)
        found[reference] = losses.total.detach()
        if reference:
            for name in ("SI_raw", "ST_raw"):
                assert close(leaves[name].grad, golden[f"d_{name}"], 1e-9), name
    assert close(found[True], golden["loss"], 1e-10)
    assert not close(found[False], golden["loss"], 1e-2)


def embed_kd(bank: str | None) -> list[dict[str, Any]]:
    """CLIP-Embed-KD as published: no temperature, the softmax of a softmax, a map of the teacher's rows as they are."""
    terms: list[dict[str, Any]] = [{"classify": "SI", "reference": True, "name": "label"}]
    if bank is None:
        return [*terms, {"classify": "SI", "like": "TI", "reference": True, "weight": 0.5, "name": "soft"}]
    return [
        *terms,
        {"contrast": f"SI>{bank}", "scale": 1, "adapter": "teacher", "reference": True, "weight": 0.5, "name": "kd"},
    ]


@pytest.mark.parametrize(
    ("mode", "bank"), [("embedkd", "TI@classes"), ("teacherkd", "TI"), ("vanilla", None)], ids=lambda value: str(value)
)
def test_embeddings_as_teachers(mode: str, bank: str | None) -> None:
    golden = load_file(GOLDEN / f"embedkd-{mode}-b8k5w16dt24.safetensors")
    x = golden["x"].clone().requires_grad_()
    head = {kind: golden[f"classifier.{kind}"].clone().requires_grad_() for kind in ("weight", "bias")}
    graph = InteractionGraph(Recipe.load(embed_kd(bank)), {"S": 16, "T": 24}).double()
    leaves = {"x": x, **{f"classifier.{kind}": tensor for kind, tensor in head.items()}}
    for kind, parameter in graph.adapters.named_parameters():
        name = f"cluster_projection.{kind.rpartition('.')[2]}"
        parameter.data = golden[name].clone()
        leaves[name] = parameter
    rows = {"SI": x, "SI@logits": x @ head["weight"].T + head["bias"], "TI": golden["teacher_embeddings"]}
    rows |= {"TI@classes": golden["centroids"], "TI@logits": golden["teacher_probs"].log()}
    losses = graph(rows, {}, labels=golden["labels"])
    assert close(losses.total.detach(), golden["loss"], 1e-10)
    losses.total.backward()
    assert len(leaves) == (3 if bank is None else 5)
    for name, leaf in leaves.items():
        assert close(leaf.grad, golden[f"d_{name}"], 1e-9), name
