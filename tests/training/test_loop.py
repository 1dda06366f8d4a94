"""The main job, whole: it learns, resumes to the bit, stops kindly, and never leaves half a file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel, SiglipConfig

from clipdistill.cli import main
from clipdistill.errors import ClipdistillError, ConfigError, DataError, RecipeError, TrainingError
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer
from clipdistill.training import checkpoint, run_folder
from clipdistill.training.loop import _clamp, distill
from clipdistill.training.run_folder import Log, read_log
from clipdistill.training.setup import prepare
from tiny_runs import TINY, fail_at_step, tiny_run


def log_of(out: Path) -> list[dict[str, Any]]:
    """The log without the one figure that depends on the clock."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "samples_per_second"} for entry in entries]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "student" / "model.safetensors")


def same_weights(left: Path, right: Path) -> bool:
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_falls_and_the_folder_says_what_the_run_was(tmp_path: Path, teacher: Path) -> None:
    out = tmp_path / "run"
    distill(tiny_run(out, recipe="feature", teachers={"T": str(teacher)}, train={"steps": 40, "lr": 1e-2}))
    entries = log_of(out)
    assert entries[-1]["loss"] < 0.5 * entries[0]["loss"]
    record = json.loads((out / "run.json").read_text())
    assert record["teachers"]["T"]["fingerprint"]
    assert record["data"]["fingerprint"]
    assert record["packages"]["torch"] == torch.__version__
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["steps"] == 40
    assert len(list((out / "checkpoints").glob("step-*"))) == 2


def test_the_student_opens_without_our_package(tmp_path: Path) -> None:
    out = tmp_path / "run"
    distill(tiny_run(out))
    model = CLIPModel.from_pretrained(out / "student")
    tokens = AutoTokenizer.from_pretrained(out / "student")(["a red circle"], return_tensors="pt")
    assert model.get_text_features(**tokens).pooler_output.shape == (1, 16)


@pytest.mark.parametrize(
    "train",
    [
        {"optimizer": "adamw"},
        {"optimizer": "muon", "ema": 0.9, "workers": 1},
        {"accumulate": 2, "schedule": "constant-linear"},
        {"precision": "bfloat16"},
    ],
    ids=lambda train: "-".join(map(str, train.values())),
)
def test_resuming_gives_the_same_numbers_to_the_bit(train: dict[str, Any], tmp_path: Path, teacher: Path) -> None:
    options: dict[str, Any] = {"recipe": "clip-kd", "teachers": {"T": str(teacher)}, "train": train}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    distill(tiny_run(whole, **options))
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, 5 * train.get("accumulate", 1))
        with pytest.raises(RuntimeError, match="power cut"):
            distill(tiny_run(broken, **options))
    assert checkpoint.newest(broken / "checkpoints") == broken / "checkpoints" / "step-00000003"
    distill(tiny_run(broken, **options), resume=True)
    assert log_of(broken) == log_of(whole)
    assert same_weights(whole, broken)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(16, 1), (8, 2), (7, 6)])
def test_an_epoch_is_one_pass_whatever_is_accumulated(tmp_path: Path, batch_size: int, accumulate: int) -> None:
    train = {"steps": None, "epochs": 4, "batch_size": batch_size, "accumulate": accumulate, "warmup": "1 epoch"}
    setup = prepare(tiny_run(tmp_path, data="scenes:train?n=71", train=train))
    rows = [row for _, batch in setup.order.walk(0, setup.plan.steps * accumulate) for row in batch]
    assert abs(len(rows) - 4 * (71 - 71 % batch_size)) <= batch_size * accumulate / 2
    assert setup.plan.steps / setup.plan.steps_per_epoch == pytest.approx(4, abs=0.5 / setup.plan.steps_per_epoch)
    assert setup.config.train.warmup.steps(setup.plan) == round(setup.plan.steps_per_epoch)


@pytest.fixture
def forgetful(tmp_path: Path) -> str:
    """A student whose forward pass draws random numbers: dropout in every layer."""
    config = build(StudentSpec(**TINY), train_tokenizer(["a red circle"], 520, 32), 16, 0).module.config
    config.vision_config.attention_dropout = config.text_config.attention_dropout = 0.3
    config.save_pretrained(tmp_path / "forgetful")
    return str(tmp_path / "forgetful")


def test_resuming_is_exact_with_dropout_too(tmp_path: Path, forgetful: str) -> None:
    options: dict[str, Any] = {"student": {"config": forgetful, "vocab_size": 520}}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    distill(tiny_run(whole, **options))
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, 5)
        with pytest.raises(RuntimeError):
            distill(tiny_run(broken, **options))
    distill(tiny_run(broken, **options), resume=True)
    assert log_of(broken) == log_of(whole)
    assert same_weights(whole, broken)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    distill(tiny_run(whole))
    with pytest.MonkeyPatch.context() as patch:
        fail_at_step(patch, 7)
        with pytest.raises(RuntimeError):
            distill(tiny_run(broken))
    newest = broken / "checkpoints" / "step-00000006" / "student.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    distill(tiny_run(broken), resume=True)
    assert same_weights(whole, broken)


