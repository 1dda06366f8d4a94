"""Every recipe that ships trains a student, end to end, with the teachers and data it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipdistill.algebra.recipe import available
from clipdistill.training.loop import distill
from clipdistill.training.run_folder import read_log


@pytest.mark.parametrize("name", sorted(available()))
def test_every_recipe_trains_a_student_of_another_width(name: str, tmp_path: Path, recipe_run: Any) -> None:
    run = recipe_run(name, tmp_path / "run", {"steps": 24, "lr": 1e-2})
    result = distill(run)
    entries = list(read_log(result.folder / "log.jsonl"))
    assert [entry["step"] for entry in entries] == list(range(1, 25))
    found = [entry["loss"] for entry in entries]
    assert sum(found[-6:]) < sum(found[:6])
    assert (result.student / "clipdistill.json").is_file()
