"""What scores mean in an index: curves are held against what happens to queries that they were not learnt from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from clipdistill.errors import SearchError
from clipdistill.search import corpus_calibration
from clipdistill.search.calibrate import Calibration
from clipdistill.search.corpus_calibration import calibrate_index, read_labels, sample
from clipdistill.search.index import Index
from clipdistill.search.manifest import Manifest, Model
from clipdistill.search.probability import Curve
from clipdistill.search.runtime import Runtime
from clipdistill.search.searcher import Searcher
from search.drawn_index import row_of, write_index

WIDTH, PICTURES, KINDS = 16, 400, 12
OWN = Calibration(slope=10.0, offset=-1.0, prior=0.5, matched=20, unmatched=20, brier=0.2, ece=0.1)
MODEL = Model("model", "mark", WIDTH, "IT")


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


@dataclass
class Texts:
    """A model whose rows of texts are known; of a runtime, calibration asks no more."""

    rows: dict[str, NDArray[np.float32]]
    fingerprint: str = "mark"
    sides: str = "IT"
    calibration: Calibration | None = OWN
    asked: list[str] = field(default_factory=list)

    def texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        self.asked += captions
        return np.stack([self.rows[caption] for caption in captions])


class World:
    """Pictures of twelve kinds about as many centres; a caption's row is its picture's, some way off."""

    def __init__(self, seed: int) -> None:
        drawn = np.random.default_rng(seed)
        centres = unit(drawn.normal(size=(KINDS, WIDTH)))
        self.kinds = np.arange(PICTURES) % KINDS
        self.pictures = unit(centres[self.kinds] + 0.16 * drawn.normal(size=(PICTURES, WIDTH)))
        self.captions = [f"caption {place}" for place in range(PICTURES)]
        away = unit(self.pictures + 0.17 * drawn.normal(size=(PICTURES, WIDTH)))
        self.texts = dict(zip(self.captions, away, strict=True))

    def rows(self, captions: Sequence[str] | None = None, tagged: bool = True) -> list[dict[str, Any]]:
        told = self.captions if captions is None else captions
        return [
            row_of(str(at), self.pictures[at], caption=told[at], tags=[f"kind {self.kinds[at]}"] if tagged else [])
            for at in range(PICTURES)
        ]


@pytest.fixture(scope="module")
def world() -> World:
    return World(0)


@pytest.fixture(scope="module")
def index(world: World, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return write_index(tmp_path_factory.mktemp("calibrated") / "x.index", MODEL, world.rows())


def learnt(index: Index, texts: Texts, labels: Path | None = None) -> dict[str, dict[str, Any]]:
    return calibrate_index(index, cast("Runtime", texts), labels)


def gap(foretold: Any, came: Any) -> float:
    """How far mean probability and share of matches are apart, over five equal bins, weighted by how full they are."""
    bins = np.minimum((np.asarray(foretold) * 5).astype(int), 4)
    return sum(
        abs(float(np.mean(foretold[bins == one])) - float(np.mean(came[bins == one]))) * float(np.mean(bins == one))
        for one in np.unique(bins)
    )


def shown(cosines: NDArray[Any], match: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scores and matches of the ten best for each query, ``[Q, 10]``; every tenth query has no match in the index."""
    cosines = np.where(match & (np.arange(len(match)) % 10 == 0)[:, None], -2, cosines)
    best = np.argsort(-cosines, axis=1)[:, :10]
    return np.take_along_axis(cosines, best, axis=1), np.take_along_axis(match, best, axis=1).astype(float)


def foretold(entry: dict[str, Any], scores: NDArray[Any]) -> NDArray[Any]:
    best, rest = Calibration.from_dict(entry.get("best", entry)), Calibration.from_dict(entry.get("rest", entry))
    curve = Curve(best, rest, "")
    return np.array([curve.probabilities(list(row)) for row in scores])


