"""Weight inheritance inside a run: manual, automatic, and stage after stage; all of it resumes to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import CLIPModel

from clipdistill.cli import main
from clipdistill.config import PruneConfig, make_run
from clipdistill.errors import ConfigError
from clipdistill.models.inherit import Sizes
from clipdistill.models.loading import load
from clipdistill.models.prune import sparsity_of
from clipdistill.training import checkpoint, stages
from clipdistill.training.loop import distill
from clipdistill.training.pruning import Pruning
from clipdistill.training.setup import prepare
from tiny_runs import TINY, fail_at_step, tiny_run

PRUNE: dict[str, Any] = {"sparsity": 0.5, "warmup": 2, "at": 4}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher with something to leave out: 2 layers, 2 heads, width 32."""
    out = tmp_path_factory.mktemp("big") / "run"
    distill(tiny_run(out, student={**TINY, "width": 32, "layers": 2, "text_layers": 2}, train={"steps": 4}))
    return str(out / "student")


def log_of(out: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "samples_per_second"} for entry in entries]


def same_weights(left: Path, right: Path) -> bool:
    a, b = (load_file(folder / "student" / "model.safetensors") for folder in (left, right))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def sizes_in(folder: Path | str, tower: str) -> Sizes:
    return Sizes.of(getattr(CLIPModel.from_pretrained(folder).config, f"{tower}_config"))


def test_a_student_starts_with_its_teachers_weights(tmp_path: Path, big: str) -> None:
    student = {"preset": "scenes-student", "width": 16, "heads": 1, "layers": 1, "text_layers": 2, "inherit": "even"}
    config = tiny_run(tmp_path / "run", recipe="clip-kd", teachers={"T": big}, student=student)
    setup = prepare(config)
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    theirs = load(big).module.state_dict()[name]
    assert torch.equal(setup.student.module.state_dict()[name], theirs[:64, :16])
    distill(config)
    assert sizes_in(tmp_path / "run" / "student", "vision") == Sizes(1, 16, 1, 64)


def test_inheriting_from_a_model_that_teaches_nothing(tmp_path: Path, big: str) -> None:
    student = {"preset": "scenes-student", "width": 16, "layers": 1, "text_layers": 1}
    student |= {"inherit": "tinyclip", "inherit_from": big}
    setup = prepare(tiny_run(tmp_path / "run", student=student))
    name = "visual_projection.weight"
    assert torch.equal(setup.student.module.state_dict()[name], load(big).module.state_dict()[name][:, :16])
    with pytest.raises(ConfigError, match="add a teacher"):
        prepare(tiny_run(tmp_path / "run", student={**TINY, "inherit": "tinyclip"}))


@pytest.mark.parametrize("layers", [False, True])
def test_a_pruned_student_is_an_ordinary_smaller_clip(layers: bool, tmp_path: Path, big: str) -> None:
    out = tmp_path / "run"
    distill(tiny_run(out, recipe="clip-kd", teachers={"T": big}, student={}, prune={**PRUNE, "layers": layers}))
    for tower in ("vision", "text"):
        found = sparsity_of(sizes_in(out / "student", tower), sizes_in(big, tower))
        assert abs(found - 0.5) <= 0.02
    entries = log_of(out)
    assert ["sparsity" in entry for entry in entries] == [True] * 3 + [False] * 5
    assert 0 < entries[0]["sparsity"]["text"] < 0.2
    assert "- pruned by: 0.5" in (out / "student" / "README.md").read_text()
    assert load(str(out / "student")).images({"pixel_values": torch.zeros(1, 3, 48, 48)}).isfinite().all()


@pytest.mark.parametrize("broken_at", [2, 5, 7])
@pytest.mark.parametrize("train", [{"ema": 0.9}, {"optimizer": "muon", "accumulate": 2}], ids=["ema", "muon"])
def test_resuming_around_the_fold_gives_the_same_numbers_to_the_bit(
    train: dict[str, Any], broken_at: int, tmp_path: Path, big: str
) -> None:
    options: dict[str, Any] = {"recipe": "clip-kd", "teachers": {"T": big}, "student": {}, "prune": PRUNE}
    options["train"] = {**train, "checkpoint_every": 2}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    distill(tiny_run(whole, **options))
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, broken_at * train.get("accumulate", 1) + 1)
        with pytest.raises(RuntimeError, match="power cut"):
            distill(tiny_run(broken, **options))
    newest = checkpoint.newest(broken / "checkpoints")
    assert newest is not None
    assert bool(load_file(newest / "pruning.safetensors")["folded"]) == (broken_at > 3)
    distill(tiny_run(broken, **options), resume=True)
    assert log_of(broken) == log_of(whole)
    assert same_weights(whole, broken)