def test_when_every_checkpoint_is_damaged_nothing_is_trained_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    distill(tiny_run(out))
    for file in (out / "checkpoints").glob("*/student.safetensors"):
        file.write_bytes(b"broken")
    log = (out / "log.jsonl").read_text()
    with pytest.raises(TrainingError, match=r"every checkpoint .* is damaged \(step-00000008, step-00000006\)"):
        distill(tiny_run(out), resume=True)
    assert (out / "log.jsonl").read_text() == log


def test_a_disk_that_is_full_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"checkpoint of step 3 could not be written .* No space left"):
        distill(tiny_run(out))
    assert list((out / "checkpoints").iterdir()) == []


def test_a_folder_that_another_process_trains_in_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_at_step(patch, 5)
        with pytest.raises(RuntimeError, match="power cut"):
            distill(tiny_run(out))
    before = sorted(path.name for path in (out / "checkpoints").iterdir())
    monkeypatch.setattr(run_folder, "PATIENCE", 0.1)
    with run_folder.held(out), pytest.raises(ConfigError, match="another process is training in it"):
        distill(tiny_run(out), resume=True)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == before
    (out / "checkpoints" / ".step-00000004.tmp").mkdir()  # as a kill leaves it
    distill(tiny_run(out), resume=True)
    assert not list((out / "checkpoints").glob(".*"))


def test_resume_refuses_data_teachers_and_recipes_that_have_changed(tmp_path: Path, teacher: Path) -> None:
    mine, copy, out = tmp_path / "mine.yaml", tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(teacher, copy)
    mine.write_text("terms: [{contrast: SI-ST}, {feature: 'SI>TI'}]")
    options: dict[str, Any] = {"recipe": str(mine), "teachers": {"T": str(copy)}}
    distill(tiny_run(out, **options))
    with pytest.raises(ConfigError, match=r"the data of the run .* have changed"):
        distill(tiny_run(out, **options, data="scenes:train?n=64&seed=1"), resume=True)
    mine.write_text("terms: [{contrast: SI-ST}, {feature: 'SI>TI', weight: 50}]")
    with pytest.raises(ConfigError, match=r"other settings \(recipe"):
        distill(tiny_run(out, **options), resume=True)
    mine.write_text("terms: [{contrast: SI-ST}, {feature: 'SI>TI'}]")
    state = load_file(copy / "model.safetensors")
    save_file({name: value * 2 for name, value in state.items()}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"teacher T of the run .* is not the model it was"):
        distill(tiny_run(out, **options), resume=True)


@pytest.mark.parametrize(("frozen", "still"), [("text", "text"), ("image", "vis")])
def test_a_frozen_tower_stays_as_it_is(frozen: str, still: str, tmp_path: Path, teacher: Path) -> None:
    out = tmp_path / "run"
    student = {"pretrained": str(teacher), "freeze": frozen}
    distill(tiny_run(out, student=student, train={"optimizer": "muon"}))
    before, after = load_file(teacher / "model.safetensors"), weights(out)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(still) or name.endswith("position_ids")}


def test_the_scale_of_a_sigmoid_student_is_free(tmp_path: Path) -> None:
    config = SiglipConfig(
        text_config={
            "vocab_size": 600,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
            "projection_size": 16,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 48,
            "patch_size": 12,
        },
    )
    config.save_pretrained(tmp_path / "siglip")
    setup = prepare(
        tiny_run(tmp_path / "run", recipe="siglip", student={"config": str(tmp_path / "siglip"), "vocab_size": 520})
    )
    assert setup.student.log_scale is not None
    setup.student.log_scale.data.fill_(4.8)
    _clamp(setup)
    assert float(setup.student.log_scale.detach().exp()) > 100


def interruptible(out: Path) -> list[str]:
    """The words of a run long enough to be interrupted."""
    return [
        "distill",
        "recipe=clip",
        "data=scenes:train?n=64",
        *(f"student.{key}={value}" for key, value in TINY.items()),
        "train.steps=60",
        "train.batch_size=16",
        "train.checkpoint_every=5",
        "train.log_every=1",
        "train.precision=float32",
        f"out={out}",
    ]


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "clipdistill", *interruptible(out), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_checkpoint(process: subprocess.Popen[str], out: Path) -> None:
    while checkpoint.newest(out / "checkpoints") is None:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)


def test_kill_minus_nine_loses_nothing_but_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(interruptible(whole)) == 0
    process = start(killed)
    wait_for_checkpoint(process, killed)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (killed / "student").exists()
    assert main([*interruptible(killed), "--resume"]) == 0
    assert log_of(killed) == log_of(whole)
    assert same_weights(whole, killed)


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out, "train.steps=2000", "train.checkpoint_every=2000")
    while not (out / "log.jsonl").is_file() or (out / "log.jsonl").read_text().count("\n") < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert checkpoint.newest(out / "checkpoints") is not None