def test_probabilities_hold_for_queries_of_another_day(
    world: World, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learnt from some captions; held against what a search shows for all the others."""
    monkeypatch.setattr(corpus_calibration, "MOST", 200)
    texts = Texts(world.texts)
    entry = learnt(index, texts)["text"]
    assert (entry["from"], entry["model"], entry["version"]) == ("captions", "mark", 1)
    assert {"best", "rest"} <= entry.keys()
    assert len(set(texts.asked)) == 200
    others = [place for place in range(PICTURES) if world.captions[place] not in set(texts.asked)]
    rows = np.stack([world.texts[world.captions[place]] for place in others])
    scores, came = shown(rows @ world.pictures.T, np.arange(PICTURES) == np.array(others)[:, None])
    said = foretold(entry, scores)
    assert (np.diff(said, axis=1) <= 0).all()
    for kind, part in (("best", np.s_[:, :1]), ("rest", np.s_[:, 1:])):
        known = entry.get(kind, entry)
        assert gap(said[part].ravel(), came[part].ravel()) < 0.08
        assert known["brier"] == pytest.approx(float(np.mean((said[part] - came[part]) ** 2)), abs=0.05)
    assert entry["best"]["prior"] == pytest.approx(came[:, 0].mean(), abs=0.08)
    assert entry["prior"] == pytest.approx(came.mean(), abs=0.02)


def test_pictures_have_the_curve_of_their_tags(world: World, index: Index) -> None:
    entry = learnt(index, Texts(world.texts))["image"]
    assert entry["from"] == "tags"
    cosines = world.pictures @ world.pictures.T
    np.fill_diagonal(cosines, -2)
    scores, came = shown(cosines, world.kinds[:, None] == world.kinds)
    assert entry["matched"] + entry["unmatched"] == PICTURES * 10
    assert entry["matched"] == pytest.approx(came.sum(), rel=0.01)  # other queries are those without a match
    assert gap(foretold(entry, scores).ravel(), came.ravel()) < 0.05


def test_the_same_words_in_another_case_are_a_match(world: World, tmp_path: Path) -> None:
    """Every second picture has its neighbour's caption: two matches for each query, and half as many queries."""
    captions = [f"caption {place // 2 * 2}" for place in range(PICTURES)]
    spelt = [caption.upper() if place % 2 else f" {caption}" for place, caption in enumerate(captions)]
    rows = world.rows(spelt)
    for place in range(1, PICTURES, 2):
        rows[place]["vector"] = rows[place - 1]["vector"]
    index = write_index(tmp_path / "x.index", MODEL, rows)
    asked = {text: world.texts[caption] for text, caption in zip(spelt, captions, strict=True)}
    texts = Texts(asked)
    entry = learnt(index, texts)["text"]
    assert len(texts.asked) == PICTURES // 2
    assert entry["matched"] % 2 == 0
    assert entry["matched"] > PICTURES * 0.8


@pytest.mark.parametrize("own", [True, False])
def test_captions_that_are_missing_or_all_alike_leave_the_models_own_curve(
    world: World, tmp_path: Path, own: bool
) -> None:
    names = ["" if place % 3 else f"folder {world.kinds[place]}" for place in range(PICTURES)]
    index = write_index(tmp_path / "x.index", MODEL, world.rows(names, tagged=False))
    texts = Texts(world.texts, calibration=OWN if own else None)
    entries = learnt(index, texts)
    assert texts.asked == []
    reason = "the index has 4 different captions, fewer than 20"
    if own:
        assert Calibration.from_dict(entries["text"]) == OWN
        assert (entries["text"]["from"], entries["text"]["reason"]) == ("model", reason)
    else:
        assert "slope" not in entries["text"]
        assert entries["text"]["reason"].startswith(reason)
    assert entries["image"]["reason"].startswith("pictures of the index have no tags")


def test_a_model_whose_scores_say_nothing_promises_nothing(world: World, tmp_path: Path) -> None:
    """Captions of an untrained model find their pictures by chance, or those of a broken one never."""
    index = write_index(tmp_path / "x.index", MODEL, world.rows(tagged=False))
    chance = dict(zip(world.captions, [-world.texts[caption] for caption in world.captions[::-1]], strict=True))
    entry = learnt(index, Texts(chance, calibration=None))["text"]
    assert "slope" not in entry or Calibration.from_dict(entry).probability([0.0, 0.5, 1.0]).max() < 0.02
    never = {caption: -world.pictures[at] for at, caption in enumerate(world.captions)}
    entry = learnt(index, Texts(never, calibration=None))["text"]
    assert "slope" not in entry
    assert "its captions do not say: 0 matched" in entry["reason"]


def test_what_the_index_does_not_hold_is_told_apart(world: World, index: Index) -> None:
    """Texts far from all pictures are no match, more likely than not; most captions' best hits are one."""
    index.manifest = replace(index.manifest, calibration=learnt(index, Texts(world.texts)))
    searcher = Searcher(index, cast("Runtime", Texts(world.texts)))
    known = searcher.search_many(np.stack([world.texts[caption] for caption in world.captions]), kind="text")
    assert np.mean([answer.nothing_matches is None for answer in known]) > 0.7
    strange = unit(np.random.default_rng(5).normal(size=(50, WIDTH)))
    unknown = searcher.search_many(strange, kind="text")
    assert np.mean([answer.nothing_matches is not None for answer in unknown]) > 0.8


def labelled(path: Path, world: World, places: Sequence[int]) -> Path:
    lines = []
    for place in places:
        best = np.argsort(-(world.pictures @ world.texts[world.captions[place]]))[:60:6]
        for found in best:
            match = int(world.kinds[found] == world.kinds[place])
            lines.append(json.dumps({"query": world.captions[place], "id": str(found), "match": match}))
    path.write_text("\n".join(lines) + "\n\n")
    return path


def test_labels_count_for_more_than_captions(world: World, index: Index, tmp_path: Path) -> None:
    """Somebody finds any picture of the kind a match: probabilities are those of that."""
    path = labelled(tmp_path / "labels.jsonl", world, range(0, 200, 2))
    entry = learnt(index, Texts(world.texts), path)["text"]
    assert entry["from"] == "labels"
    labels = read_labels(path)
    assert entry["matched"] == sum(label.match for label in labels)
    assert entry["unmatched"] == sum(not label.match for label in labels)
    other = read_labels(labelled(tmp_path / "others.jsonl", world, range(201, 400, 2)))
    scores = np.array([world.texts[label.query] @ world.pictures[int(label.id)] for label in other])
    came = np.array([float(label.match) for label in other])
    assert gap(Calibration.from_dict(entry).probability(scores), came) < 0.06


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is no label"),
        ('{"query": "a", "id": "1"}', "line 2 is no label"),
        ('{"query": "a", "id": "1", "match": 2}', "line 2 is no label"),
        ('{"query": "", "id": "1", "match": 1}', "line 2 is no label"),
        ('{"query": "caption 1", "id": "nobody", "match": 1}', "1 ids of the labels are not in .* 'nobody'"),
        ('{"query": "caption 1", "id": "1", "match": 1}', "2 matched and 0 unmatched pairs are too few"),
    ],
)
def test_labels_that_cannot_be_used_are_one_clear_error(
    world: World, index: Index, tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"query": "caption 1", "id": "1", "match": 1}\n' + line)
    with pytest.raises(SearchError, match=said):
        learnt(index, Texts(world.texts), path)
    with pytest.raises(SearchError, match=r"gone\.jsonl cannot be read"):
        read_labels(tmp_path / "gone.jsonl")


