"""Plans of runs: the arithmetic recomputed by hand, and bytes against those of real steps, checkpoints and stores."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipdistill.algebra.strips import LOWEST, STRIP, WHOLE
from clipdistill.cli import main
from clipdistill.config import RunConfig
from clipdistill.errors import ConfigError
from clipdistill.evidence.costs import Measured, Pass, about, check_plannable
from clipdistill.evidence.plan import loss_memory, loss_seconds, plan, step_memory, step_seconds
from clipdistill.evidence.plan_table import lines, size, span, tables
from clipdistill.evidence.speed import _memory, measure
from clipdistill.teachers.embed import embed
from clipdistill.training.loop import distill
from clipdistill.training.preflight import first_batch
from clipdistill.training.setup import prepare
from tiny_runs import TINY, tiny_run

SIZES = [16, 32, 64]
#: Seconds of each part: fixed, and for each sample.
SECONDS = {"student": (0.02, 0.001), "teacher T": (0.01, 0.003), "backward": (0.0, 0.002)}
#: Bytes of each part: fixed, and for each sample.
PEAKS = {
    "student": (1000, 50),
    "kept": (0, 40),
    "teacher T": (500, 10),
    "backward": (800, 20),
    "again": (100, 25),
}
LOSS = 1e-6, 1e-5, 0.004  # for each pair, each row of all, and fixed
LOSS_BYTES = 8.0
READ, UPDATE = 0.0004, 0.03


def made(config: RunConfig, **changes: Any) -> Measured:
    """What a machine with exactly those costs would measure."""
    known = Measured(
        about=about(config),
        machine={"device": "cpu, 1 thread", "type": "cpu", "precision": "float32"},
        samples=4096,
        sizes=SIZES,
        seconds={part: [fixed + each * n for n in SIZES] for part, (fixed, each) in SECONDS.items()},
        peaks={part: [fixed + each * n for n in SIZES] for part, (fixed, each) in PEAKS.items()},
        losses=[[n, LOSS[0] * n * n + LOSS[1] * n + LOSS[2], LOSS_BYTES * n * n] for n in SIZES],
        read_seconds=READ,
        update_seconds=UPDATE,
        held={
            "student": 4000,
            "teacher T": 9000,
            "gradients": 4000,
            "optimiser": 8000,
            "average": 0,
            "process": 5,
            "checkpoint": 12000,
        },
        sample={"inputs": 7.0, "cut": 9.0, "picture": 100.0, "stored": 0.0, "exchanged": 60.0},
        passes={"T": Pass(0.0044, 30.0)},
    )
    return replace(known, **changes)


def run(out: Path = Path("out"), **train: Any) -> RunConfig:
    config: RunConfig = tiny_run(out, recipe="clip-kd", teachers={"T": "x"}, train={"batch_size": 256, **train})
    return config


@pytest.mark.parametrize("processes", [1, 2, 64])
def test_a_step_is_the_sum_of_its_parts(processes: int) -> None:
    found = step_seconds(run(), made(run()), processes, bandwidth=1e6)
    rows = 256 / processes
    assert found == pytest.approx(
        {
            "student": 0.02 + 0.001 * rows,
            "teacher T": 0.01 + 0.003 * rows,
            "backward": 0.002 * rows,
            "loss": 1e-6 * rows * 256 + 1e-5 * 256 + 0.004,
            "reading": 0.0004 * rows,
            "exchange": (processes - 1) / processes * (2 * 4000 + 60 * 256) / 1e6,
            "update": 0.03,
        },
        rel=1e-3,
    )
    stored = step_seconds(run(), made(run()), processes, 1e6, {"T"})
    assert stored == {**found, "teacher T": 0}


def test_micro_batches_see_every_sample_twice_and_pay_what_is_fixed_for_each_part() -> None:
    config = run(micro_batch=20, accumulate=3)
    found = step_seconds(config, made(config), 2, bandwidth=1e6)
    rows, parts = 128, 7
    assert found["student"] == pytest.approx(3 * 2 * (0.02 * parts + 0.001 * rows))
    assert found["teacher T"] == pytest.approx(3 * (0.01 * parts + 0.003 * rows))
    assert found["backward"] == pytest.approx(3 * 0.002 * rows)
    assert found["update"] == 0.03
    assert found["exchange"] == pytest.approx(0.5 * (2 * 4000 + 3 * 60 * 256) / 1e6)


def test_workers_hide_reading_as_far_as_the_step_is_long() -> None:
    slow = made(run(), read_seconds=0.1)
    others = sum(step_seconds(run(), made(run(), read_seconds=0.0), 1, 1e6).values()) - UPDATE
    for workers in (1, 4, 100):
        found = step_seconds(run(workers=workers), slow, 1, 1e6)["reading"]
        assert found == pytest.approx(max(256 * 0.1 / workers - others, 0))


def test_the_peak_is_the_largest_of_a_steps_moments() -> None:
    config, known = run(), made(run())
    for processes in (1, 4):
        rows = 256 // processes
        student, kept = 1000 + 50 * rows, 40 * rows
        after = max(500 + 10 * rows, 8 * rows * 256, 800 + 20 * rows)
        found = step_memory(config, known, processes)
        assert found["step"] == pytest.approx(max(student, kept + after), rel=1e-6)
        assert found["models"] == 13000
        assert found["inputs"] == 7 * rows
        assert step_memory(config, known, processes, {"T"})["models"] == 4000
    micro = run(micro_batch=16)
    again = 4000 + max(1000 + 50 * 16, 40 * 16 + 100 + 25 * 16)
    assert step_memory(micro, known, 1)["inputs"] == (7 + 9) * 256
    assert step_memory(micro, known, 1)["step"] == pytest.approx(max(8 * 256 * 256, again), rel=1e-6)
    several = step_memory(run(accumulate=2), known, 8)["step"]
    assert several == pytest.approx(4000 + 40 * 32 + max(820, 8 * 32 * 256, 100 + 25 * 32), rel=1e-6)


def test_a_large_batch_stores_one_strip_and_computes_all_pairs() -> None:
    losses = made(run()).losses
    rows = 1 << 15
    assert rows * rows > WHOLE
    assert loss_memory(losses, rows, rows) == pytest.approx(8 * max(LOWEST, STRIP // rows) * rows, rel=1e-3)
    assert loss_seconds(losses, rows, rows) == pytest.approx(1e-6 * rows**2 + 1e-5 * rows + 0.004, rel=1e-3)


def test_what_was_measured_once_is_taken_in_proportion_and_noise_makes_no_negative_cost() -> None:
    once = made(run(), sizes=[16], seconds={part: [times[0]] for part, times in made(run()).seconds.items()})
    assert step_seconds(run(), once, 1, 1e6)["teacher T"] == pytest.approx(0.058 * 16)
    falling = made(run(), seconds={"student": [0.3, 0.2, 0.1]})
    assert 0.1 < step_seconds(run(), falling, 1, 1e6)["student"] < 0.3


def test_hours_and_bytes_of_a_run() -> None:
    config = run(steps=None, epochs=2, checkpoint_every="10 steps", keep_checkpoints=2)
    known = made(config)
    costs = plan(config, known, [1, 2, 512], bandwidth=1e6)
    assert costs.steps == 32
    assert [column.processes for column in costs.columns] == [1, 2]
    two, stored = costs.columns[1], costs.stored[1]
    assert two.hours == pytest.approx(32 * sum(step_seconds(config, known, 2, 1e6).values()) / 3600)
    assert two.device_hours == 2 * two.hours
    assert two.peak == sum(step_memory(config, known, 2).values())
    assert stored.hours == pytest.approx(two.hours - 32 * two.seconds["teacher T"] / 3600)
    assert costs.pass_hours == pytest.approx(4096 * 0.0044 / 3600)
    assert costs.bytes == {
        "pictures read": 2 * 4096 * 100,
        "stored rows read": 0,
        "a checkpoint": 12000,
        "checkpoints written": 4 * 12000,
        "checkpoints kept": 3 * 12000,
        "a store of the live teachers": 4096 * 30,
    }
    told = "\n".join(lines(config, costs, known, 1e6))
    assert "32 steps of 256 samples" in told
    assert [len(table.rows) for table in tables(costs)] == [2, 2, 2]


def test_sizes_and_times_are_told_in_units_that_suit() -> None:
    assert [size(999), size(2.5e6), size(3e12)] == ["999 B", "2.5 MB", "3 TB"]
    assert [span(0.005), span(0.5), span(2), span(1234)] == ["18 s", "30 min", "2 h", "1,234 h"]


def test_what_cannot_be_planned_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batches.select cannot be planned"):
        check_plannable(tiny_run(tmp_path, batches={"select": "hard"}))
    with pytest.raises(ConfigError, match=r"stages cannot be planned: plan each stage"):
        check_plannable(tiny_run(tmp_path, stages=[{}]))
    with pytest.raises(ConfigError, match=r"batch_size=256 is the whole batch, and no number .* 512"):
        plan(run(), made(run()), [512])
    with pytest.raises(ConfigError, match=r"another student"):
        made(run()).check_about(run().model_copy(update={"student": tiny_run(tmp_path, student={}).student}))
    made(run()).check_about(run(batch_size=32, steps=4))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"--speed-of .*other.json: expected what"):
        Measured.read(tmp_path / "other.json")
    assert main(["plan", "data=x", "train.steps=1", "out=x", "--gpus", "2,none"]) == 1


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run with a live teacher, large enough that its tensors outweigh what torch rounds up."""
    folder = tmp_path_factory.mktemp("live")
    distill(tiny_run(folder / "teacher", student={**TINY, "width": 32, "embed_dim": 24}, train={"steps": 1}))
    teachers = {"T": str(folder / "teacher" / "student")}
    student = {**TINY, "width": 64, "layers": 3}
    train = {"batch_size": 64, "steps": 2, "checkpoint_every": 2}
    config: RunConfig = tiny_run(
        folder / "run", recipe="clip-kd", teachers=teachers, student=student, augment="whole", train=train
    )
    return config


