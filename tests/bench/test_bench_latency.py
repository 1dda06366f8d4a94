"""bench latency on one tiny pair of towers: real graphs in int8 too, answered in this process."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from clipdistill.bench import clock, latency, latency_case, towers
from clipdistill.bench.result import Result
from clipdistill.cli import main
from clipdistill.errors import ConfigError, TrainingError

TOWER = "scenes-student"


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("graphs")
    return folder, latency_case.write(TOWER, str(folder))


@pytest.fixture(scope="module")
def found(graphs: tuple[Path, dict[str, Any]]) -> Result:
    def here(module: str, within: float | None = None, **words: Any) -> dict[str, Any]:
        """Answer in this process, which has started already; but compile nothing, and write graphs once."""
        assert module == latency.MODULE
        if words.get("engine") == "compile":
            raise subprocess.TimeoutExpired(module, within or 0)
        if "engine" in words:
            return latency_case.time_case(**words)
        shutil.copytree(graphs[0], words["folder"], dirs_exist_ok=True)
        return graphs[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ask", here)
        patch.setattr(clock, "LEAST_SECONDS", 0.0)
        patch.setattr(clock, "LEAST_ROUNDS", 3)
        threads = torch.get_num_threads()
        result = latency.run(latency.Scope(towers=[TOWER], threads=(1,), limit=7))
        torch.set_num_threads(threads)
    return result


def test_each_engine_is_timed_at_both_lengths(found: Result) -> None:
    cases = json.loads(json.dumps(found.measured))["cases"]
    assert [case["engine"] for case in cases] == ["eager", "compile", "onnx", "int8"]
    for case in (cases[0], *cases[2:]):
        assert set(case["times"]) == {"image", "text_32", "text_16"}
        assert all(0 < times["p50"] <= times["p99"] and times["rounds"] == 3 for times in case["times"].values())
    assert 0 < cases[3]["bytes"]["text"] < cases[2]["bytes"]["text"]


def test_ratios_are_of_torch_as_it_is(found: Result) -> None:
    eager, _, onnx, _ = found.measured["cases"]
    assert set(found.ratios) == {
        f"{TOWER}_{what}_{engine}_1_threads" for what in ("image", "text_32", "text_16") for engine in ("onnx", "int8")
    }
    ratio = found.ratios[f"{TOWER}_image_onnx_1_threads"]
    assert ratio == eager["times"]["image"]["p50"] / onnx["times"]["image"]["p50"]


def test_what_takes_too_long_is_told_and_has_no_ratio(found: Result) -> None:
    assert found.measured["cases"][1]["left_out"] == "did not finish in 7 s"
    assert f"{TOWER} compile, 1 threads: did not finish in 7 s" in found.text


def test_what_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(module: str, within: float, engine: str = "", **words: Any) -> dict[str, Any]:
        if engine != "eager":
            raise TrainingError("a part of the benchmark ended with status 1.\nConfigError: no onnx here")
        return {"image": {"p50": 1.0, "p99": 2.0, "rounds": 3}}

    monkeypatch.setattr(latency, "ask", failing)
    result = latency.run(latency.Scope(towers=[TOWER], threads=(2,)))
    assert result.ratios == {}
    assert "onnx, 2 threads: no graph: ConfigError: no onnx here" in result.text


def test_the_graphs_compute_what_the_towers_do(graphs: tuple[Path, dict[str, Any]]) -> None:
    encoder = towers.make(TOWER)
    for side, given in dict(latency_case.inputs(encoder).values()).items():
        with torch.inference_mode():
            rows = (encoder.images if side == "image" else encoder.texts)(given)
        wanted = torch.nn.functional.normalize(rows, dim=1).numpy()
        for engine, least in (("onnx", 0.9999), ("int8", 0.99)):
            session = onnxruntime.InferenceSession(str(latency_case.graph(str(graphs[0]), side, engine)))
            answer = session.run(None, {one.name: given[one.name].numpy() for one in session.get_inputs()})[0]
            assert np.sum(answer * wanted) > least, engine


def test_towers_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.choose([]).towers == list(latency.DEFAULT)
    assert latency.choose(["clip-l-14", "clip-l-14"]).towers == ["clip-l-14"]
    assert set(latency.choose(["all"]).towers) == set(towers.SPECS)
    with pytest.raises(ConfigError, match="Did you mean 'vit-tiny-16'"):
        latency.choose(["vit-tiny16"])
    assert main(["bench", "latency", "--towers", "nothing"]) == 1
    assert "there are no towers 'nothing'" in capsys.readouterr().err


def test_the_large_one_has_the_size_of_vit_l_14() -> None:
    with torch.device("meta"):
        encoder = towers.make("clip-l-14")
    image = sum(p.numel() for name, p in encoder.module.named_parameters() if name.startswith("vis"))
    assert image == pytest.approx(304e6, rel=0.002)
    assert towers.picture(encoder)["pixel_values"].shape == (1, 3, 224, 224)
    ids = towers.caption(encoder, 77)["input_ids"]
    assert ids.shape == (1, 77)
    assert (ids == ids.max()).sum() == 1  # the end, and nothing after it