def test_masks_move_towards_the_sparsity_and_multipliers_rise(big: str, tmp_path: Path) -> None:
    config = tiny_run(tmp_path / "run", teachers={"T": big}, recipe="clip-kd", student={}, prune=PRUNE)
    plan = config.train.plan(64)
    pruning = Pruning(load(big), PruneConfig(sparsity=0.5, warmup=10, at=7), plan)
    assert [pruning.target(step) for step in (0, 4, 9, 30)] == [0.05, 0.25, 0.5, 0.5]
    before = pruning.sparsity()
    for _ in range(20):
        pruning.step(9)
    after = pruning.sparsity()
    assert all(after[tower] > before[tower] + 0.01 for tower in after)
    assert all((masks.multipliers > 10.1).all() for masks in pruning.towers.values())


def test_the_preflight_leaves_no_gradient_on_the_masks(big: str, tmp_path: Path) -> None:
    from clipdistill.training.preflight import preflight

    setup = prepare(tiny_run(tmp_path / "run", teachers={"T": big}, recipe="clip-kd", student={}, prune=PRUNE))
    preflight(setup, tmp_path)
    assert setup.pruning is not None
    assert all(part.grad is None for masks in setup.pruning.towers.values() for part in masks.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {"layers": 1}}, r"found also student\.layers"),
        ({"student": {}, "teachers": {}, "recipe": "clip"}, "neither a teacher nor"),
        ({"student": {}, "prune": {"sparsity": 0.5, "at": 8}}, r"step 8 of 8"),
        ({"student": {}, "prune": {"sparsity": 1.5}}, r"prune\.sparsity"),
        ({"student": {}, "prune": {}}, r"prune\.sparsity' is missing"),
    ],
)
def test_what_cannot_be_pruned_is_refused(changes: dict[str, Any], message: str, tmp_path: Path, big: str) -> None:
    options = {"recipe": "clip-kd", "teachers": {"T": big}, "prune": PRUNE}
    with pytest.raises(ConfigError, match=message):
        prepare(tiny_run(tmp_path / "run", **(options | changes)))


SMALLER = {"preset": "scenes-student", "text_layers": 1, "layers": 1, "width": 16, "inherit": "tinyclip"}


def staged(out: Path, big: str, **changes: Any) -> Any:
    """Prune by half, inherit into one layer, then train on."""
    three = [{"prune": PRUNE}, {"student": SMALLER, "train": {"samples": 64}}, {"train": {"lr": 1e-4}}]
    return tiny_run(out, recipe="clip-kd", teachers={"T": big}, student={}, stages=three, **changes)


def test_stages_start_from_one_another_and_resume_anywhere(tmp_path: Path, big: str) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = stages.distill(staged(whole, big))
    assert result.steps == 8 + 4 + 8
    assert result.student == whole / "student"
    assert same_weights(whole, whole / "stage-3")
    assert sizes_in(whole / "stage-1" / "student", "text").layers == 2
    assert sizes_in(whole / "student", "text").layers == 1
    for number in (1, 2, 3):
        record = json.loads((whole / f"stage-{number}" / "run.json").read_text())
        assert record["teachers"]["T"]["uri"] == big, "the teacher stays"
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, 9 + 1 + 3)
        with pytest.raises(RuntimeError, match="power cut"):
            stages.distill(staged(broken, big))
    assert not (broken / "student").exists()
    assert stages.distill(staged(broken, big), resume=True).steps == 20
    assert same_weights(whole, broken)
    with pytest.raises(ConfigError, match="seed: was 0, now 1"):
        stages.distill(staged(broken, big, seed=1), resume=True)
    with pytest.raises(ConfigError, match="is not empty"):
        stages.distill(staged(broken, big))


def test_the_command_line_runs_stages(tmp_path: Path, big: str) -> None:
    file = tmp_path / "run.yaml"
    run = staged(tmp_path / "out", big).model_dump()
    file.write_text(make_run(run).to_yaml())
    assert yaml.safe_load(file.read_text())["stages"][1]["student"] == SMALLER
    assert main(["distill", str(file), "evaluate.retrieval=scenes:test?n=16"]) == 0
    assert (tmp_path / "out" / "student" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_stage_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path: Path, big: str) -> None:
    def attempt(*changes: dict[str, Any]) -> None:
        run = tiny_run(tmp_path / "run", recipe="clip-kd", teachers={"T": big}, student={}, stages=changes)
        stages.distill(run)

    with pytest.raises(ConfigError, match=r"student\.layers would make another one"):
        attempt({}, {"student": {"layers": 1}})
    with pytest.raises(ConfigError, match=r"stages, number 2: unknown key 'student\.layer'"):
        attempt({}, {"student": {"layer": 1, "inherit": "even"}})
    with pytest.raises(ConfigError, match=r"unknown key 'stages\.0\.teachers'"):
        attempt({"teachers": {}})
    with pytest.raises(ConfigError, match=r"training\.stages\.distill"):
        distill(staged(tmp_path / "run", big))
    assert not (tmp_path / "run").exists()
