"""What a grid means, and what is refused before anything is trained."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from clipdistill.algebra.recipe import Recipe
from clipdistill.errors import ClipdistillError, ConfigError
from clipdistill.evaluation.evaluate import Tasks
from clipdistill.evidence.grid import GRID_FOLDER, METRICS, available_grids, choose_grid, load_grid, make_grid

GAMMA = 14.285714
EDGES = {
    "intra_ts": ("SI>TI, ST>TT", "ST>TT, SI>TI", "TI>TI, TT>TT"),
    "intra_ss": ("SI>SI, ST>ST", "ST>ST, SI>SI", "TI>TI, TT>TT"),
    "inter_ts": ("SI>TT, ST>TI", "ST>TI, SI>TT", "TI>TT, TT>TI"),
    "inter_ss": ("SI>ST, ST>SI", "ST>SI, SI>ST", "TI>TT, TT>TI"),
}
SORTER = {"recipe": "classify", "student": {"preset": "scenes-vit"}}
STRATEGIES = ("infonce", "fd", "sd", "kl", "sym_sd", "sym_kl")


def grid_data(**changes: Any) -> dict[str, Any]:
    base = {"data": "scenes:train?n=64", "train": {"steps": 4, "batch_size": 16}}
    cells = {"feature": {"recipe": "feature"}, "clip": {"recipe": "clip"}}
    teachers = {"teachers": {"T": "models/teacher"}}
    return {"base": base | teachers, "cells": cells, "evaluate": {"retrieval": "scenes:test"}} | changes


def test_cells_are_the_base_with_their_changes() -> None:
    cells = {"a": {"recipe": "clip", "train": {"lr": 0.5}}, "b": {"recipe": [{"contrast": "SI-ST"}], "data": "other"}}
    grid = make_grid(grid_data(cells=cells))
    assert (grid.cells["a"].train.lr, grid.cells["a"].train.steps, grid.cells["a"].data) == (
        0.5,
        4,
        "scenes:train?n=64",
    )
    assert (grid.cells["b"].train.lr, grid.cells["b"].data) == (1e-3, "other")
    assert grid.seeds == (0, 1, 2)
    assert grid.baseline == "a"
    assert grid.metrics == ("mean_recall",)


def test_overrides_reach_the_base_and_the_grids_own_keys() -> None:
    data = grid_data(teacher={"recipe": "clip", "data": "x", "train": {"steps": 2}})
    data["base"].pop("teachers")
    words = [
        "train.lr=0.25",
        "seeds=[5]",
        "baseline=feature",
        "teacher.train.steps=9",
        "evaluate.zeroshot=scenes:zeroshot",
    ]
    grid = make_grid(data, [*words, "metrics=[zeroshot_acc5]", "evaluate.retrieval=null"])
    assert all(cell.train.lr == 0.25 for cell in grid.cells.values())
    assert (grid.seeds, grid.baseline, grid.metrics) == ((5,), "feature", ("zeroshot_acc5",))
    (teacher,) = grid.teachers["teacher"]
    assert teacher.train.steps == 9
    assert make_grid(data, seeds=2).seeds == (0, 1)
    assert data["base"]["train"] == {"steps": 4, "batch_size": 16}, "the data given are left alone"


def test_names_that_yaml_reads_as_something_else_are_names(tmp_path: Path) -> None:
    data = grid_data(cells=yaml.safe_load("{16: {train: {lr: 0.5}}, 32: {}, 48: {}, 64: {}, on: {}}"), baseline=32)
    told = {"says": "Some words.", "source": "a paper"}
    related = {"correlation": "params ~ mean_recall > 0", "cells": [16, 32, 48, 64]}
    data["claims"] = [{"claim": "a", "expect": "16 > 32", **told}, {"claim": "b", **related, **told}]
    grid = make_grid(data, ["cells.16.train.batch_size=8"])
    assert list(grid.cells) == ["16", "32", "48", "64", "True"]
    assert (grid.baseline, grid.cells["16"].train.batch_size, grid.cells["16"].train.lr) == ("32", 8, 0.5)
    assert grid.only(["16"]).claims[0].cells == {"16", "32"}
    assert grid.claims[1].cells == {"16", "32", "48", "64"}


def test_a_cell_says_its_own_length() -> None:
    """One of steps, epochs and samples takes the place of another, as it does in a stage."""
    grid = make_grid(grid_data(cells={"a": {"recipe": "clip", "train": {"epochs": 2}}, "b": {"recipe": "clip"}}))
    lengths = {name: (cell.train.steps, cell.train.epochs) for name, cell in grid.cells.items()}
    assert lengths == {"a": (None, 2), "b": (4, None)}
    assert grid.cells["a"].train.batch_size == 16


def test_the_baseline_is_the_cell_of_that_name_or_the_first() -> None:
    assert make_grid(grid_data()).baseline == "clip"
    named = grid_data(cells={"one": {"recipe": "clip"}, "baseline": {"recipe": "clip"}})
    assert make_grid(named).baseline == "baseline"
    assert make_grid(named, ["baseline=one"]).only(["one"]).cells.keys() == {"one"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cell": {}}, "unknown key 'cell'. Did you mean 'cells'"),
        ({"cells": {}}, "expected the key 'cells'"),
        ({"baseline": "clp"}, "no cell 'clp'. Did you mean 'clip'"),
        ({"metrics": ["mean_recal"]}, "Did you mean 'mean_recall'"),
        ({"metrics": ["zeroshot_acc1"]}, "'zeroshot_acc1' is not measured on the data given"),
        ({"metrics": 3}, "metrics: expected a list"),
        ({"seeds": [0, "x"]}, "seeds: expected whole numbers"),
        ({"evaluate": {}}, "name data to evaluate on: evaluate.retrieval"),
        ({"evaluate": {"retrival": "x"}}, "Did you mean 'retrieval'"),
        ({"cells": {"a": {"recipe": "clip-kt"}}}, "cell a: unknown recipe 'clip-kt'"),
        ({"cells": {"a": {"recipe": "clip-kt"}}}, "Did you mean 'clip-kd'"),
        (
            {"teachers": {"b": {"recipe": "clp", "data": "x", "train": {"steps": 1}}}},
            "teachers, b: unknown recipe 'clp'",
        ),
        (
            {"evaluate": {"zeroshot": "x"}, "metrics": ["zeroshot_acc1"], "cells": {"a": SORTER}},
            "'zeroshot_acc1' is not measured of classifiers, and every cell is one",
        ),
        ({"cells": {"a": {"train": {"stps": 3}}}}, "cell a: unknown key 'train.stps'. Did you mean 'steps'"),
        ({"cells": {"a": {"seed": 3}}}, "a grid sets 'seed' for every cell; write seeds"),
        ({"cells": {"a": {"out": "x"}}}, "give --out"),
        ({"cells": {"a": 3}}, "cell a: expected keys and values, found 3"),
        ({"cells": {"../a": {}}}, "a cell's name is also a folder's"),
        ({"cells": {"teacher": {}}}, "and not 'teacher'"),
        ({"cells": {"a": {"recipe": [{"feature": "SI>UI"}]}}}, "needs a teacher 'U', and the grid names none"),
        ({"teacher": {"data": "x", "train": {"steps": 1}}}, "teachers.T is given, and the grid trains a teacher"),
        ({"teacher": {"out": "x"}}, "a grid sets 'out' for its teacher"),
    ],
)
def test_mistakes_are_found_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ClipdistillError) as found:
        make_grid(grid_data(**changes))
    assert message in str(found.value)


def test_the_command_line_means_a_grid_recipes_or_runs(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(grid_data(), sort_keys=False))
    grid = choose_grid([str(file), "train.lr=0.5"], None, None, 1, "feature")
    assert grid is not None
    assert (grid.name, list(grid.cells), grid.seeds) == ("mine", ["feature", "clip"], (0,))
    words = ["data=x", "train.steps=3", "teachers.T=t", "evaluate.retrieval=scenes:test"]
    grid = choose_grid(words, "clip, clip-kd", None, None, None)
    assert grid is not None
    assert (list(grid.cells), grid.cells["clip-kd"].recipe, grid.baseline) == (["clip", "clip-kd"], "clip-kd", "clip")
    assert choose_grid(["runs/a", "runs/b"], None, None, None, None) is None
    for arguments, message in [
        (([], None, "conaklip", None, None), "unknown grid 'conaklip'.*Did you mean 'conaclip'"),
        (([str(file)], None, "conaclip", None, None), "several things to compare"),
        ((["a.yaml", "b.yaml"], None, None, None, None), "several grids: a.yaml, b.yaml. Give one at a time"),
        (([str(file)], None, None, None, "fature"), "no cell 'fature'. Did you mean 'feature'"),
        ((["a", "b"], None, None, 3, None), "--seeds belongs to a grid"),
        ((words, "clip,clip", None, None, None), "two recipes have the same name"),
    ]:
        with pytest.raises(ConfigError, match=message):
            choose_grid(*arguments)
    file.write_text("cells: [")
    with pytest.raises(ConfigError, match="not readable YAML"):
        load_grid(str(file))


def conaclip(edges: str, strategy: str) -> dict[str, Any]:
    """One addition of ConaCLIP's ablation, as METHODS tells it and the parity tests check it."""
    both, partner, like = EDGES[edges]
    gamma = {"scale": GAMMA, "like_scale": GAMMA}
    spelled: dict[str, dict[str, Any]] = {
        "infonce": {"contrast": both, "scale": GAMMA},
        "fd": {"feature": both, "metric": "l2", "mutual": True},
        "sd": {"relation": both, "like": like, "metric": "mse"},
        "kl": {"relation": both, "like": like, "metric": "kl", **gamma},
        "sym_sd": {"relation": both, "like": partner, "metric": "mse", "mutual": True},
        "sym_kl": {"relation": both, "like": partner, "metric": "kl", "mutual": True, **gamma},
    }
    return spelled[strategy]


def test_the_conaclip_grid_is_four_types_times_six_strategies() -> None:
    grid = load_grid("conaclip")
    base = {**conaclip("intra_ts", "infonce"), "name": "baseline"}
    expected = {
        f"{edges}-{strategy}": [base, conaclip(edges, strategy)]
        for edges, strategy in product(EDGES, STRATEGIES)
        if (edges, strategy) not in (("intra_ss", "fd"), ("intra_ts", "infonce"))
    } | {"baseline": [base]}
    assert grid.baseline == "baseline"
    assert grid.cells.keys() == expected.keys()
    for name, cell in grid.cells.items():
        assert Recipe.load(cell.recipe) == Recipe.load(expected[name]), name


def test_every_grid_that_ships_can_be_read() -> None:
    assert set(available_grids()) == {path.stem for path in GRID_FOLDER.glob("*.yaml")}
    for name in available_grids():
        assert load_grid(name).metrics


def test_metrics_are_known_by_task() -> None:
    assert METRICS.keys() == Tasks.__dataclass_fields__.keys() - {"ask", "classes"}
