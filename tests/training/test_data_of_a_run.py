"""Where a run's rows come from: stores, banks, super-batches, neighbours, unpaired data, the student's own average."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clipdistill.algebra.nodes import Node
from clipdistill.config import AugmentConfig, RunConfig
from clipdistill.data.batches import Batch
from clipdistill.data.sources import from_samples, pairs
from clipdistill.data.views import Augmentation
from clipdistill.errors import ConfigError, RecipeError, StoreError
from clipdistill.teachers.embed import embed
from clipdistill.teachers.stored import StoredTeacher
from clipdistill.training.banks import stored_rows
from clipdistill.training.loop import distill
from clipdistill.training.preflight import first_batch
from clipdistill.training.run_folder import read_log
from clipdistill.training.setup import Setup, prepare
from clipdistill.training.stages import distill as distill_in_stages
from clipdistill.training.stages import stage_runs
from tiny_runs import TINY, fail_at_step, tiny_run

DATA = "scenes:train?n=64"
HARD = [
    {"contrast": "SI-ST", "name": "task"},
    {"contrast": "ST>TI|TI@bank, SI>TT|TT@bank", "scale": 10, "name": "hard"},
]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """The teacher's rows of whole pictures."""
    out = tmp_path_factory.mktemp("whole") / "store"
    embed(DATA, str(teacher), out, workers=0, dtype="float32", precision="float32")
    return out


@pytest.fixture(scope="session")
def views(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """The teacher's rows of three strong crops of each picture."""
    out = tmp_path_factory.mktemp("views") / "store"
    crops = Augmentation(crop=(0.3, 1.0), flip=0.5)
    embed(DATA, str(teacher), out, views=3, seed=5, augmentation=crops, workers=0, dtype="float32", precision="float32")
    return out


def run(out: Path, teacher: Path | str, **changes: Any) -> RunConfig:
    return tiny_run(out, **{"recipe": "clip-kd", "teachers": {"T": str(teacher)}, **changes})


def test_layers_begin_as_the_identity_where_there_is_a_teacher(tmp_path: Path, teacher: Path) -> None:
    for config, silent in (
        (run(tmp_path / "a", teacher), True),
        (run(tmp_path / "b", teacher, student={"pretrained": str(teacher)}), False),
        (tiny_run(tmp_path / "c"), False),
    ):
        module: Any = prepare(config).student.module
        assert (not module.vision_model.encoder.layers[0].mlp.fc2.weight.any()) == silent
        assert module.text_model.encoder.layers[0].mlp.fc2.weight.any()


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(folder / "log.jsonl")]


@pytest.mark.parametrize("kind", ["store", "views"])
def test_a_store_trains_the_student_that_its_model_trains(
    kind: str, tmp_path: Path, teacher: Path, request: pytest.FixtureRequest
) -> None:
    """The same pixels, tokens and targets: live teacher and stored one differ by rounding alone."""
    folder: Path = request.getfixturevalue(kind)
    crops = {"crop": (0.3, 1.0), "flip": 0.5}
    stored = distill(run(tmp_path / "stored", folder))
    config = run(tmp_path / "live", teacher, augment="whole" if kind == "store" else crops, seed=0)
    if kind == "store":
        live = distill(config)
        assert losses(stored.folder) == pytest.approx(losses(live.folder), rel=1e-4)
    setup = prepare(run(tmp_path / "other", folder))
    batch = first_batch(setup)
    assert setup.batches.views == (None if kind == "store" else setup.teachers[0].store.views)  # type: ignore[attr-defined]
    live_setup = prepare(run(tmp_path / "again", teacher))
    live_setup.batches.views = setup.batches.views
    twin = live_setup.batches.assemble(batch.view, batch.positions)
    assert torch.equal(twin.pixels["S"]["pixel_values"], batch.pixels["S"]["pixel_values"])
    expected, found = live_setup.teachers[0].embed(twin), setup.teachers[0].embed(batch)
    for node in ("TI", "TT"):
        rows = torch.nn.functional.normalize(expected[node], dim=1)
        torch.testing.assert_close(found[node], rows, atol=2e-3, rtol=0)