def test_a_students_queries_have_a_curve_of_their_own(world: World, index: Index) -> None:
    entries = learnt(index, Texts(world.texts, fingerprint="student"))
    assert entries["text"]["model"] == "student"
    assert "slope" in entries["text"]
    assert entries["image"]["reason"].startswith("its curve for pictures")


def test_copies_are_told_apart_by_how_like_pictures_are(world: World, index: Index, tmp_path: Path) -> None:
    copies = learnt(index, Texts(world.texts))["copies"]
    cosines = world.pictures @ world.pictures.T
    mean = float((cosines.sum() - PICTURES) / (PICTURES * (PICTURES - 1)))
    assert copies["mean"] == pytest.approx(mean, abs=0.03)
    assert copies["cosine"] == 0.98
    narrow = unit(world.pictures + 8 * np.eye(1, WIDTH))
    rows = [row_of(str(at), narrow[at]) for at in range(PICTURES)]
    found = learnt(write_index(tmp_path / "x.index", MODEL, rows), Texts({}))["copies"]
    assert found["mean"] > 0.98
    assert found["cosine"] == pytest.approx(1 - 0.04 * (1 - found["mean"]))


def test_rows_are_drawn_from_all_of_an_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_calibration, "_SAMPLE", 50)
    found = sample(index, ["id", "caption"])
    names = found["id"].to_pylist()
    assert len(set(names)) == 50
    assert found["caption"].to_pylist() == [f"caption {name}" for name in names]
    assert names == sample(index, ["id", "caption"])["id"].to_pylist()
    assert min(map(int, names)) < 50 < 350 < max(map(int, names))


def test_an_empty_index_has_no_curves(tmp_path: Path) -> None:
    index = write_index(tmp_path / "x.index", MODEL, [row_of("a", unit(np.ones(WIDTH)))])
    index.manifest = replace(index.manifest, count=1)
    assert Manifest.read(index.folder).calibration == {}
    entries = learnt(index, Texts({}, calibration=None))
    assert ["slope" in entries[kind] for kind in ("text", "image")] == [False, False]
