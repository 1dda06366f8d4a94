"""Runs that cannot work say so before the first step, and a continuation that would be another run is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clipdistill.config import RunConfig
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, DataError, RecipeError
from clipdistill.evaluation.evaluate import Tasks, evaluate
from clipdistill.models.loading import load
from clipdistill.teachers.embed import embed
from clipdistill.training.loop import distill
from clipdistill.training.preflight import first_batch, preflight
from clipdistill.training.run_folder import read_log
from clipdistill.training.setup import prepare
from clipdistill.training.stages import distill as distill_in_stages
from tiny_runs import TINY, fail_at_step, tiny_run

DATA = "scenes:train?n=64"
MASKED = [{"contrast": "SI-ST"}, {"feature": "SI@masked>TI", "weight": {"grad_norm": 0.5}, "name": "mfd"}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    out = tmp_path_factory.mktemp("stored") / "store"
    embed(DATA, str(teacher), out, views=2, workers=0)
    return out


def run(out: Path, teacher: Path | str, **changes: Any) -> RunConfig:
    return tiny_run(out, **{"recipe": "clip-kd", "teachers": {"T": str(teacher)}, **changes})


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_log(folder / "log.jsonl")]


def interrupted(config: RunConfig, step: int = 5) -> RunConfig:
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, step)
        with pytest.raises(RuntimeError, match="power cut"):
            distill(config)
    return config


def colours(folder: Path, classes: dict[str, tuple[int, int, int]]) -> str:
    """Pictures of one colour each, a folder per class."""
    for name, colour in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(12):
            shade = np.clip(np.array(colour) + number, 0, 255).astype(np.uint8)
            pixels = np.broadcast_to(shade, (48, 48, 3)).copy()
            pixels[: number + 1, : number + 1] = 255  # no two pictures are the same
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return str(folder)


RED, GREEN, BLUE = (200, 10, 10), (10, 200, 10), (10, 10, 200)


def test_weights_by_gradient_norm_are_found_at_the_first_step_of_training(tmp_path: Path, teacher: Path) -> None:
    """Not in the preflight, whose random numbers are others: equal seeds give equal runs, and so does a restart."""
    once, again = (distill(run(tmp_path / name, teacher, recipe=MASKED)) for name in ("once", "again"))
    assert losses(once.folder) == losses(again.folder)
    distill(interrupted(run(tmp_path / "broken", teacher, recipe=MASKED), step=2), resume=True)
    assert losses(tmp_path / "broken") == losses(once.folder)
    setup = prepare(run(tmp_path / "other", teacher, recipe=MASKED))
    preflight(setup, tmp_path)
    assert bool(setup.graph.measured.isnan().all())  # type: ignore[union-attr]


def test_a_pruned_student_is_a_copy_of_the_model_behind_a_store(tmp_path: Path, teacher: Path, store: Path) -> None:
    live, stored = (
        prepare(run(tmp_path / "run", given, student={}, prune={"sparsity": 0.5})) for given in (teacher, store)
    )
    for name, value in live.student.module.state_dict().items():
        assert torch.equal(stored.student.module.state_dict()[name], value)


def test_a_continuation_with_other_views_data_or_teachers_is_refused(
    tmp_path: Path, teacher: Path, store: Path
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"sentence {n}" for n in range(30)))
    config = interrupted(
        run(
            tmp_path / "run",
            store,
            unpaired=[str(words)],
            recipe=[{"feature": "SI>TI"}, {"contrast": "SI-ST"}, {"contrast": "ST>ST", "name": "words"}],
        )
    )
    with pytest.raises(ConfigError, match=r"teacher T of the run .* is not the model it was"):
        distill(config.model_copy(update={"teachers": {"T": f"{store}?views=any"}}), resume=True)
    with pytest.raises(ConfigError, match="teachers: were T, now T and U"):
        distill(config.model_copy(update={"teachers": {"T": str(store), "U": str(teacher)}}), resume=True)
    words.write_text("\n".join(f"another {n}" for n in range(30)))
    with pytest.raises(ConfigError, match=r"data of the run .* have changed"):
        distill(config, resume=True)


def test_what_does_not_fit_in_a_later_stage_is_found_first_and_can_be_repaired(tmp_path: Path, store: Path) -> None:
    def staged(*later: dict[str, Any]) -> RunConfig:
        return run(tmp_path / "run", store, stages=[{"train": {"steps": 2}}, *later])

    with pytest.raises(RecipeError, match="Did you mean 'clip-kd'"):
        distill_in_stages(staged({"recipe": "clip-kt"}))
    with pytest.raises(ConfigError, match=r"bank\.size=1024 beside a batch of 16 needs 1040 samples"):
        distill_in_stages(staged({"recipe": "motis-2"}))
    assert not (tmp_path / "run").exists()
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, 2 + 1 + 1)
        with pytest.raises(RuntimeError, match="power cut"):
            distill_in_stages(staged({"train": {"steps": 3}}, {"recipe": "clip", "train": {"steps": 2}}))
    changed = staged({"train": {"steps": 3}}, {"recipe": "clip", "train": {"steps": 4}})
    folder = distill_in_stages(changed, resume=True).folder
    assert [len(losses(folder / f"stage-{n}")) for n in (1, 2, 3)] == [2, 3, 4]


def test_unpaired_captions_afford_no_synthetic_ones(tmp_path: Path, teacher: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"sentence {n}" for n in range(30)))
    recipe = [{"contrast": "SI-ST"}, {"feature": "ST@syn>TT@syn", "name": "syn"}]
    with pytest.raises(ConfigError, match="have captions only, and every term"):
        prepare(run(tmp_path / "run", teacher, recipe=recipe, unpaired=[str(words)], data=synthetic(tmp_path / "syn")))


def synthetic(folder: Path) -> str:
    folder.mkdir()
    lines = []
    source = pairs("scenes:train?n=24")
    for place in range(24):
        Image.fromarray(source[place].image).save(folder / f"{place}.png")  # type: ignore[arg-type]
        lines.append(json.dumps({"file_name": f"{place}.png", "text": f"picture {place}", "syn_text": ["drawn"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


def test_unpaired_pictures_teach_a_classifier_without_labels(tmp_path: Path, teacher: Path) -> None:
    data = colours(tmp_path / "data", {"red": RED, "green": GREEN})
    student = {"preset": "scenes-vit", "width": 16, "layers": 1}
    unpaired = [f"{data}?caption=none"]
    result = distill(
        run(tmp_path / "run", teacher, recipe="embed-kd-samples", data=data, student=student, unpaired=unpaired)
    )
    terms = set(next(read_log(result.folder / "log.jsonl"))["terms"])
    assert terms == {"label", "own_row", "centroids", "own_row unpaired 1"}


def test_copies_of_a_picture_are_no_hard_negatives(tmp_path: Path, teacher: Path) -> None:
    """Mining finds a picture's own copies first: they count as the same."""
    folder = tmp_path / "twice"
    folder.mkdir()
    source, lines = pairs("scenes:train?n=32"), []
    for place in range(64):
        Image.fromarray(source[place // 2].image).save(folder / f"{place}.png")  # type: ignore[arg-type]
        lines.append(json.dumps({"file_name": f"{place}.png", "text": f"caption {place}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    embed(str(folder), str(teacher), tmp_path / "store", workers=0)
    bank = {"size": 16, "neighbours": 2}
    setup = prepare(run(tmp_path / "run", tmp_path / "store", recipe="motis-2", data=str(folder), bank=bank))
    batch = first_batch(setup)
    rows, keys = setup.banks.rows(batch, 0)
    assert keys is not None
    copies = setup.teachers[0].embed(batch)["TI"] @ rows["TI@bank"].T > 1 - 1e-6
    mine = setup.banks.keys(batch)
    same = (mine[:, None, :] == keys[None]) & (mine[:, None, :] >= 0)
    assert copies.any()
    assert bool(same.any(dim=2)[copies].all())


def test_a_picture_without_a_caption_is_kept_out_of_the_bank(tmp_path: Path, teacher: Path) -> None:
    folder = Path(synthetic(tmp_path / "data"))
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines[3] = json.dumps({"file_name": "3.png", "text": ""})
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    embed(str(folder), str(teacher), tmp_path / "store", workers=0)
    bank = {"draw": "random", "size": 8}
    config = run(tmp_path / "run", tmp_path / "store", recipe="motis-2", data=str(folder), bank=bank)
    distill(config)
    assert len(losses(tmp_path / "run")) == 8
    setup = prepare(config.model_copy(update={"out": str(tmp_path / "other")}))
    batch = first_batch(setup)
    counts = {len(setup.banks.rows(batch, number)[0]["TT@bank"]) for number in range(20)}
    assert 7 in counts
    assert counts <= {7, 8}


def test_a_picture_that_could_not_be_embedded_is_left_out_everywhere(tmp_path: Path, teacher: Path) -> None:
    """It has no row, and would be skipped if it were read: neither batch nor bank meets it."""
    folder = Path(synthetic(tmp_path / "data"))
    (folder / "3.png").write_bytes(b"no picture")
    embed(str(folder), str(teacher), tmp_path / "store", workers=0)
    bank = {"size": 7, "neighbours": 3}
    config = run(tmp_path / "run", tmp_path / "store", recipe="motis-2", data=str(folder), bank=bank)
    setup = prepare(config)
    assert len(setup.source) == 23
    distill(config)
    assert len(losses(tmp_path / "run")) == 8


def test_a_teacher_may_serve_to_find_duplicates_alone(tmp_path: Path, store: Path) -> None:
    prepare(run(tmp_path / "run", store, recipe="clip", batches={"duplicates": 0.95}))
    two = {"T": str(store), "U": str(store)}
    with pytest.raises(ConfigError, match=r"teachers\.U is given, but recipe clip uses no teacher"):
        prepare(tiny_run(tmp_path / "run", recipe="clip", teachers=two, batches={"duplicates": 0.95}))


def test_a_classifier_is_not_tried_on_what_it_cannot_do(tmp_path: Path) -> None:
    data = colours(tmp_path / "data", {"red": RED, "green": GREEN})
    other = colours(tmp_path / "other", {"red": RED, "black": (0, 0, 0)})
    common = {"recipe": "classify", "data": data, "student": {"preset": "scenes-vit", "width": 16, "layers": 1}}
    with pytest.raises(ConfigError, match="has no text tower, so"):
        distill(tiny_run(tmp_path / "run", evaluate={"retrieval": "scenes:test?n=20"}, **common))
    with pytest.raises(DataError, match=r"'black' of .* is not among the 2 classes"):
        distill(tiny_run(tmp_path / "run", evaluate={"zeroshot": other}, **common))
    assert not (tmp_path / "run").exists()


def test_a_frozen_student_cannot_learn(tmp_path: Path, teacher: Path) -> None:
    student = {**TINY, "embed_dim": 24, "freeze": "image"}
    with pytest.raises(ConfigError, match="nothing can learn"):
        distill(run(tmp_path / "run", teacher, recipe=[{"feature": "SI>TI"}], student=student))


def test_a_pretrained_head_keeps_its_classes(tmp_path: Path) -> None:
    """Labels are numbered as the head has them, whatever their order and spelling."""
    first = colours(tmp_path / "first", {"c red": RED, "b green": GREEN, "a blue": BLUE})
    student = {"preset": "scenes-vit", "width": 32, "layers": 1}
    train = {"steps": 60, "lr": 3e-3}
    whole = distill(tiny_run(tmp_path / "whole", recipe="classify", data=first, student=student, train=train))
    folder = whole.student
    config = json.loads((folder / "config.json").read_text())
    order = ["C_RED", "a blue", "b green"]  # the head's rows are moved along
    config["id2label"], config["label2id"] = dict(enumerate(order)), {name: n for n, name in enumerate(order)}
    permuted = tmp_path / "permuted"
    shutil.copytree(folder, permuted)
    (permuted / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name][[2, 0, 1]].contiguous()
    save_file(weights, permuted / "model.safetensors", metadata={"format": "pt"})
    again = distill(
        tiny_run(tmp_path / "again", recipe="classify", data=first, student={"pretrained": str(permuted)}, train=train)
    )
    (found,) = evaluate({"again": load(str(again.student))}, Tasks(zeroshot=pairs(first)), workers=0)
    assert load(str(again.student)).classes == tuple(order)
    assert found.metrics["classify_top1"] == 100
    four = colours(tmp_path / "four", {"c red": RED, "b green": GREEN, "a blue": BLUE, "d white": (250, 250, 250)})
    with pytest.raises(DataError, match=r"'d white' of .* is not among the 3 classes"):
        prepare(tiny_run(tmp_path / "x", recipe="classify", data=four, student={"pretrained": str(permuted)}))


def test_data_that_do_not_fill_a_batch_are_named(tmp_path: Path, teacher: Path) -> None:
    chosen = run(tmp_path / "a", teacher, recipe="clip-kd", batches={"select": "hard", "super_batch": 9})
    size = chosen.train.batch_size
    told = f"{DATA}: a batch of {9 * size} (train.batch_size={size} x batches.super_batch=9) does not fit into 64"
    with pytest.raises(DataError) as caught:
        prepare(chosen)
    assert str(caught.value) == f"{told} samples. Lower batches.super_batch or train.batch_size."
    words = tmp_path / "words.txt"
    words.write_text("one\ntwo\nthree\n")
    recipe = [{"contrast": "SI-ST"}, {"contrast": "ST>ST", "name": "words"}]
    with pytest.raises(DataError, match=r"words\.txt: a batch of .* does not fit into 3 samples\. Lower it"):
        prepare(run(tmp_path / "b", teacher, recipe=recipe, teachers={}, unpaired=[str(words)]))


@pytest.mark.parametrize("momentum", [None, 0.1])
def test_batch_norms_that_forget_are_told(momentum: float | None, teacher: Path, tmp_path: Path) -> None:
    tower = {"model_type": "efficientnet", "width_coefficient": 0.05, "hidden_dim": 64, "depth_coefficient": 0.1}
    vision = tower | ({} if momentum is None else {"batch_norm_momentum": momentum})
    student = {"preset": "scenes-cnn", "vision": vision, "vocab_size": 300}
    findings = preflight(prepare(run(tmp_path, teacher, student=student)), tmp_path)
    told = [warning for warning in findings.warnings if "batch_norm_momentum: 0.1 in student.vision" in warning]
    assert len(told) == (momentum is None), findings
