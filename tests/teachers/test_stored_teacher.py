"""A stored teacher gives what the live one gives, to the precision of float16."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clipdistill.algebra.nodes import Node
from clipdistill.data.batches import Batches, Inlet
from clipdistill.data.sources import pairs
from clipdistill.data.views import Augmentation
from clipdistill.errors import ConfigError, StoreError
from clipdistill.models.loading import load
from clipdistill.teachers.embed import embed
from clipdistill.teachers.manifest import Side
from clipdistill.teachers.store import EmbeddingStore, finish, write_shard
from clipdistill.teachers.stored import Choices, StoredTeacher, open_teacher_store
from clipdistill.teachers.teacher import LiveTeacher

DATA = "scenes:train?n=30"
NODES = [Node.parse("TI"), Node.parse("TT")]
CPU = torch.device("cpu")


@pytest.mark.parametrize("views", [0, 3])
def test_stored_rows_are_the_live_ones(views: int, small_model: str, tmp_path: Path) -> None:
    augmentation = Augmentation(crop=(0.3, 0.8), flip=0.5) if views else Augmentation()
    data = "scenes:train?n=30&captions=3"
    store = embed(data, small_model, tmp_path / "s", views=views, seed=2, augmentation=augmentation, shard_size=9)
    assert store is not None
    source = pairs(data)
    live = LiveTeacher("T", load(small_model), NODES, nullcontext())
    stored = StoredTeacher("T", store, NODES, CPU)
    assert (stored.width, stored.scale) == (live.width, live.scale)
    assert {"TI", "TT", "TT@syn"} == set(stored.nodes)
    seen, read = Batches(source, {"T": live.inlet}, store.views, 7), Batches(source, {"T": stored.inlet}, None, 7)
    told = set()
    for epoch in range(4):
        rows = [epoch * 3 + 1, 0, 29, 11]
        there, here = live.embed(seen.assemble(epoch, rows)), stored.embed(read.assemble(epoch, rows))
        assert there.keys() == here.keys() == {"TI", "TT"}
        for node in there:
            assert here[node].dtype == torch.float32
            assert torch.allclose(here[node], F.normalize(there[node], dim=1), atol=2e-3)
        told.add(read.assemble(epoch, [0]).captions[""][0])
    assert len(told) > 1


class Whole:
    """Views that are none."""

    def view(self, sample_id: str, epoch: int, size: tuple[int, int]) -> None:
        return None


def test_a_view_that_is_none_is_the_whole_picture(small_model: str, tmp_path: Path) -> None:
    """Of a JPEG large enough to be decoded smaller for a view."""
    noise = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    Image.fromarray(noise).resize((1200, 900)).save(tmp_path / "a.jpg")
    inlets = {"T": Inlet.of(load(small_model), "I")}
    batches = [Batches(pairs(tmp_path), inlets, views).assemble(3, [0]) for views in (Whole(), None)]
    assert torch.equal(*(batch.pixels["T"]["pixel_values"] for batch in batches))


def test_only_what_is_asked_for_is_read(small_model: str, tmp_path: Path) -> None:
    store = embed(DATA, small_model, tmp_path / "s")
    assert store is not None
    batch = Batches(pairs(DATA), {}, None).assemble(0, [0, 1])
    teacher = StoredTeacher("U", store, [Node.parse("UI")], CPU)
    assert teacher.inlet == Inlet(None, None, ())
    assert set(teacher.embed(batch)) == {"UI"}
    with pytest.raises(StoreError, match="no row for 1 of the ids"):
        teacher.embed(replace(batch, ids=[batch.ids[0], "nobody"]))


def test_texts_by_id_and_sides_that_are_not_there(tmp_path: Path, small_model: str) -> None:
    made = embed(DATA, small_model, tmp_path / "s", sides="I")
    assert made is not None
    assert StoredTeacher("T", made, NODES, CPU).nodes == ["TI"]
    rows = np.eye(2, made.width, dtype=np.float16)
    write_shard(tmp_path / "by-id", "text", 0, ["x", "y"], rows)
    store = finish(tmp_path / "by-id", replace(made.manifest, sides={"text": Side(by="id")}))
    teacher = StoredTeacher("T", store, NODES, CPU)
    assert (teacher.nodes, teacher.inlet.texts) == (["TT"], ())
    batch = replace(Batches(pairs(DATA), {}, None).assemble(0, [0, 1]), ids=["y", "x"])
    assert np.array_equal(teacher.embed(batch)["TT"].numpy(), rows[::-1].astype(np.float32))


def test_a_stores_uri_says_how_it_is_used(tmp_path: Path, small_model: str) -> None:
    path = tmp_path / "s"
    embed(DATA, small_model, path, sides="I")
    for query, choices in (
        ("", Choices()),
        ("?views=any", Choices("any")),
        ("?missing=skip&views=any", Choices("any", True)),
    ):
        store, found = open_teacher_store(f"{path}{query}")
        assert isinstance(store, EmbeddingStore)
        assert found == choices
    with pytest.raises(ConfigError, match=r"unknown choice 'view'\. Did you mean 'views'"):
        open_teacher_store(f"{path}?view=any")
    with pytest.raises(ConfigError, match="missing is 'ignore', expected 'skip'"):
        open_teacher_store(f"{path}?missing=ignore")
    with pytest.raises(ConfigError, match="views is 'all', expected 'any' or 'mean'"):
        open_teacher_store(f"{path}?views=all")
    with pytest.raises(ConfigError, match="one row for each picture, and there is nothing to average"):
        open_teacher_store(f"{path}?views=mean")


def test_a_target_may_be_the_mean_of_all_views(tmp_path: Path, small_model: str) -> None:
    made = embed(DATA, small_model, tmp_path / "s", views=3, augmentation=Augmentation(crop=(0.5, 1.0)))
    assert made is not None
    store, choices = open_teacher_store(f"{tmp_path / 's'}?views=mean")
    teacher = StoredTeacher("T", store, NODES, CPU, choices)
    assert teacher.fingerprint not in (
        made.fingerprint,
        StoredTeacher("T", store, NODES, CPU, Choices("any")).fingerprint,
    )
    batch = Batches(pairs(DATA), {"T": teacher.inlet}, None).assemble(1, [3, 0, 7])
    views = np.stack([made.rows("I", batch.ids, view).astype(np.float64) for view in range(3)])
    assert np.abs(views[0] - views[1]).max() > 1e-3, "views that look alike would prove nothing"
    mean = (views / np.linalg.norm(views, axis=2, keepdims=True)).mean(axis=0)
    found = teacher.embed(batch)
    assert np.allclose(found["TI"], mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-6)
    assert np.array_equal(found["TT"], made.rows("T", batch.captions[""]).astype(np.float32))
    with pytest.raises(StoreError, match="is not a store"):
        open_teacher_store(f"{tmp_path}?views=any")
