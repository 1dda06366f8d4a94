"""Real processes on loopback: the numbers of one process, by any number of them, killed or not."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from clipdistill.algebra.recipe import available
from clipdistill.config import RunConfig
from clipdistill.errors import ConfigError
from clipdistill.models.loading import load
from clipdistill.training.loop import distill
from clipdistill.training.preflight import first_batch
from clipdistill.training.ranks import Ranks, joined
from clipdistill.training.run_folder import read_log
from clipdistill.training.setup import prepare
from tiny_runs import tiny_run


def gradients(config: RunConfig, ranks: Ranks) -> dict[str, Tensor]:
    """Losses and averaged gradients of the first batch."""
    setup = prepare(config, ranks)
    torch.manual_seed(0)
    losses = setup.all_losses([first_batch(setup)], 0)
    losses.total.backward()
    ranks.average(setup.optimiser.parameters)
    modules = {"student": setup.student.module, "graph": setup.graph}
    found = {f"{m} {n}": p.grad for m, module in modules.items() for n, p in module.named_parameters()}
    return {"total": losses.total.detach(), **{name: grad for name, grad in found.items() if grad is not None}}


def work(rank: int, world: int, configs: dict[str, RunConfig], folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting-{world}", rank=rank, world_size=world)
    found = {name: gradients(config, Ranks(rank, world)) for name, config in configs.items()}
    torch.save(found, Path(folder) / f"{world}-{rank}.pt")
    distributed.destroy_process_group()


#: What they draw at random, patches to hide, is another draw for each process.
DRAWING = {"clip-kd-mfd", "clip-kd-all"}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory, recipe_run: Any) -> dict[str, RunConfig]:
    """A run of every recipe that computes the same whatever the processes."""
    names, out = set(available()) - DRAWING, tmp_path_factory.mktemp("recipes")
    return {name: recipe_run(name, out / name, {"batch_size": 14}) for name in sorted(names)}


@pytest.fixture(scope="module")
def alone(configs: dict[str, RunConfig]) -> dict[str, dict[str, Tensor]]:
    """The gradients of one process."""
    return {name: gradients(config, Ranks()) for name, config in configs.items()}


@pytest.mark.parametrize("world", [2, 4])
def test_every_recipe_has_the_gradients_of_one_process(
    world: int, tmp_path: Path, configs: dict[str, RunConfig], alone: dict[str, dict[str, Tensor]]
) -> None:
    fork: Any = multiprocessing.start_processes  # type: ignore[attr-defined]
    arguments = (world, configs, str(tmp_path))
    fork(work, arguments, nprocs=world, start_method="forkserver")
    for rank in (0, world - 1):
        found = torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True)
        for name, expected in alone.items():
            assert found[name].keys() == expected.keys()
            wrong = sum(float((found[name][key] - value).square().sum()) for key, value in expected.items()) ** 0.5
            size = sum(float(value.square().sum()) for value in expected.values()) ** 0.5
            assert wrong < 1e-5 * size, name


def torchrun(world: int, *arguments: str) -> subprocess.Popen[str]:
    """Start processes as a user does."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    return subprocess.Popen(
        [*launcher, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def losses_of(folder: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in read_log(folder / "log.jsonl") if "loss" in entry]


def test_torchrun_trains_what_one_process_trains(tmp_path: Path, recipe_run: Any) -> None:
    config = recipe_run("clip-kd", tmp_path / "two", {"steps": 6, "ema": 0.9})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    process = torchrun(2, "-m", "clipdistill", "distill", str(tmp_path / "run.yaml"))
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert told.count("preflight") == told.count("\nstudent: ") == 1, "one process speaks"
    alone = distill(recipe_run("clip-kd", tmp_path / "one", {"steps": 6, "ema": 0.9}))
    assert [step for step, _ in losses_of(tmp_path / "two")] == list(range(1, 7))
    assert [loss for _, loss in losses_of(tmp_path / "two")] == pytest.approx(
        [loss for _, loss in losses_of(alone.folder)], rel=1e-4
    )
    ours, theirs = (load(str(folder / "student")).module.state_dict() for folder in (alone.folder, tmp_path / "two"))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4, msg=name)


BROKEN = """
import os, sys
from clipdistill.cli import main
from clipdistill.errors import DataError
from clipdistill.training.setup import Setup
losses = Setup.all_losses
def failing(self, batches, number):
    if os.environ["RANK"] == "1" and number == 3:
        raise DataError("the disk of this machine is gone")
    return losses(self, batches, number)
Setup.all_losses = failing
sys.exit(main(sys.argv[1:]))
"""


