"""The notebooks run from the first cell to the last, as plain Python, in an empty folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from desk import ROOT

pytestmark = pytest.mark.usefixtures("graphs_once")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    code = cells(notebook, "code")
    assert len(code) >= 3
    for number, cell in enumerate(code, 1):
        exec(compile(source(cell), f"{notebook.name}, code cell {number}", "exec"), names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_reader_sees_what_changes_on_colab_and_small_outputs(notebook: Path) -> None:
    first = source(cells(notebook, "markdown")[1])
    assert "Colab" in first
    assert "%pip install 'clipdistill[" in first
    outputs = [output for cell in cells(notebook, "code") for output in cell["outputs"]]
    assert any(output["output_type"] in ("stream", "display_data") for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert notebook.stat().st_size < 200_000


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["ablation", "quick-start", "search"]