def test_a_stored_run_resumes_to_the_bit(tmp_path: Path, views: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = distill(run(tmp_path / "whole", views))
    broken = run(tmp_path / "broken", views)
    with monkeypatch.context() as patch:
        fail_at_step(patch, 5)
        with pytest.raises(RuntimeError, match="power cut"):
            distill(broken)
    distill(broken, resume=True)
    assert losses(whole.folder) == losses(tmp_path / "broken")


def test_views_that_the_store_does_not_hold_are_refused(tmp_path: Path, store: Path, views: Path) -> None:
    crops = {"crop": [0.5, 1.0]}
    with pytest.raises(
        ConfigError, match=r"asks for views drawn by crop \(0\.5, 1\.0\).*holds whole pictures.*views=any"
    ):
        prepare(run(tmp_path / "run", store, augment=crops))
    with pytest.raises(ConfigError, match=r"asks for whole, but .* holds 3 views of each picture drawn by crop"):
        prepare(run(tmp_path / "run", views, augment="whole"))
    setup = prepare(run(tmp_path / "run", f"{store}?views=any", augment=crops))
    assert setup.batches.views is not None
    two = {"T": str(store), "U": str(views)}
    with pytest.raises(ConfigError, match="a picture can be shown one way only"):
        prepare(run(tmp_path / "run", "", recipe="mobileclip", teachers=two))
    with pytest.raises(ConfigError, match="augment=stored needs a stored teacher"):
        prepare(tiny_run(tmp_path / "run", augment="stored"))


def test_samples_without_a_row_are_named_or_left_out(tmp_path: Path, store: Path) -> None:
    more = "scenes:train?n=80"
    with pytest.raises(StoreError, match=r"has no row for 16 of the 80 samples .*, first .*missing=skip"):
        prepare(run(tmp_path / "run", store, data=more))
    setup = prepare(run(tmp_path / "run", f"{store}?missing=skip", data=more))
    assert len(setup.source) == 64
    made = pairs(DATA)
    assert {setup.source[place].id for place in range(64)} == {made[place].id for place in range(64)}


def bank_of(setup: Setup, batch: Batch, number: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    rows, keys = setup.banks.rows(batch, number)
    assert keys is not None
    return rows, keys


def test_a_mined_bank_holds_the_nearest_stored_rows(tmp_path: Path, store: Path) -> None:
    bank = {"draw": "mined", "size": 16, "neighbours": 24}
    setup = prepare(run(tmp_path / "run", store, recipe=HARD, bank=bank))
    batch = first_batch(setup)
    rows, keys = bank_of(setup, batch)
    assert {node: list(matrix.shape) for node, matrix in rows.items()} == {"TI@bank": [16, 24], "TT@bank": [16, 24]}
    assert keys.shape == (16, 4)
    own = setup.teachers[0].embed(batch)["TI"]
    made = pairs(DATA)
    everything = setup.teachers[0].store.rows("I", [made[place].id for place in range(64)])  # type: ignore[attr-defined]
    near = own.numpy().astype(np.float64) @ everything.T.astype(np.float64)
    near[np.arange(len(batch.positions)), batch.positions] = -np.inf
    ranked = np.argsort(-near, axis=1)[:, :24].T.ravel().tolist()  # the nearest of every row, then the second nearest
    expected = [place for place in dict.fromkeys(ranked) if place not in batch.positions][:16]
    assert len(expected) == 16
    np.testing.assert_allclose(rows["TI@bank"].numpy(), everything[expected], atol=1e-6)
    distill(run(tmp_path / "trained", store, recipe=HARD, bank=bank))


@pytest.mark.parametrize("draw", ["random", "queue"])
def test_a_bank_changes_with_the_step_and_not_with_a_restart(draw: str, tmp_path: Path, store: Path) -> None:
    setup, again = (
        prepare(run(tmp_path / "run", store, recipe=HARD, bank={"draw": draw, "size": 16})) for _ in range(2)
    )
    batch = first_batch(setup)
    early, late = bank_of(setup, batch, 1)[0]["TI@bank"], bank_of(setup, batch, 3)[0]["TI@bank"]
    assert not torch.equal(early, late)
    assert torch.equal(bank_of(again, batch, 3)[0]["TI@bank"], late)


def test_a_bank_needs_a_store(tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(RecipeError, match=r"term hard .* needs stored rows for TI@bank.*clipdistill embed"):
        prepare(run(tmp_path / "run", teacher, recipe=HARD))


def test_near_pictures_count_as_the_same(tmp_path: Path, store: Path) -> None:
    plain = prepare(run(tmp_path / "run", store))
    setup = prepare(run(tmp_path / "run", store, batches={"duplicates": 0.5}))
    batch = first_batch(setup)
    keys = setup.banks.keys(batch)
    assert keys.shape == (16, 4)
    assert len(set(keys[:, 3].tolist())) < 16
    assert not torch.equal(setup.losses(batch).terms["task"], plain.losses(batch).terms["task"])
    with pytest.raises(ConfigError, match="compares stored embeddings"):
        prepare(tiny_run(tmp_path / "run", batches={"duplicates": 0.9}))


def labelled(folder: Path, classes: int = 3) -> str:
    """Scenes with a label for every picture."""
    from PIL import Image

    source = pairs(DATA)
    for place in range(48):
        pixels = source[place].image
        assert isinstance(pixels, np.ndarray)
        path = folder / f"class {place % classes}" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return str(folder)


def test_class_centroids_need_no_teacher_while_training(tmp_path: Path, teacher: Path) -> None:
    """The same centroids from a model and from its store; afterwards nothing of the model is held."""
    data = labelled(tmp_path / "data")
    embed(data, str(teacher), tmp_path / "store", workers=0, dtype="float32", precision="float32")
    common = {"recipe": "embed-kd", "data": data, "student": {"preset": "scenes-vit", "width": 16, "layers": 1}}
    live = prepare(run(tmp_path / "live", teacher, bank={"per_class": 5}, **common))
    stored = prepare(run(tmp_path / "stored", tmp_path / "store", bank={"per_class": 5}, **common))
    assert live.student.classes == ("class 0", "class 1", "class 2")
    assert [type(teacher).__name__ for teacher in (*live.teachers, *stored.teachers)] == ["Retired", "Retired"]
    rows = torch.nn.functional.normalize(live.banks.fixed["TI@classes"], dim=1)
    found = torch.nn.functional.normalize(stored.banks.fixed["TI@classes"], dim=1)
    torch.testing.assert_close(found, rows, atol=1e-5, rtol=0)
    batch = first_batch(live)
    assert batch.labels is not None
    assert [live.source[place].label for place in batch.positions] == [f"class {n}" for n in batch.labels.tolist()]


def test_a_dual_encoder_tells_classes_by_its_prompts(tmp_path: Path, teacher: Path) -> None:
    data = labelled(tmp_path / "data")
    student = {"preset": "scenes-vit", "width": 16, "layers": 1}
    setup = prepare(run(tmp_path / "run", teacher, recipe="vanilla-kd", data=data, student=student))
    batch = first_batch(setup)
    rows = setup.teachers[0].embed(batch)
    assert rows["TI@logits"].shape == (16, 3)
    with pytest.raises(RecipeError, match=r"needs node SI@logits, which nobody provides.*classifier head"):
        prepare(run(tmp_path / "run", teacher, recipe="vanilla-kd", data=data))
    folder = distill(run(tmp_path / "trained", teacher, recipe="vanilla-kd", data=data, student=student)).folder
    assert (folder / "student" / "config.json").is_file()


def test_super_batches_are_narrowed_to_the_batch(tmp_path: Path, teacher: Path, store: Path) -> None:
    """The rows kept are some of the super-batch, the same whether the reference runs or is stored."""
    kept: list[list[str]] = []
    for reference in (teacher, store):
        batches = {"select": "learnability", "super_batch": 3}
        setup = prepare(run(tmp_path / "run", reference, recipe="clip", augment="whole", batches=batches))
        batch = first_batch(setup)
        assert len(batch.ids) == 48
        chosen = setup.chosen(batch, 7)
        assert setup.student.module.training
        assert len(set(chosen.ids)) == 16
        assert set(chosen.ids) < set(batch.ids)
        at = [batch.ids.index(name) for name in chosen.ids]
        assert torch.equal(chosen.pixels["S"]["pixel_values"], batch.pixels["S"]["pixel_values"][at])
        assert chosen.positions == [batch.positions[place] for place in at]
        kept.append(chosen.ids)
    assert kept[0] == kept[1]
    distill(run(tmp_path / "hard", "", recipe="clip", teachers={}, batches={"select": "hard", "super_batch": 2}))
    with pytest.raises(ConfigError, match=r"compares the student with a reference: add teachers\.T"):
        prepare(tiny_run(tmp_path / "run", batches={"select": "learnability"}))


def test_batches_of_neighbours_are_nearer_than_random_ones(tmp_path: Path, store: Path, teacher: Path) -> None:
    near = prepare(run(tmp_path / "run", store, batches={"neighbours": 4}))
    random = prepare(run(tmp_path / "run", store))

    def similarity(setup: Setup) -> float:
        values = []
        for epoch, rows in setup.order.walk(0, 4):
            embedded = setup.teachers[0].embed(setup.batches.assemble(epoch, rows))["TI"]
            similar = embedded @ embedded.T
            values.append(float(similar.fill_diagonal_(-1).max(dim=1).values.mean()))
        return float(np.mean(values))

    assert similarity(near) > similarity(random)
    with pytest.raises(ConfigError, match="needs stored embeddings of the data"):
        prepare(run(tmp_path / "run", teacher, batches={"neighbours": 4}))


def test_unpaired_data_add_the_terms_they_afford(tmp_path: Path, teacher: Path) -> None:
    data = labelled(tmp_path / "pictures")
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"a sentence about number {n}" for n in range(40)))
    unpaired = [f"{data}?caption=none", str(words)]
    result = distill(run(tmp_path / "run", teacher, unpaired=unpaired))
    terms = set(next(read_log(result.folder / "log.jsonl"))["terms"])
    assert terms == {"task", "crd", "fd_image", "fd_text", "icl", "fd_image unpaired 1", "fd_text unpaired 2"}
    with pytest.raises(ConfigError, match=r"have pictures only, and every term of recipe affinity needs more"):
        prepare(run(tmp_path / "other", teacher, recipe="affinity", unpaired=unpaired))
    with pytest.raises(ConfigError, match="have pictures and captions"):
        prepare(run(tmp_path / "other", teacher, unpaired=["scenes:train?n=64"]))


def test_unpaired_pictures_may_be_stored_too(tmp_path: Path, teacher: Path, store: Path) -> None:
    """Of pictures alone only picture rows are read; those without a row are named before the first step."""
    data = labelled(tmp_path / "pictures")
    unpaired = [f"{data}?caption=none"]
    with pytest.raises(StoreError, match="has no row for 48 of the 48 samples"):
        prepare(run(tmp_path / "run", store, unpaired=unpaired))
    both = embed(f"{data}?caption=none", str(teacher), tmp_path / "more", workers=0)
    assert both is not None
    result = distill(
        run(
            tmp_path / "run",
            tmp_path / "more",
            recipe=[{"contrast": "SI-ST"}, {"feature": "SI>TI", "name": "fd"}],
            data=data,
            unpaired=unpaired,
        )
    )
    assert "fd unpaired 1" in next(read_log(result.folder / "log.jsonl"))["terms"]


def test_a_teacher_called_self_follows_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"recipe": "self-kd", "train": {"ema": 0.5, "steps": 6}}
    whole = distill(run(tmp_path / "whole", "self", **common))
    entries = list(read_log(whole.folder / "log.jsonl"))
    assert all(entry["terms"]["earlier_self"] >= 0 for entry in entries)
    assert entries[0]["terms"]["earlier_self"] == pytest.approx(0, abs=1e-5)  # the average begins as the student
    assert entries[-1]["terms"]["earlier_self"] > 1e-6
    broken = run(tmp_path / "broken", "self", **common)
    with monkeypatch.context() as patch:
        fail_at_step(patch, 4)
        with pytest.raises(RuntimeError, match="power cut"):
            distill(broken)
    distill(broken, resume=True)
    assert losses(whole.folder) == losses(tmp_path / "broken")
    with pytest.raises(ConfigError, match=r"add train\.ema=0\.999"):
        run(tmp_path / "run", "self", recipe="self-kd")


