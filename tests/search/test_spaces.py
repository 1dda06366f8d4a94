"""The teacher's gallery with the student's queries: allowed to a student that learnt its teacher's own rows, alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdistill.data.sources import pairs
from clipdistill.errors import SearchError
from clipdistill.export.onnx import export
from clipdistill.models.loading import load
from clipdistill.search.corpus_calibration import recalibrate
from clipdistill.search.index import Index
from clipdistill.search.manifest import Model
from clipdistill.search.query import Options, Query
from clipdistill.search.runtime import Runtime
from clipdistill.search.searcher import Searcher
from clipdistill.training.loop import distill
from search.drawn_index import row_of, write_index
from tiny_runs import TINY, tiny_run

DATA = "scenes:train?n=64&mismatch=0"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A teacher, and a smaller student that learnt its rows, exported."""
    root = tmp_path_factory.mktemp("pair")
    teacher = distill(tiny_run(root / "teacher", data=DATA, student={**TINY, "width": 32}, train={"steps": 30}))
    recipe: dict[str, Any] = {"recipe": "clip-kd-fd", "teachers": {"T": str(teacher.student)}}
    student = distill(tiny_run(root / "student", data=DATA, **recipe, train={"steps": 40, "lr": 3e-3}))
    export(student.student, root / "exported", precision="float32")
    return load(str(teacher.student)), root / "exported"


@pytest.fixture(scope="module")
def index(pair: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The teacher's gallery of the drawn pictures."""
    teacher, source = pair[0], pairs(DATA)
    samples = [source[place] for place in range(len(source))]
    pixels = [teacher.transform(Image.fromarray(np.asarray(sample.picture))) for sample in samples]
    with torch.no_grad():
        vectors = teacher.images(
            {name: torch.stack([torch.from_numpy(one[name]) for one in pixels]) for name in pixels[0]}
        )
    vectors = torch.nn.functional.normalize(vectors).numpy()
    rows = [row_of(sample.id, vectors[at], caption=sample.captions[0]) for at, sample in enumerate(samples)]
    model = Model("teacher", teacher.fingerprint, teacher.width, "IT")
    return write_index(tmp_path_factory.mktemp("gallery") / "photos.index", model, rows)


@pytest.fixture
def altered(pair: tuple[Any, Path], tmp_path: Path) -> Callable[..., Path]:
    """Copies the student with another record."""

    def make(**changes: Any) -> Path:
        folder = tmp_path / "altered"
        shutil.copytree(pair[1], folder)
        path = folder / "clipdistill.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return folder

    return make


def test_an_exported_student_still_names_its_teacher(pair: tuple[Any, Path]) -> None:
    assert Runtime.open(pair[1]).record["space"] == {"fingerprint": pair[0].fingerprint, "sides": "IT"}


def test_a_students_queries_find_in_the_teachers_gallery_what_the_teachers_do(
    pair: tuple[Any, Path], index: Index
) -> None:
    student, k = Searcher.open(index, pair[1], threads=1), 10
    names = [name for batch in index.table.scan(["id"]) for name in batch["id"].to_pylist()]
    vectors = index.vectors(names)
    gallery = np.stack([vectors[name] for name in names])
    shared = []
    for caption in index.rows(names[:20], ["caption"])["caption"].to_pylist():
        answer = student.search(Query({caption: 1.0}), Options(k=k))
        scores = np.sort(gallery @ student.runtime.texts([caption])[0])[::-1][:k]
        np.testing.assert_allclose([hit.score for hit in answer.hits], scores, atol=1e-5)
        with torch.no_grad():
            row = pair[0].texts(pair[0].tokenize([caption])).numpy()[0]
        best = {names[place] for place in np.argsort(-(gallery @ row))[:k]}
        shared.append(len(best & {hit.id for hit in answer.hits}) / k)
    assert np.mean(shared) > 2 * k / index.count  # twice what chance gives


def test_the_curve_of_a_students_queries_is_its_own(pair: tuple[Any, Path], index: Index) -> None:
    entries = recalibrate(index.folder, model=pair[1])
    assert entries["text"]["model"] == Runtime.open(pair[1]).fingerprint
    student = Searcher.open(index.folder, pair[1], threads=1)
    assert student.index.manifest.calibration == entries
    hit = student.search(Query({"a circle": 1.0})).hits[0]
    assert student.curve("text").probabilities([hit.score]) == [hit.probability]


@pytest.mark.parametrize("space", [None, {"fingerprint": "another", "sides": "IT"}])
def test_a_model_of_another_space_is_refused(index: Index, altered: Callable[..., Path], space: Any) -> None:
    folder = altered(space=space)
    told = rf"{index.manifest.model.fingerprint}.*{Runtime.open(folder).fingerprint}.*index rebuild .*recipe best"
    with pytest.raises(SearchError, match=told):
        Searcher.open(index, folder)


def test_a_side_that_was_not_learnt_is_refused(index: Index, altered: Callable[..., Path]) -> None:
    mark = {"fingerprint": index.manifest.model.fingerprint, "sides": "I"}
    searcher = Searcher.open(index, altered(space=mark), threads=1)
    with pytest.raises(SearchError, match=r"did not learn its teacher's rows of texts"):
        searcher.search(Query({"a circle": 1.0}))
    assert searcher.search(Query(images=((Image.new("RGB", (64, 64)), 1.0),))).hits


def test_a_student_of_another_width_is_refused(index: Index, altered: Callable[..., Path]) -> None:
    mark = {"fingerprint": index.manifest.model.fingerprint, "sides": "IT"}
    with pytest.raises(SearchError, match=r"rows of 8 numbers, .* holds rows of 16"):
        Searcher.open(index, altered(space=mark, width=8))
