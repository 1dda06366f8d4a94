"""Claims: how they are read, what they say of known numbers, and how they are told."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from test_report_page import Tree

from clipdistill.errors import ConfigError
from clipdistill.evidence.claims import Judged
from clipdistill.evidence.grid import Grid, make_grid
from clipdistill.evidence.grid_runs import Draw
from clipdistill.evidence.judging import judge
from clipdistill.evidence.measure import Measured
from clipdistill.evidence.outcome import Outcome, Trial
from clipdistill.evidence.report.claims_page import claims_table
from clipdistill.evidence.report.grid_page import write_grid_report
from clipdistill.evidence.statistics import correlation

#: Recall by cell and seed. To ``base``: ``up`` is more, ``down`` less, ``near`` as good, ``wild`` noise.
RECALL = {
    "base": (40.0, 41.0, 42.0),
    "up": (50.0, 51.5, 51.0),
    "down": (30.0, 30.5, 32.5),
    "near": (40.5, 41.0, 42.5),
    "wild": (30.0, 45.0, 48.0),
}


SORTER = {"preset": "scenes-vit"}
SORTING_TEACHER = {"recipe": "classify", "student": SORTER, "data": "x", "train": {"steps": 2}}


def claim(**changes: Any) -> dict[str, Any]:
    return {"claim": "one", "says": "Some  words.", "source": "a paper", "expect": "up > base"} | changes


def grid(*claims: Any, **changes: Any) -> Grid:
    """A grid of such cells, and one whose student is a classifier."""
    cells = {name: {"recipe": "clip"} for name in RECALL} | {"sorter": {"recipe": "classify", "student": SORTER}}
    teacher = {"recipe": "clip", "data": "x", "train": {"steps": 2}}
    base = {"data": "scenes:train?n=64", "train": {"steps": 4, "batch_size": 16}}
    data = {"base": base, "cells": cells, "baseline": "base", "seeds": [3, 5, 8], "claims": list(claims)}
    evaluate = {"retrieval": "scenes:test", "zeroshot": "scenes:zeroshot"}
    return make_grid({"teacher": teacher, **data, "evaluate": evaluate, **changes})


def outcome(seeds: int = 3) -> Outcome:
    """What the first ``seeds`` seeds of every cell measured, and a teacher."""

    def measured(cell: str, seed: int) -> Measured:
        cosines = {"image": RECALL[cell][seed] / 100, "text": 0.5}
        return Measured(cell, 100 + len(cell), 60, 40, {"mean_recall": RECALL[cell][seed]}, {"image_ms": 2.0}, cosines)

    trials = {
        cell: {Draw((3, 5, 8)[seed]): Trial(measured(cell, seed), 10.0 + seed) for seed in range(seeds)}
        for cell in RECALL
    }
    teachers = {"teacher": {None: Measured("t", 500, 300, 200, {"mean_recall": 51.0}, {"image_ms": 5.0})}}
    return Outcome(trials, "base", ("mean_recall",), teachers, dict.fromkeys(RECALL, "teacher"))


def judged(seeds: int = 3, **changes: Any) -> Judged:
    (found,) = judge(grid(claim(**changes)).claims, outcome(seeds))
    return found


@pytest.mark.parametrize(
    ("expect", "verdict"),
    [
        ("up > base", "holds"),
        ("base < up", "holds"),
        ("down > base", "does not hold"),
        ("up < base", "does not hold"),
        ("wild > base", "within noise"),
        ("wild < base", "within noise"),
        ("near ~ base", "holds"),
        ("up ~ base", "does not hold"),
        ("base ~ up", "does not hold"),
        ("wild ~ base", "within noise"),
        (["up > base", "near ~ base"], "holds"),
        (["up > base", "wild > base"], "within noise"),
        (["up > base", "wild > base", "down > base"], "does not hold"),
        ("up ~ teacher", "holds"),
        ("teacher > base", "holds"),
        ("near > teacher", "does not hold"),
    ],
)
def test_a_verdict_is_what_the_paired_interval_says(expect: Any, verdict: str) -> None:
    assert judged(expect=expect).verdict == verdict


def test_intervals_are_those_of_a_paired_t_test() -> None:
    for expect, other in (("wild > base", RECALL["base"]), ("wild > teacher", (51.0, 51.0, 51.0))):
        (found,) = judged(expect=expect).found
        difference = np.subtract(RECALL["wild"], other)
        half = 4.302653 * difference.std(ddof=1) / np.sqrt(3)  # 97.5th percentile of t with 2 degrees of freedom
        expected = (difference.mean(), difference.mean() - half, difference.mean() + half)
        assert (found.difference.mean, found.difference.low, found.difference.high) == pytest.approx(expected)
        assert found.evidence == "3 seeds"


def test_a_margin_decides_what_is_about_equal() -> None:
    assert [judged(expect="up ~ base", margin=margin).verdict for margin in (3, 9.8, 20)] == [
        "does not hold",
        "within noise",
        "holds",
    ]


def test_a_single_seed_decides_nothing() -> None:
    assert {judged(1, expect=text).verdict for text in ("up > base", "down > base", "near ~ base")} == {"within noise"}
    assert judged(1, expect=None, cost={"params": "up < teacher"}).verdict == "holds", "weights have no noise"
    assert judged(1, expect=None, cost={"image_ms": "up < teacher"}).verdict == "within noise"


def test_costs_and_likeness_are_compared() -> None:
    cost = {"params": "up < teacher", "train_seconds": ["up ~ base", "up < base"], "image_ms": "up < teacher"}
    found = judged(expect=None, cost=cost)
    assert [one.verdict for one in found.found] == ["holds", "holds", "within noise", "holds"]
    assert judged(metric="feature_cosine_image", expect="up > base").verdict == "holds"


def test_a_correlation_is_over_the_means_of_cells() -> None:
    cells = list(RECALL)
    (found,) = judged(expect=None, correlation="feature_cosine_image ~ mean_recall > 0", cells=cells).found
    assert (found.verdict, found.evidence) == ("holds", "5 cells")
    assert found.difference.mean == pytest.approx(1)
    assert judged(expect=None, correlation="feature_cosine_image ~ mean_recall < 0", cells=cells).verdict == (
        "does not hold"
    )
    assert judged(expect=None, correlation="params ~ mean_recall > 0", cells=cells).verdict == "within noise"
    assert judged(expect=None, correlation="feature_cosine_text ~ mean_recall > 0", cells=cells).verdict == (
        "within noise"
    ), "a figure that is the same everywhere goes with nothing"


def test_a_correlations_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, truth, covered = np.random.default_rng(0), 0.6, 0
    for _ in range(1000):
        x, noise = rng.normal(size=(2, 11))
        y = truth * x + np.sqrt(1 - truth**2) * noise
        found = correlation(x.tolist(), y.tolist())
        assert found.mean == pytest.approx(np.corrcoef(x, y)[0, 1])
        assert found.low is not None
        assert found.high is not None
        covered += found.low < truth < found.high
    assert 0.93 < covered / 1000 < 0.97
    assert correlation([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]).low is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"expect": "upp > base"}, "claim 1 (one), expect: there is no cell 'upp'. Did you mean 'up'"),
        ({"expect": "up >= base"}, "expected a comparison such as 'A > B', 'A < B' or 'A ~ B', found 'up >= base'"),
        ({"expect": "up"}, "expected a comparison"),
        ({"expect": "up > up"}, "expected two models, at least one of them a cell"),
        ({"expect": 3}, "expect: expected text or a list of texts, found 3"),
        ({"expect": None}, "nothing is expected"),
        ({"metric": "mean_recal"}, "metric: there is no figure 'mean_recal'. Did you mean 'mean_recall'"),
        ({"metric": "image_to_image_R@1"}, "there is no figure 'image_to_image_R@1'"),
        ({"margin": 0}, "margin: expected a number above 0, found 0"),
        ({"margin": "3 points"}, "margin: expected a number above 0"),
        ({"cost": {"parms": "up < base"}}, "cost: there is no figure 'parms'. Did you mean 'params'"),
        ({"cost": "up < base"}, "cost: expected figures and comparisons"),
        ({"cost": {"train_seconds": "up < teacher"}}, "teacher is a teacher, for which train_seconds is not measured"),
        ({"expect": "sorter > base"}, "sorter is a classifier, for which mean_recall is not measured"),
        ({"cost": {"text_ms": "sorter < base"}}, "sorter is a classifier, for which text_ms is not measured"),
        (
            {"expect": "sorter > base", "metric": "feature_cosine_text"},
            "sorter is a classifier, for which feature_cosine_text is not measured",
        ),
        ({"metric": "classify_top1"}, "up is no classifier, for which classify_top1 is not measured"),
        ({"correlation": "mean_recall > 0"}, "correlation: expected 'FIGURE ~ FIGURE > 0' or '< 0'"),
        ({"correlation": "mean_recal ~ params > 0"}, "there is no figure 'mean_recal'"),
        ({"correlation": "params ~ mean_recall > 0", "cells": ["up", "base", "up"]}, "4 cells or more, found 2"),
        ({"cells": ["up"]}, "cells belongs to a correlation"),
        ({"claims": "x"}, "unknown key 'claims'. Did you mean 'claim'"),
        ({"says": ""}, "the key 'says' is missing"),
        ({"source": 3}, "the key 'source' is missing; expected text, found 3"),
    ],
)
def test_mistakes_are_found_before_training(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as found:
        grid(claim(**given))
    assert message in str(found.value)


@pytest.mark.parametrize(
    "changes", [{"evaluate": {"zeroshot": "scenes:zeroshot"}}, {"teacher": None}, {"teacher": SORTING_TEACHER}]
)
def test_likeness_takes_retrieval_data_and_a_teacher_of_captions(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="up is in a grid without a teacher or without retrieval data, for which"):
        grid(claim(metric="feature_cosine_image"), **changes)
    related = {"correlation": "feature_cosine_text ~ params > 0"}
    with pytest.raises(ConfigError, match="in a grid without a teacher or without retrieval data, for which"):
        grid(claim(expect=None, **related), **changes)


def test_a_classifier_as_teacher_has_no_recall() -> None:
    with pytest.raises(ConfigError, match="teacher is a classifier, for which mean_recall is not measured"):
        grid(claim(expect="up > teacher"), teacher=SORTING_TEACHER)


def test_claims_have_names_of_their_own() -> None:
    with pytest.raises(ConfigError, match="two claims are called 'one'"):
        grid(claim(), claim(expect="down < base"))
    with pytest.raises(ConfigError, match="claim 1: expected keys such as claim, says"):
        grid("up > base")
    with pytest.raises(ConfigError, match="claims: expected a list of claims"):
        grid(**{"claims": {"claim": "up > base"}})


def test_some_cells_leave_the_claims_about_them() -> None:
    whole = grid(claim(), claim(claim="two", expect="down < base"), claim(claim="three", expect="up > teacher"))
    assert [one.name for one in whole.only(["up"]).claims] == ["one", "three"]


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(ConfigError, match="claim one: no text_ms was measured of up"):
        judge(grid(claim(cost={"text_ms": "up < base"})).claims, outcome())


def test_claims_are_told_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = claim(claim="two", says="<b>A|B</b>", expect=["down < base", "wild > base"], cost={"params": "up < teacher"})
    whole = outcome()
    claims = judge(grid(claim(), odd).claims, whole)
    told = Outcome(**{**vars(whole), "claims": claims})
    write_grid_report(told, tmp_path, "t", {})
    report = json.loads((tmp_path / "report.json").read_text())["claims"]
    assert [(one["claim"], one["verdict"], len(one["found"])) for one in report] == [
        ("one", "holds", 1),
        ("two", "within noise", 3),
    ]
    assert report[0]["found"][0]["difference"] == pytest.approx(np.mean(RECALL["up"]) - 41, abs=1e-4)
    rows = list(csv.DictReader((tmp_path / "claims.csv").read_text().splitlines()))
    assert [(row["claim"], row["verdict"], row["of it"]) for row in rows] == [
        ("one", "holds", "holds"),
        ("two", "within noise", "holds"),
        ("two", "within noise", "within noise"),
        ("two", "within noise", "holds"),
    ]
    lines = (tmp_path / "claims.md").read_text().splitlines()
    assert len(lines) == 4
    assert "+9.8" in lines[2]
    assert r"&lt;b>A\|B&lt;/b>" in lines[3]
    page = (tmp_path / "report.html").read_text()
    Tree(page)
    assert "two: within noise" in page
    assert "<b>" not in page
    Console(width=200).print(claims_table(claims))
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("up > base", "all of it", "within noise", "-398"))


def test_a_grid_without_claims_tells_of_none(tmp_path: Path) -> None:
    write_grid_report(outcome(), tmp_path, "t", {})
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.csv", "report.json", "report.html"}
    assert "<h2>Claims</h2>" not in (tmp_path / "report.html").read_text()