def test_matryoshka_students_learn_every_width(tmp_path: Path, teacher: Path) -> None:
    result = distill(run(tmp_path / "run", teacher, student={**TINY, "matryoshka": [8, 4]}))
    terms = set(next(read_log(result.folder / "log.jsonl"))["terms"])
    assert {"task", "task@8", "task@4", "fd_image@4"} <= terms
    with pytest.raises(RecipeError, match=r"below the student's, 16"):
        prepare(run(tmp_path / "other", teacher, student={**TINY, "matryoshka": [16]}))


def test_motis_in_stages_tunes_one_tower_after_the_other(tmp_path: Path, store: Path) -> None:
    stages = [
        {"train": {"steps": 2}},
        {"recipe": "motis-2", "student": {"freeze": "text"}, "train": {"steps": 2}},
        {"recipe": "motis-2", "student": {"freeze": "image"}, "train": {"steps": 2}},
    ]
    config = run(tmp_path / "run", store, recipe="motis", stages=stages, bank={"size": 8, "neighbours": 4})
    folder = distill_in_stages(config).folder
    weights = [load_file(folder / f"stage-{number}" / "student" / "model.safetensors") for number in (1, 2, 3)]

    def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
        return {name.partition("_")[0] for name in before if not torch.equal(before[name], after[name])}

    assert moved(weights[0], weights[1]) == {"vision", "visual", "logit"}
    assert moved(weights[1], weights[2]) == {"text", "logit"}