@pytest.fixture(scope="module")
def known(live: RunConfig) -> Measured:
    return measure(live)


@pytest.mark.parametrize("train", [{}, {"micro_batch": 16}, {"batch_size": 32}])
def test_the_memory_of_a_real_step_is_as_planned(live: RunConfig, known: Measured, train: dict[str, int]) -> None:
    config = live.model_copy(update={"train": live.train.model_copy(update=train)})
    setup = prepare(config)
    batch = first_batch(setup)

    def step() -> None:
        setup.losses(batch).total.backward()  # type: ignore[no-untyped-call]

    step()
    setup.forget_gradients()
    peak = _memory(setup, step)[1]
    planned = step_memory(config, known, 1)
    given = len(batch.ids) * known.sample["inputs"]  # they are there before the step
    assert planned["step"] + planned["inputs"] - given == pytest.approx(peak, rel=0.12)


def test_what_is_held_and_written_is_as_planned(live: RunConfig, known: Measured, tmp_path: Path) -> None:
    assert not Path(live.out).exists(), "a plan writes nothing"
    assert known.held["gradients"] == known.held["student"]
    assert known.held["optimiser"] == pytest.approx(2 * known.held["student"], rel=0.01)
    folder = distill(live).folder
    written = bytes_of(folder / "checkpoints" / "step-00000002")
    assert known.held["checkpoint"] == pytest.approx(written, rel=0.05)
    embed(live.data, live.teachers["T"], tmp_path / "store", workers=0)
    told = (tmp_path / "store" / "manifest.json", *(tmp_path / "store").glob("*/*.json"))
    rows = bytes_of(tmp_path / "store") - sum(path.stat().st_size for path in told)
    assert plan(live, known, [1]).bytes["a store of the live teachers"] == pytest.approx(rows, rel=0.08)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_one_machine_plans_for_another(live: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(live.to_yaml())
    words = ["plan", str(tmp_path / "run.yaml"), "--gpus", "1,8"]
    assert main([*words, "--json"]) == 0
    told = capsys.readouterr().out
    (tmp_path / "there.json").write_text(told)
    assert main([*words, "--json", "--speed-of", str(tmp_path / "there.json")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(told)
    larger = [
        "data=scenes:train?n=640",
        "--speed-of",
        str(tmp_path / "there.json"),
        "train.epochs=1",
        "train.steps=null",
    ]
    assert main([*words, *larger]) == 0
    told = capsys.readouterr().out
    assert f"{math.floor(640 / 64)} steps of 64 samples" in told
    assert "assumed" in told
