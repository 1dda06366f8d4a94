"""Naming benchmarks, and what is written down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipdistill.bench import precision, store, suite, transform
from clipdistill.bench.kd_steps import peak_memory
from clipdistill.bench.result import Result, columns, of_verdicts
from clipdistill.bench.versus import versus
from clipdistill.cli import main
from waiting import until


def fake(name: str) -> Result:
    return of_verdicts({name: versus("nothing", ("ours", int), ("theirs", int), pairs=1)})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two benchmarks that measure nothing, and one that breaks."""
    monkeypatch.setattr(transform, "run", lambda: fake("whole_pictures"))
    monkeypatch.setattr(precision, "run", lambda: fake("bfloat16_step"))

    def broken() -> Result:
        raise OSError("power cut")

    monkeypatch.setattr(store, "run", broken)


@pytest.mark.usefixtures("quick")
def test_json_holds_ratios_measurements_machine_and_versions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    assert main(["bench", "transform", "precision", "transform", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert list(content) == ["ratios", "benchmarks", "machine", "versions"]
    assert list(content["ratios"]) == ["whole_pictures", "bfloat16_step"]
    assert content["benchmarks"]["transform"]["whole_pictures"]["ratio"] == content["ratios"]["whole_pictures"]
    assert content["machine"]["cores"] >= 1
    assert content["versions"]["torch"]
    assert capsys.readouterr().out.count("nothing: ours") == 2


@pytest.mark.usefixtures("quick")
def test_a_benchmark_that_breaks_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text("before")
    assert main(["bench", "transform", "store", "--json", str(file)]) == 1
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.usefixtures("quick")
def test_mistakes_are_found_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "transform", "embedkd"]) == 1
    assert "Did you mean 'embed-kd'?" in capsys.readouterr().err
    assert main(["bench", "transform", "--json", str(tmp_path / "none" / "bench.json")]) == 1
    found = capsys.readouterr()
    assert "there is no folder" in found.err
    assert not found.out


def test_a_benchmark_that_is_asked_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    part = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = f"""
from clipdistill.bench import store
from clipdistill.bench.process import run_module
from clipdistill.cli import main
store.run = lambda: run_module("timeit", "-n1", "-r1", {part!r})
raise SystemExit(main(["bench", "store"]))
"""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        until(lambda: pid.exists() and pid.read_text(), 60)
        process.terminate()
        assert process.wait(30) == 143
    until(lambda: not Path(f"/proc/{pid.read_text()}").exists(), 60)


def test_every_name_is_a_module() -> None:
    folder = Path(suite.__file__).parent
    assert all((folder / f"{name.replace('-', '_')}.py").is_file() for name in suite.NAMES)


def test_columns_are_aligned() -> None:
    assert columns([["name", "s"], ["a", "10.5"]]) == "name     s\na     10.5"


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_counts_what_was_given_back_and_nothing_of_the_parent() -> None:
    before, size = status("VmRSS"), 1 << 30
    block = b"1" * size
    del block
    assert peak_memory(torch.device("cpu")) > before + 0.9 * size  # the kernel counts in lots
    program = (
        "import torch; from clipdistill.bench.kd_steps import peak_memory; print(peak_memory(torch.device('cpu')))"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(child.stdout) < size