def test_rows_are_chosen_on_the_views_that_the_reference_saw(tmp_path: Path, views: Path) -> None:
    chosen = {"select": "learnability", "super_batch": 2}
    found = {
        recipe: prepare(tiny_run(tmp_path / "run", recipe=recipe, teachers={"T": str(views)}, batches=chosen)).config
        for recipe in ("clip", "clip-kd")
    }
    assert found["clip"].augment == found["clip-kd"].augment != AugmentConfig()


def test_a_stage_chooses_its_batches_by_its_own_settings(tmp_path: Path, store: Path) -> None:
    chosen = {"select": "learnability", "super_batch": 2}
    own = tiny_run(
        tmp_path / "a", teachers={"T": str(store)}, recipe="clip-kd", stages=[{}, {"recipe": "clip", "batches": chosen}]
    )
    assert [list(run.teachers) for run in stage_runs(own)] == [["T"], ["T"]]
    none = tiny_run(
        tmp_path / "b",
        teachers={"T": str(store)},
        recipe="clip-kd",
        batches=chosen,
        stages=[{}, {"recipe": "clip", "batches": {"select": None}}],
    )
    assert [list(run.teachers) for run in stage_runs(none)] == [["T"], []]


def test_a_staged_run_goes_on_under_another_spelling_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stages = [{"train": {"steps": 2}}, {"train": {"steps": 2}}]
    distill_in_stages(tiny_run(Path("run"), stages=stages))
    assert distill_in_stages(tiny_run(tmp_path / "run", stages=stages), resume=True).steps == 4
    (tmp_path / "run").rename(tmp_path / "moved")
    assert distill_in_stages(tiny_run(tmp_path / "moved", stages=stages), resume=True).steps == 4


def test_words_without_a_caption_are_near_to_nothing(tmp_path: Path, teacher: Path) -> None:
    samples = list(pairs("scenes:train?n=12"))
    samples[3] = replace(samples[3], texts={"": []})
    source = from_samples(samples)
    store = embed(source, str(teacher), tmp_path / "words", sides="T", workers=0)
    assert store is not None
    rows = stored_rows(StoredTeacher("T", store, [Node.parse("TT")], torch.device("cpu")), source, "T")
    assert [bool(row.any()) for row in rows] == [place != 3 for place in range(12)]
