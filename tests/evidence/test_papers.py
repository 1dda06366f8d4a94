"""The grid of the papers' claims: every cell is a run that begins, every claim is judged, odd cells train."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipdistill.cli import main
from clipdistill.data.sources import pairs
from clipdistill.evidence.grid import Grid, load_grid, make_grid
from clipdistill.evidence.grid_runs import recipe_teachers, recipes_of
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer
from clipdistill.training.checks import check_bank, check_letters
from clipdistill.training.preflight import count
from clipdistill.training.stages import stage_runs

PAPERS = Path(__file__).parents[2] / "benchmarks" / "papers.yaml"
#: Cells unlike the rest: stages and a bank, inheritance, two teachers, classifiers, another teacher.
UNLIKE = ("motis-staged", "half-staged", "mobileclip-2-soft", "embed-kd", "clip-kd-weak")


@pytest.fixture(scope="module")
def papers() -> Grid:
    return load_grid(str(PAPERS))


def shrunk(value: Any) -> Any:
    """The same grid with steps, batches and banks that take no time."""
    small = {"steps": 2, "batch_size": 8, "size": 16, "checkpoint_every": 9}
    if isinstance(value, dict):
        return {key: small.get(key, shrunk(item)) for key, item in value.items()}
    return [shrunk(item) for item in value] if isinstance(value, list) else value


def smallest(**changes: Any) -> dict[str, Any]:
    """The grid on few pictures, with one seed."""
    data: dict[str, Any] = shrunk(yaml.safe_load(PAPERS.read_text(encoding="utf-8")))
    for run in (data["teacher"], *data["teachers"].values()):
        run["data"] = "scenes:teacher?n=24"
        run["student"] |= {"width": 32, "layers": 2, "text_layers": 2, "vocab_size": 520}
    data["base"]["data"] = "scenes:train?n=32"
    del data["cells"]["tiny-clip-kd-small"]
    for cell in data["cells"].values():
        if "data" in cell:
            cell["data"] = "scenes:zeroshot?n=32&seed=1"
    del data["teachers"]["small"]
    data["cells"]["half-staged"]["student"] |= {"width": 32, "layers": 1, "text_layers": 1}
    data["cells"]["half-staged"]["stages"][0]["student"] = {"layers": 2, "text_layers": 2}
    evaluate = {"retrieval": "scenes:test?n=20", "image_retrieval": "scenes:test?n=20&copies=2"}
    return {**data, "evaluate": evaluate, "seeds": [2], "claims": None, "metrics": None, **changes}


def test_every_cell_is_in_a_claim_and_every_claim_has_a_source(papers: Grid) -> None:
    assert {cell for claim in papers.claims for cell in claim.cells} == {*papers.cells, "teacher", "weak"}
    assert all(claim.source and claim.says.endswith(".") for claim in papers.claims)
    numbers = {int(word) for claim in papers.claims for word in claim.name.split("-") if word.isdigit()}
    assert numbers >= {*range(1, 24)}


def test_the_docs_tell_of_every_claim_and_every_grid_in_them_can_be_read(papers: Grid) -> None:
    page = (PAPERS.parents[1] / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `?([\w-]+)`? \| [A-Z].*\.", page, re.MULTILINE) == [claim.name for claim in papers.claims]
    grids = [make_grid(yaml.safe_load(block)) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert [(len(grid.claims), len(grid.teachers)) for grid in grids] == [(2, 0), (0, 3)]


def test_students_of_the_recipe_best_see_as_many_pictures_as_the_others() -> None:
    grid = load_grid(str(PAPERS.with_name("best.yaml")))
    assert {cell for claim in grid.claims for cell in claim.cells} <= {*grid.cells, "teacher"}
    seen = {name: (cell.train.steps or 0) * cell.train.batch_size for name, cell in grid.cells.items()}
    assert seen.pop("best-long") == 4 * 44_800
    assert set(seen.values()) == {44_800}


def test_students_of_the_recipe_best_are_as_small_as_its_claims_say() -> None:
    grid = load_grid(str(PAPERS.with_name("best.yaml")))
    teacher = grid.teachers["teacher"][0].student
    source = pairs("scenes:teacher?n=2000")
    captions = [caption for row in range(len(source)) for caption in source[row].captions]
    tokenizer = train_tokenizer(captions, teacher.vocab_size, 32)

    def weights(spec: StudentSpec) -> int:
        return count(build(spec, tokenizer, 128).module)

    shares = {name: weights(teacher) / weights(cell.student) for name, cell in grid.cells.items()}
    for claim in grid.claims:
        told = [int(share) for share in re.findall(r"\b1/(\d+)", claim.says)]
        found = [shares[cell] for cell in claim.cells if cell != "teacher"]
        for share in told:
            assert any(share - 0.3 < each < share + 1 for each in found), claim.name
    assert shares["best-64"] > 10
    assert shares["tiny-best-64"] > 30


def test_every_cell_is_a_run_that_begins(papers: Grid) -> None:
    for name, cell in papers.cells.items():
        letters = recipe_teachers(cell)
        run = cell.model_copy(update={"teachers": dict.fromkeys(letters, "models/teacher")})
        assert name not in papers.stored or letters or name in ("clip", "cnn-clip", "tiny-clip")
        for stage in stage_runs(run) or [run]:
            (recipe,) = recipes_of(stage)
            check_letters(recipe, stage)
            if not any(node.view == "bank" for node in recipe.nodes):
                check_bank(recipe, stage, 4000)


def test_all_students_have_the_same_budget_unless_a_cell_is_about_it(papers: Grid) -> None:
    steps = {
        name: sum(stage.train.steps or 0 for stage in stage_runs(cell)) if cell.stages else cell.train.steps
        for name, cell in papers.cells.items()
    }
    assert {name for name, count in steps.items() if count != 350} == {"half-inherited-175"}
    plain = papers.cells["clip"].train
    for name, cell in papers.cells.items():
        assert cell.train.model_copy(update={"steps": plain.steps}) == plain, name


def test_the_unlike_cells_train_and_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [*UNLIKE, "clip"]
    claims = [
        {"claim": "pairs", "says": "A.", "source": "b", "expect": ["clip-kd-weak > clip", "motis-staged ~ teacher"]},
        {"claim": "cost", "says": "A.", "source": "b", "cost": {"train_seconds": "half-staged > clip"}},
        {
            "claim": "labels",
            "says": "A.",
            "source": "b",
            "metric": "image_to_image_R@1",
            "expect": "embed-kd > clip",
        },
    ]
    data = smallest(claims=claims)
    cells = {name: data["cells"][name] for name in names}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**data, "cells": cells}, sort_keys=False))
    assert main(["compare", str(file), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["models"]) == ["teacher", "second", "weak", *cells]
    assert {claim["claim"]: claim["verdict"] for claim in report["claims"]} == dict.fromkeys(
        ("pairs", "cost", "labels"), "within noise"
    ), "one seed decides nothing"
    assert report["models"]["motis-staged"]["train_seconds"] > 0
    assert "Claims" in capsys.readouterr().out
