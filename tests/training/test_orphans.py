"""Processes whose torchrun is gone: they end, instead of training on beside those of the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipdistill.errors import TrainingError
from clipdistill.training.ranks import joined

CHILD = """
import pathlib, time
from clipdistill.training.ranks import _watched
with _watched():
    pathlib.Path("ready").write_text("")
    time.sleep(60)
"""
PARENT = """
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, "child.py"], start_new_session=True, stderr=subprocess.DEVNULL)
while not pathlib.Path("ready").exists():
    time.sleep(0.01)
"""


def test_a_process_ends_when_the_one_that_started_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(PARENT)
    # The child writes nothing, but holds the other end open until it ends.
    subprocess.run([sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, check=True, timeout=55)
    assert (tmp_path / "ready").exists()


def test_a_process_whose_torchrun_does_not_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**told, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=r"does not answer at 127.0.0.1:1 .*: it has ended"), joined():
        pass


def test_torchrun_killed_outright_takes_its_processes_with_it(tmp_path: Path) -> None:
    words = ["recipe=clip", "data=scenes:train?n=64", "student.preset=scenes-student", "train.steps=100000"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    with subprocess.Popen(
        [*launcher, "-m", "clipdistill", "distill", *words, "train.batch_size=8", f"out={tmp_path / 'run'}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        while not (tmp_path / "run" / "log.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        told, _ = process.communicate()  # until every process has ended
    assert "a checkpoint is in" in told
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