def test_an_error_of_one_process_ends_all_with_its_message(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(tiny_run(tmp_path / "run", train={"steps": 5000}).to_yaml())
    (tmp_path / "broken.py").write_text(BROKEN)
    process = torchrun(2, str(tmp_path / "broken.py"), "distill", str(tmp_path / "run.yaml"))
    told, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert told.count("error: the disk of this machine is gone") == 1
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


#: Forks processes that need not import anything, see conftest.py.
NURSERY = multiprocessing.get_context("forkserver")


def one_of(config: RunConfig, rank: int, world: int, port: int, resume: bool) -> None:
    sys.stderr = sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    told = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in told.items()}
    torch.set_num_threads(1)
    distill(config, resume)


def start(config: RunConfig, world: int, resume: bool) -> list[Any]:
    """Start the processes of a run."""
    port = free_port()
    children = [NURSERY.Process(target=one_of, args=(config, rank, world, port, resume)) for rank in range(world)]
    for child in children:
        child.start()
    return children


def ended(children: Sequence[Any], within: float = 60) -> list[int]:
    """Wait for all to end, and return how they did; the test fails if one does not.

    Where one has ended in a bad way, the others are asked to by SIGTERM, as torchrun does: they may still be waiting
    for it.
    """
    until = time.monotonic() + within
    while any(child.exitcode is None for child in children) and time.monotonic() < until:
        time.sleep(0.02)
        if any(child.exitcode for child in children):
            for child in children:
                child.join(0.5)
                if child.exitcode is None:
                    child.terminate()
                    child.join(10)
    late = [child for child in children if child.exitcode is None]
    for child in late:
        child.kill()
    assert not late, f"{len(late)} of {len(children)} processes did not end"
    return [child.exitcode for child in children]


def begun(config: RunConfig) -> bool:
    return (Path(config.out) / "config.yaml").is_file()


KILLS = 50


def test_fifty_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """Any process, at any moment: the others end by themselves, and the run goes on to the same bits."""
    train = {"steps": 400, "checkpoint_every": 8}
    assert ended(start(tiny_run(tmp_path / "whole", train=train), 2, resume=False), 120) == [0, 0]
    config = tiny_run(tmp_path / "killed", train=train)
    draw, kills, statuses = random.Random(0), 0, [1]
    while kills < KILLS:
        children = start(config, 2, begun(config))
        time.sleep(draw.uniform(0.05, 1.2))
        victim = draw.choice(children)
        victim.kill()
        statuses = ended(children)
        kills += victim.exitcode == -signal.SIGKILL
        if 0 in statuses and (Path(config.out) / "student").is_dir():
            break
    if not (Path(config.out) / "student").is_dir():
        assert ended(start(config, 2, begun(config)), 120) == [0, 0]
    assert kills >= KILLS, f"the run was over after {kills} kills"
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole")
    whole, killed = (load(str(tmp_path / name / "student")).fingerprint for name in ("whole", "killed"))
    assert whole == killed


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    train = {"steps": 90, "checkpoint_every": 5, "keep_checkpoints": 20, "lr": 1e-4}
    alone = distill(tiny_run(tmp_path / "one", train=train))
    config = tiny_run(tmp_path / "many", train=train)
    for world, step in ((2, 10), (3, 40)):
        children = start(config, world, begun(config))
        while not (tmp_path / "many" / "checkpoints" / f"step-{step:08d}").is_dir():
            assert children[0].is_alive()
            time.sleep(0.001)
        children[0].kill()
        assert 0 not in ended(children)
    distill(config, resume=True)
    assert [step for step, _ in losses_of(tmp_path / "many")] == list(range(1, 91))
    assert [loss for _, loss in losses_of(tmp_path / "many")] == pytest.approx(
        [loss for _, loss in losses_of(alone.folder)], rel=1e-3
    )


def test_a_scheduler_that_asks_to_stop_gets_a_checkpoint(tmp_path: Path) -> None:
    config = tiny_run(tmp_path / "run", train={"steps": 5000, "checkpoint_every": 4000})
    children = start(config, 2, resume=False)
    while len(losses_of(tmp_path / "run")) < 5:
        time.sleep(0.01)
    children[1].terminate()  # SIGTERM to one of them alone: they agree to stop
    assert 0 not in ended(children, 30)
    (found,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert int(found.name.removeprefix("step-")) == losses_of(tmp_path / "run")[-1][0]


def test_what_several_processes_cannot_do_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipdistill.training.checks import check_ranks

    with pytest.raises(ConfigError, match=r"batch_size=3 is the whole batch, and 4 processes"):
        check_ranks(tiny_run(tmp_path, train={"batch_size": 3}), Ranks(0, 4))
    with pytest.raises(ConfigError, match=r"batches.select=hard compares all rows"):
        check_ranks(tiny_run(tmp_path, batches={"select": "hard"}), Ranks(0, 2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK, MASTER_ADDR, MASTER_PORT is not set"), joined():
        pass


@pytest.mark.parametrize(("rows", "world"), [(7, 3), (4, 4), (16, 1)])
def test_shares_are_even_and_whole(rows: int, world: int) -> None:
    shares = [Ranks(rank, world).share(range(rows)) for rank in range(world)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
