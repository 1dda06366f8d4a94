"""From queries to hits: scores are those of a naive computation, and what is left out is left out for a reason."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipdistill.errors import DataError, SearchError
from clipdistill.search.calibrate import Calibration
from clipdistill.search.filters import Filter
from clipdistill.search.index import Index
from clipdistill.search.manifest import Manifest, Model
from clipdistill.search.query import Answer, Options, Query
from clipdistill.search.runtime import Runtime
from clipdistill.search.searcher import Searcher
from search.drawn_index import row_of, write_index

COUNT = 60
CURVE = Calibration(slope=40.0, offset=-9.0, prior=0.3, matched=50, unmatched=100, brier=0.1, ece=0.02)


@pytest.fixture(scope="module")
def runtime(exported: tuple[Path, Any]) -> Runtime:
    return Runtime.open(exported[0], threads=1)


@pytest.fixture(scope="module")
def rows(runtime: Runtime) -> NDArray[np.float32]:
    """Unit rows about the model's own texts, so that queries find some nearer than others."""
    drawn = np.random.default_rng(0).normal(size=(COUNT, runtime.width)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def model_of(runtime: Runtime) -> Model:
    return Model(str(runtime.folder), runtime.fingerprint, runtime.width, runtime.sides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, runtime: Runtime, rows: NDArray[np.float32]) -> Path:
    """An index of 60 pictures: every second is of the beach, every third is large."""
    folder = tmp_path_factory.mktemp("searcher") / "photos.index"
    told = [
        {"tags": ["beach"] if place % 2 else [], "width": 2048 if place % 3 else 320, "caption": f"picture {place}"}
        for place in range(COUNT)
    ]
    write_index(folder, model_of(runtime), [row_of(f"{at:02d}", rows[at], **told[at]) for at in range(COUNT)])
    return folder


@pytest.fixture(scope="module")
def searcher(folder: Path) -> Searcher:
    return Searcher.open(folder, threads=1)


def calibrated(folder: Path, runtime: Runtime, **curves: Any) -> Searcher:
    """A searcher of that index whose manifest has curves."""
    index = Index.open(folder)
    entries = {kind: {"model": runtime.fingerprint, "version": 1, **entry} for kind, entry in curves.items()}
    index.manifest = replace(index.manifest, calibration=entries)
    return Searcher(index, runtime)


def unit(row: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(row / np.linalg.norm(row))


def assert_nearest(answer: Answer, row: NDArray[Any], rows: NDArray[Any], places: list[int], k: int = 10) -> None:
    """The hits are the best of those places by cosine, best first."""
    scores = {f"{place:02d}": float(rows[place] @ row) for place in places}
    expected = sorted(scores, key=lambda name: -scores[name])[:k]
    assert [hit.id for hit in answer.hits] == expected
    np.testing.assert_allclose([hit.score for hit in answer.hits], [scores[name] for name in expected], atol=1e-5)


@pytest.mark.parametrize("text", ["two dogs", "两只狗"])
def test_a_text_finds_what_is_nearest(searcher: Searcher, runtime: Runtime, rows: NDArray[Any], text: str) -> None:
    answer = searcher.search(Query({text: 1.0}))
    assert_nearest(answer, runtime.texts([text])[0], rows, list(range(COUNT)))
    assert answer.version == 1
    assert answer.hits[0].caption == f"picture {int(answer.hits[0].id)}"


def test_parts_are_added_by_their_weights(
    searcher: Searcher, runtime: Runtime, rows: NDArray[Any], picture: Callable[..., Image.Image]
) -> None:
    texts, seen = runtime.texts(["dogs", "at night"]), picture(3)
    given = np.arange(runtime.width, dtype=np.float32)
    query = Query({"dogs": 2.0, "at night": -0.5}, ((seen, 0.7),), {"07": 1.5, "08": -1.0}, ((given, 0.25),))
    total = 2 * texts[0] - 0.5 * texts[1] + 0.7 * runtime.images([seen])[0]
    row = unit(total + 1.5 * rows[7] - rows[8] + 0.25 * unit(given))
    np.testing.assert_allclose(searcher.embed(query), row, atol=1e-5)
    others = [place for place in range(COUNT) if place not in (7, 8)]
    assert_nearest(searcher.search(query), row, rows, others)


def test_more_like_a_picture_leaves_that_one_out(searcher: Searcher, rows: NDArray[Any]) -> None:
    answer = searcher.search(Query(ids={"11": 1.0}), Options(k=5))
    assert_nearest(answer, rows[11], rows, [place for place in range(COUNT) if place != 11], k=5)
    everything = searcher.search(Query(ids={"11": 1.0}), Options(k=500))
    assert len(everything.hits) == COUNT - 1


@pytest.mark.parametrize("exact", [False, True])
def test_a_filter_is_asked_of_every_picture(searcher: Searcher, rows: NDArray[Any], exact: bool) -> None:
    where = Filter.parse("tags has beach and not width < 1024")
    answer = searcher.search(Query(rows=((rows[4], 1.0),)), Options(k=100, where=where, exact=exact))
    assert_nearest(answer, rows[4], rows, [place for place in range(COUNT) if place % 2 and place % 3], k=100)


def test_where_no_picture_is_left_nothing_matches(searcher: Searcher) -> None:
    answer = searcher.search(Query({"a": 1.0}), Options(where=Filter.parse("tags has moon")))
    assert answer.hits == ()
    assert answer.nothing_matches == "no picture passes the filter"


def test_several_rows_have_the_answers_of_each(searcher: Searcher, rows: NDArray[Any]) -> None:
    options = Options(k=7, where=Filter.parse("width = 2048"))
    together = searcher.search_many(rows[:4] * 3, options)
    for row, answer in zip(rows, together, strict=False):
        alone = searcher.search(Query(rows=((row, 1.0),)), options)
        assert [hit.id for hit in answer.hits] == [hit.id for hit in alone.hits]
        assert_nearest(answer, row, rows, [place for place in range(COUNT) if place % 3], k=7)


def test_copies_of_a_better_hit_are_left_out_until_there_are_enough_others(
    tmp_path: Path, runtime: Runtime, rows: NDArray[Any]
) -> None:
    """The 30 nearest are the same picture, by their bytes or by their rows."""
    near = [unit(rows[0] + 0.004 * rows[place + 20]).astype(np.float32) for place in range(30)]
    copies = [row_of(f"copy {at}", rows[0], hash="same") for at in range(15)]
    copies += [row_of(f"near {at}", near[at]) for at in range(15)]
    copies += [row_of(f"unknown {at}", -rows[0], hash="") for at in range(1)]
    others = [row_of(f"{at:02d}", rows[at]) for at in range(1, 20)]
    index = write_index(tmp_path / "copies.index", model_of(runtime), [*copies, *others])
    searcher = Searcher(index, runtime)
    plain = searcher.search(Query(rows=((rows[0], 1.0),)), Options(k=6))
    assert all(hit.score > 0.99 for hit in plain.hits)
    found = searcher.search(Query(rows=((rows[0], 1.0),)), Options(k=6, distinct=True))
    order = sorted(range(1, 20), key=lambda place: -float(rows[place] @ rows[0]))
    assert found.hits[0].score > 0.99
    assert [hit.id for hit in found.hits[1:]] == [f"{place:02d}" for place in order[:5]]
    everything = searcher.search(Query(rows=((rows[0], 1.0),)), Options(k=50, distinct=True))
    assert len(everything.hits) == 21


def test_hits_have_the_probability_of_the_curve_for_their_query(
    folder: Path, runtime: Runtime, rows: NDArray[Any]
) -> None:
    searcher = calibrated(
        folder, runtime, text={"from": "captions", **CURVE.to_dict()}, image={"reason": "there are no tags"}
    )
    answer = searcher.search(Query({"dogs": 3.0}))
    for hit in answer.hits:
        assert hit.probability == pytest.approx(1 / (1 + np.exp(9 - 40 * hit.score)))
    assert answer.calibrated == "probabilities were learnt from the captions of this index"
    for mixed in (
        Query({"dogs": 1.0, "cats": 1.0}),
        Query({"dogs": -1.0}),
        Query({"dogs": 1.0}, ids={"01": 1.0}),
        Query(rows=((rows[0], 1.0),)),
    ):
        answer = searcher.search(mixed)
        assert {hit.probability for hit in answer.hits} == {None}
        assert answer.nothing_matches is None
        assert answer.calibrated.startswith("a query of several parts, or of rows, has no probabilities")
    like = searcher.search(Query(ids={"01": 1.0}))
    assert (like.hits[0].probability, like.calibrated) == (None, "there are no tags")
    (many,) = searcher.search_many(runtime.texts(["dogs"]), kind="text")
    assert [hit.probability for hit in many.hits] == pytest.approx(
        [hit.probability for hit in searcher.search(Query({"dogs": 1.0})).hits], abs=1e-4
    )


def test_only_hits_that_are_precise_enough_are_kept_and_nothing_is_said_so(
    folder: Path, runtime: Runtime, rows: NDArray[Any]
) -> None:
    entry = {"from": "tags", **replace(CURVE, offset=-30.0).to_dict()}
    searcher = calibrated(folder, runtime, image=entry, text=entry)
    plain = searcher.search_many(rows[:1], kind="image")[0]
    assert plain.nothing_matches is None  # the picture itself
    probabilities = [float(hit.probability or 0) for hit in plain.hits]
    assert probabilities == sorted(probabilities, reverse=True)
    least = (probabilities[1] + probabilities[2]) / 2
    kept = searcher.search_many(rows[:1], Options(min_precision=least), kind="image")[0]
    assert [hit.id for hit in kept.hits] == [hit.id for hit in plain.hits[:2]]
    far = searcher.search_many(-rows[:1], kind="image")[0]
    best = far.hits[0]
    assert best.probability is not None
    assert best.probability < 0.5
    figures = f"the best hit has a probability of {best.probability:.2f} (score {best.score:.3f})"
    assert far.nothing_matches == f"{figures}: more likely than not, it is no match"
    assert len(far.hits) == 10
    none = searcher.search_many(-rows[:1], Options(min_precision=0.9), kind="image")[0]
    assert none.hits == ()
    assert none.nothing_matches == f"no hit has a probability of 0.9 or more: {figures}"


def test_curves_of_another_models_queries_are_not_used(folder: Path, runtime: Runtime) -> None:
    index = Index.open(folder)
    entry = {"from": "captions", "model": "another", "version": 1, **CURVE.to_dict()}
    index.manifest = replace(index.manifest, calibration={"text": entry})
    answer = Searcher(index, runtime).search(Query({"dogs": 1.0}))
    assert answer.hits[0].probability is None
    assert answer.calibrated == "the index was calibrated for queries of another model"


def test_an_index_that_was_never_calibrated_has_the_models_own_curve(
    folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runtime.__dict__, "calibration", CURVE)
    searcher = Searcher(Index.open(folder), runtime)
    assert searcher.curve("text").fitted == CURVE.of_best(searcher.index.count)
    assert searcher.curve("text").told == "probabilities are those of the model on other pictures"
    assert searcher.curve("image").fitted is None


@pytest.mark.parametrize(
    ("query", "options", "said"),
    [
        (Query(), Options(), "the query is empty"),
        (Query({" ": 1.0}), Options(), "a text of the query is empty"),
        (Query({"a": 0.0}), Options(), "has the weight 0.0"),
        (Query({"a": float("nan")}), Options(), "has the weight nan"),
        (Query(ids={"nobody": 1.0}), Options(), "no picture with the id 'nobody'"),
        (Query(ids={"01": 1.0}, rows=()), Options(k=0), "0 hits are asked for"),
        (Query(rows=((np.ones(3, np.float32), 1.0),)), Options(), r"has the shape \[3\], the model's have \[24\]"),
        (Query(rows=((np.zeros(24, np.float32), 1.0),)), Options(), "has no direction"),
        (Query(rows=((np.full(24, np.inf, np.float32), 1.0),)), Options(), "has no direction"),
        (Query(rows=((np.ones(24, np.float32), 1.0), (np.ones(24, np.float32), -1.0))), Options(), "cancel out"),
        (Query({"a": 1.0, "b": 1.0}), Options(min_precision=0.9), "no precision can be promised: a query of several"),
        (Query({"a": 1.0}), Options(min_precision=1.5), "the least precision is 1.5"),
    ],
)
def test_what_is_no_query_is_one_clear_error(searcher: Searcher, query: Query, options: Options, said: str) -> None:
    with pytest.raises(SearchError, match=said):
        searcher.search(query, options)


def test_what_is_no_picture_is_one_clear_error(searcher: Searcher, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg"):
        searcher.search(Query(images=((tmp_path / "gone.jpg", 1.0),)))


def test_a_model_that_moved_or_is_another_is_refused(
    folder: Path, runtime: Runtime, tmp_path: Path, exported: tuple[Path, Any]
) -> None:
    index = Index.open(folder)
    index.manifest = replace(index.manifest, model=replace(index.manifest.model, path=str(tmp_path / "gone")))
    with pytest.raises(SearchError, match=r"is not at .*gone any more"):
        Searcher.open(index)
    assert Searcher.open(index, exported[0]).runtime.fingerprint == runtime.fingerprint
    index.manifest = replace(index.manifest, model=replace(index.manifest.model, fingerprint="another"))
    with pytest.raises(SearchError, match=rf"another.*{runtime.fingerprint}.*index rebuild .*--model"):
        Searcher.open(index, exported[0])


def test_a_searcher_goes_over_to_a_new_version_between_searches(
    tmp_path: Path, runtime: Runtime, rows: NDArray[Any]
) -> None:
    """Threads that search meanwhile see the old version or the new one, and nothing else."""
    folder = tmp_path / "growing.index"
    write_index(folder, model_of(runtime), [row_of(f"{at:02d}", rows[at]) for at in range(20)])
    searcher = Searcher.open(folder, threads=1)
    assert not searcher.reload()
    asked, seen, done, faults = Query({"dogs": 1.0}), [], threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            try:
                answer = searcher.search(asked, Options(k=100))
            except Exception as error:
                faults.append(error)
                return
            seen.append((answer.version, len(answer.hits)))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in (1, 2):
        write_index(
            folder, model_of(runtime), [row_of(f"{at:02d}", rows[at]) for at in range(20 * version, 20 * version + 20)]
        )
        assert searcher.index.version == version
        assert searcher.reload()
        assert searcher.index.version == version + 1
    done.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert set(seen) <= {(1, 20), (2, 40), (3, 60)}
    assert len(searcher.search(asked, Options(k=100)).hits) == 60


def test_a_new_version_of_another_model_is_asked_by_that_model(
    tmp_path: Path, runtime: Runtime, rows: NDArray[Any]
) -> None:
    folder = tmp_path / "rebuilt.index"
    write_index(folder, model_of(runtime), [row_of("a", rows[0])])
    searcher = Searcher.open(folder, threads=1)
    manifest = Manifest.read(folder)
    replace(manifest, model=replace(manifest.model, path=str(tmp_path / "gone"), fingerprint="new")).write(folder)
    with pytest.raises(SearchError, match="gone"):
        searcher.reload()
    assert [hit.id for hit in searcher.search(Query({"dogs": 1.0})).hits] == ["a"]
