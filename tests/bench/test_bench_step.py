"""bench step on tiny models: real processes, two of them at once, real pictures and stores."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clipdistill.bench import embed_kd, kd_inputs, kd_steps, step
from clipdistill.bench.kd_steps import COMMUNICATION, PARTS, _change
from clipdistill.bench.process import run_module
from clipdistill.bench.result import Result

SIZES = {"preset": "scenes-student", "width": 16, "layers": 1, "text_layers": 1, "embed_dim": 16}
SCOPE = step.Scope(
    sizes={
        "tiny": embed_kd.Scope(
            teachers={"small": {**SIZES, "width": 32}}, student=SIZES, vocabulary=600, pictures=8, batch_size=4
        )
    },
    students={"cnn": {"preset": "scenes-cnn"}},
    ways={"cnn": ("eager", "channels_last")},
    batch_size=4,
    steps=1,
)


def here(module: str, within: float | None = None, **words: Any) -> dict[str, Any]:
    """Answer in this process, which has started already."""
    if module.endswith("kd_steps"):
        return kd_steps.measure(**words)
    kd_inputs.main(**words)
    return {}


@pytest.fixture(scope="module")
def found() -> Iterator[Result]:
    with pytest.MonkeyPatch.context() as patch:
        for part in (step, embed_kd):
            patch.setattr(part, "ask", here)
        yield step.run(SCOPE)


def test_a_step_is_taken_apart_in_one_process_and_in_two(found: Result) -> None:
    cases = json.loads(json.dumps(found.measured))["cases"]
    assert [(case["teacher"], case["processes"]) for case in cases[:4]] == [
        ("live", 1),
        ("live", 2),
        ("stored", 1),
        ("stored", 2),
    ]
    for case in cases:
        assert set(case["parts"]) == {*PARTS, *([COMMUNICATION] if case["processes"] == 2 else [])}
        assert sum(case["parts"].values()) == pytest.approx(case["step_seconds"])
    assert cases[2]["model_bytes"] == cases[3]["model_bytes"] < cases[0]["model_bytes"]


def test_every_way_is_told_beside_eager(found: Result) -> None:
    assert set(found.ratios) == {"tiny_2_processes_live", "tiny_2_processes_stored", "cnn_channels_last"}
    eager, other = found.measured["cases"][4:]
    assert found.ratios["cnn_channels_last"] == eager["step_seconds"] / other["step_seconds"]
    for words in ("communication", "tiny live 2 processes", "cnn stored channels_last"):
        assert words in found.text


def test_what_takes_too_long_is_told_and_is_no_ratio(found: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(module: str, within: float, way: str, **words: Any) -> dict[str, Any]:
        if way == "eager":
            return {"steps": [2.0], "parts": dict.fromkeys(PARTS, 1.0), "device": "cpu"}
        raise subprocess.TimeoutExpired(module, within)

    monkeypatch.setattr(step, "ask", slow)
    monkeypatch.setattr(step, "_taken_apart", lambda *words: found.measured["cases"][:4])
    result = step.run(replace(SCOPE, limit=7))
    assert set(result.ratios) == {"tiny_2_processes_live", "tiny_2_processes_stored"}
    assert result.measured["cases"][-1]["left_out"] == "did not finish in 7 s"
    assert "cnn stored channels_last did not finish in 7 s" in result.text


def test_a_process_that_is_given_up_takes_what_it_started_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parent.py").write_text(
        "import pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "pathlib.Path('child').write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        run_module("parent", within=3, PYTHONPATH=str(tmp_path))
    child, until = int((tmp_path / "child").read_text()), time.monotonic() + 10
    while _lives(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _lives(child)


def _lives(process: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:1] not in ("", "Z")


def test_the_ways_change_the_student_and_not_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    convolution = torch.nn.Conv2d(3, 4, 3)
    module, pixels = torch.nn.Sequential(convolution, torch.nn.Flatten()), torch.randn(2, 3, 8, 8)
    expected = module(pixels)
    _change(module, "channels_last")
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module(pixels), expected)
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda tower: compiled.append(tower))
    _change(module, "compile")
    assert compiled == list(module)
