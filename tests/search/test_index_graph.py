"""The graph of a large index: what it finds, beside filters, deletions and additions; and what tuning makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipdistill.search import lance
from clipdistill.search.contents import vectors
from clipdistill.search.filters import Filter
from clipdistill.search.lance import LanceTable
from clipdistill.search.manifest import Effort, Manifest, Model
from clipdistill.search.rescoring import cut, search_rows
from clipdistill.search.table import schema
from clipdistill.search.tuning import GOAL, Questions, tune

WIDTH, COUNT = 48, 2000
Made = tuple[Path, Manifest, np.ndarray]


@pytest.fixture(autouse=True, scope="module")
def few() -> Iterator[None]:
    """Two thousand rows are many here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lance, "FEW", 300)
        patch.setattr(lance, "MOST_OF", 1.0)
        yield


def clustered(count: int, seed: int) -> np.ndarray:
    """Unit rows around 100 centres, all of them to one side, as a model's are."""
    numbers, centres = np.random.default_rng(seed), np.random.default_rng(0).standard_normal((100, WIDTH))
    rows = centres[numbers.integers(0, 100, count)] + 0.6 * numbers.standard_normal((count, WIDTH)) + 0.5
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def rows_of(ids: range, rows: np.ndarray, manifest: Manifest) -> pa.Table:
    names = schema(manifest.width, manifest.full)
    values = {
        "id": [str(number) for number in ids],
        "vector": vectors(cut(rows, manifest.width)),
        "full": vectors(rows),
        "hash": [""] * len(ids),
        "location": [""] * len(ids),
        "caption": ["x"] * len(ids),
        "tags": [["even" if number % 2 == 0 else "odd", f"of {number % 50}"] for number in ids],
        "width": list(ids),
        "height": [1] * len(ids),
        "thumbnail": [b""] * len(ids),
    }
    return pa.table({name: values[name] for name in names.names}, schema=names)


@pytest.fixture(scope="module")
def made(few: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return published(tmp_path_factory.mktemp("made"))


def published(folder: Path, width: int = WIDTH) -> Made:
    """A table of 2,000 rows with its graph."""
    manifest, rows = Manifest(Model("m", "f", WIDTH, "IT"), None, width), clustered(COUNT, 1)
    table = LanceTable.create(manifest, folder)
    table.write(rows_of(range(COUNT), rows, manifest))
    made = table.publish()
    assert made.graph
    assert table.publish() == made
    return folder, replace(manifest, snapshot=made.snapshot, count=COUNT), rows


def recall(found: list[list[str]], cosines: np.ndarray, k: int) -> float:
    """The share of the true ``k`` nearest, of rows whose ids are their numbers."""
    shares = []
    for names, row in zip(found, cosines, strict=True):
        shares.append(np.mean(row[[int(name) for name in names]] >= np.sort(row)[-k] - 1e-6) * len(names) / k)
    return float(np.mean(shares))


def ids(found: list[list[object]]) -> list[list[str]]:
    return [[hit.id for hit in hits] for hits in found]  # type: ignore[attr-defined]


def test_tuning_finds_the_least_effort_that_finds_nearly_all(made: Made) -> None:
    folder, manifest, rows = made
    table, asked = LanceTable.open(manifest, folder), clustered(60, 2)
    effort = tune(table, manifest, Questions(asked, "rows"), graph=True)
    assert (effort.kind, effort.queries) == ("hnsw", 60)
    found = table.search(asked, 10, effort=effort)
    assert recall(ids(found), asked @ rows.T, 10) == pytest.approx(effort.recall, abs=1e-6)
    assert effort.recall >= GOAL
    for hits, query in zip(found, asked, strict=True):  # cosines are those of full precision
        np.testing.assert_allclose([hit.score for hit in hits], [rows[int(hit.id)] @ query for hit in hits], atol=1e-5)
    weak = replace(effort, ef=10, refine=1)
    assert recall(ids(table.search(asked, 10, effort=weak)), asked @ rows.T, 10) < effort.recall
    for k in (1, 100):
        assert recall(ids(table.search(asked, k, effort=effort)), asked @ rows.T, k) >= 0.97


def test_filters_are_exact_beside_the_graph(made: Made) -> None:
    folder, manifest, rows = made
    table, asked = LanceTable.open(manifest, folder), clustered(20, 3)
    numbers = np.arange(COUNT)
    for text, kept in (
        ("id = '7'", numbers == 7),
        ("tags has 'of 3'", numbers % 50 == 3),
        ("tags has even", numbers % 2 == 0),
        ("width >= 1000", numbers >= 1000),
    ):
        found = ids(table.search(asked, 10, Filter.parse(text), effort=Effort("hnsw", ef=64, refine=2)))
        cosines = np.where(kept, asked @ rows.T, -2)
        assert all(kept[int(name)] for names in found for name in names)
        assert {len(names) for names in found} == {min(10, kept.sum())}
        assert recall(found, cosines, min(10, int(kept.sum()))) >= 0.99


def test_the_graph_follows_what_is_written_and_deleted(made: Made, tmp_path: Path) -> None:
    folder, manifest, rows = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    table, reader = LanceTable.create(manifest, tmp_path), LanceTable.open(manifest, tmp_path)
    asked = clustered(30, 4)
    effort = Effort("hnsw", ef=128, refine=2)
    before = ids(reader.search(asked, 10, effort=effort))
    more = clustered(200, 5)
    table.write(rows_of(range(1900, 2100), more, manifest))  # half of them in place of others
    table.delete([str(number) for number in range(500)])
    made = table.publish()
    assert ids(reader.search(asked, 10, effort=effort)) == before
    now = LanceTable.open(replace(manifest, snapshot=made.snapshot), tmp_path)
    assert now.count() == 1600
    cosines = asked @ np.concatenate([np.zeros_like(rows[:500]), rows[500:1900], more]).T
    cosines[:, :500] = -2
    assert recall(ids(now.search(asked, 10, effort=effort)), cosines, 10) >= 0.99
    assert recall(ids(now.search(asked, 10, exact=True)), cosines, 10) == 1


def test_few_dimensions_are_searched_and_all_compared(tmp_path: Path) -> None:
    _, manifest, rows = published(tmp_path, width=32)
    table, asked = LanceTable.open(manifest, tmp_path), clustered(40, 6)
    effort = tune(table, manifest, Questions(asked, "rows"), graph=True)
    assert effort.rescore is not None
    assert effort.recall >= GOAL
    found = search_rows(table, manifest, asked, 10, effort=effort)
    assert recall(ids(found), asked @ rows.T, 10) == pytest.approx(effort.recall, abs=1e-6)
    exact = search_rows(table, manifest, asked, 10, exact=True)
    assert recall(ids(exact), asked @ rows.T, 10) == 1