def test_a_loss_that_is_not_finite_names_its_term(tmp_path: Path) -> None:
    recipe = [{"contrast": "SI-ST", "name": "task"}, {"contrast": "SI>ST", "scale": 3e38, "name": "hot"}]
    out = tmp_path / "run"
    with pytest.raises(TrainingError, match=r"not finite at step 0: term hot \(task = "):
        distill(tiny_run(out, recipe=recipe))
    assert not out.exists()


def test_an_output_folder_in_use_is_refused_untouched(tmp_path: Path) -> None:
    out = tmp_path / "run"
    distill(tiny_run(out))
    before = sorted(out.rglob("*"))
    with pytest.raises(ConfigError, match=r"is not empty. Add --resume"):
        distill(tiny_run(out))
    assert sorted(out.rglob("*")) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty. Name another folder"):
        distill(tiny_run(tmp_path / "other"))


def test_resume_refuses_other_settings_and_lists_them(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="there is no run in"):
        distill(tiny_run(out), resume=True)
    distill(tiny_run(out))
    with pytest.raises(ConfigError, match=r"seed: was 0, now 1; train.lr: was 0.001, now 0.1"):
        distill(tiny_run(out, seed=1, train={"lr": 0.1}), resume=True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"recipe": "clip-kt"}, RecipeError, "Did you mean 'clip-kd'"),
        ({"recipe": "clip-kd"}, RecipeError, r"term crd .* needs node TI, but no teacher 'T' is given"),
        ({"teachers": {"T": "x"}}, ConfigError, "recipe clip uses no teacher"),
        ({"recipe": [{"contrast": "SI>ST@syn"}]}, RecipeError, "needs node ST@syn, which nobody provides"),
        ({"recipe": [{"contrast": "SI>ST@sin"}]}, RecipeError, "needs node ST@sin, which nobody provides"),
        ({"recipe": "clip-kd", "teachers": {"T": "/no/such/folder"}}, ClipdistillError, "/no/such/folder"),
        ({"data": "/no/such/data"}, DataError, "/no/such/data"),
        ({"evaluate": {"retrieval": "/no/such/test"}}, DataError, "/no/such/test"),
        ({"evaluate": {"every": 2}}, ConfigError, "evaluate.every is given, but no data"),
        ({"recipe": [{"contrast": "SI-ST", "scale": "T"}]}, RecipeError, "logit scale of teacher 'T', which is not"),
        ({"data": "scenes:train?n=8"}, ConfigError, "one step takes 16 samples"),
        ({"train": {"device": "abacus"}}, ConfigError, "device=abacus"),
    ],
)
def test_what_does_not_fit_is_one_clear_error_and_nothing_is_written(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(error, match=message):
        distill(tiny_run(out, **changes))
    assert not out.exists()


def test_the_preflight_leaves_no_trace(tmp_path: Path) -> None:
    """Training with and without a preflight before it gives the same weights."""
    from clipdistill.training.preflight import preflight

    setup = prepare(tiny_run(tmp_path / "run"))
    before = {name: value.clone() for name, value in setup.student.module.state_dict().items()}
    random = torch.get_rng_state()
    findings = preflight(setup, tmp_path / "run")
    assert all(torch.equal(before[name], value) for name, value in setup.student.module.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in setup.optimiser.parameters)
    assert "estimated time" in findings.facts
    assert not (tmp_path / "run").exists()


def test_a_short_run_is_evaluated_at_a_share_of_its_steps(tmp_path: Path) -> None:
    tries = {"retrieval": "scenes:test?n=8", "every": "5%"}
    run = distill(tiny_run(tmp_path / "run", train={"steps": 3}, evaluate=tries))
    entries = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert sum("metrics" in entry for entry in entries) == 3


def test_what_a_student_says_of_itself_holds_no_password(tmp_path: Path) -> None:
    shutil.copytree(Path(distill(tiny_run(tmp_path / "first", train={"steps": 1})).student), tmp_path / "token=secret")
    run = distill(
        tiny_run(tmp_path / "run", student={"pretrained": str(tmp_path / "token=secret")}, train={"steps": 1})
    )
    for name in ("clipdistill.json", "README.md"):
        assert "secret" not in (run.student / name).read_text()


def test_a_log_is_read_past_every_kind_of_line_end(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    for step, name in enumerate(("a", "b\u2028c\u0085d", "e")):
        log.write({"step": step, "id": name})
    assert [entry["id"] for entry in read_log(log.path)] == ["a", "b\u2028c\u0085d", "e"]
    log.cut(1)
    assert len(list(read_log(log.path))) == 2
