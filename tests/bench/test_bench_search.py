"""bench search on one tiny model and a real server, answered in this process where no process is what is tested."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipdistill.bench import search, search_load, search_models, search_tables, suite, towers
from clipdistill.bench.process import ask
from clipdistill.bench.result import Result
from clipdistill.bench.search_mixture import CATEGORIES, Mixture, tag
from clipdistill.bench.search_towers import EVERY
from clipdistill.cli import main
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, TrainingError
from clipdistill.models.presets import PRESETS
from clipdistill.search.index import Index
from clipdistill.search.runtime import Runtime

TOWER, ROWS = "scenes-student", 2_000


@pytest.fixture(scope="module")
def found(exported: tuple[Path, Any]) -> Result:
    def here(module: str, within: float | None = None, **words: Any) -> dict[str, Any]:
        """Answer in this process, with a model that is exported already; clients are processes as they always are."""
        if module == search.TABLES:
            return search_tables.build(**words)
        if module == search.MODELS and words["tower"] == TOWER:
            folder = Path(words["folder"])
            shutil.copytree(exported[0], folder / search_models.FLOAT32)
            search_models.to_int8(folder / search_models.FLOAT32, folder / search_models.INT8)
            return {"width": Runtime.open(exported[0]).width, "sides": "IT"}
        if module == search.MODELS:
            raise TrainingError("a part of the benchmark ended with status 1.\nConfigError: no such library here")
        return ask(module, within, **words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "ask", here)
        scope = search.Scope([TOWER, "clip-b-16"], ROWS, rounds=5, clients=4, seconds=0.5, widths=(32,))
        return search.run(scope)


def test_everything_is_measured_end_to_end(found: Result) -> None:
    about = json.loads(json.dumps(found.measured))[TOWER]
    for kind in ("text", "image", "filter"):
        assert 0 < about[f"{kind}_p50_ms"] <= about[f"{kind}_p99_ms"]
        assert about["float32"][f"{kind}_p50_ms"] > 0
    assert about["recall@10"] == 1  # so few rows are all compared
    assert about["clients32_per_s"] > 0
    assert about["clients32_image_per_s"] > 0
    assert about["errors"] == about["refused"] == 0
    assert 50 < about["memory_mb"] <= about["resident_mb"]
    assert 0.1 < about["cold_start_s"] < search.search_server.SECONDS_TO_START
    assert about["rows"] == ROWS
    assert about["widths"]["32"]["search"] == "exact"


def test_what_cannot_be_made_is_told_and_has_no_ratio(found: Result) -> None:
    assert found.measured["clip-b-16"]["left_out"] == "ConfigError: no such library here"
    assert "clip-b-16: ConfigError: no such library here" in found.text
    assert f"{TOWER} float32" in found.text
    assert found.ratios == {}


def test_ratios_are_of_the_model_beside() -> None:
    times = {"text_p50_ms": 4.0, "image_p50_ms": 60.0}
    base = {"vit-tiny-16": {"text_p50_ms": 2.0, "image_p50_ms": 15.0}, "clip-b-16": times, "scenes-vit": {}}
    assert search._ratios(base) == {"vit-tiny-16_text_search": 2.0, "vit-tiny-16_image_search": 4.0}


def test_the_models_are_at_the_top_of_the_file_if_nothing_else_ran(
    found: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[search.Scope] = []
    monkeypatch.setattr(search, "run", lambda scope: asked.append(scope) or found)
    file = tmp_path / "bench.json"
    assert main(["bench", "search", "--towers", TOWER, "--rows", "5000", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content[TOWER] == content["benchmarks"]["search"][TOWER]
    assert content[TOWER]["text_p50_ms"] > 0
    assert (list(asked[0].towers), asked[0].rows) == ([TOWER], 5000)
    assert TOWER not in suite.as_dict({"search": found, "latency": found})


def test_towers_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"vit-tiny-16", "clip-b-16"} <= set(search.choose([]).towers)
    assert set(search.choose(["all"]).towers) == {*PRESETS, "clip-b-16"} == set(EVERY)
    with pytest.raises(ConfigError, match="Did you mean 'vit-tiny-16'"):
        search.choose(["vit-tiny16"])
    assert main(["bench", "search", "--towers", "nothing"]) == 1
    assert "there are no towers 'nothing'" in capsys.readouterr().err


def test_the_mixture_is_that_of_a_cone_with_a_gap() -> None:
    mixture = Mixture(256)
    rows, tags = mixture.pictures(0, 4_000)
    texts = mixture.texts(200)
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5
    assert 0.4 < float((rows[:2000] @ rows[2000:].T).mean()) < 0.65  # pictures are all somewhat alike
    cosines = texts @ rows.T
    assert -0.05 < float(cosines.mean()) < 0.2
    assert 0.2 < float(np.median(cosines.max(axis=1))) < 0.6
    assert np.array_equal(mixture.pictures(0, 4_000)[0], rows)
    assert not np.array_equal(mixture.pictures(4_000, 4_000)[0], rows)
    assert {tag(number) for number in range(CATEGORIES)} == set(tags)


def test_projections_are_made_blind_to_what_inputs_share() -> None:
    encoder = towers.make(TOWER)
    source = pairs("scenes:test?n=24")
    texts = [source[place].captions[0] for place in range(24)]

    def alike() -> float:
        with torch.inference_mode():
            rows = torch.nn.functional.normalize(encoder.texts(encoder.tokenize(texts)), dim=1)
        return float((rows @ rows.T).fill_diagonal_(0).sum() / (24 * 23))

    before = alike()
    search_models.centre(encoder, texts)
    assert before > 0.5
    assert alike() < 0.2


def test_an_index_belongs_to_the_model_that_it_is_given(exported: tuple[Path, Any], tmp_path: Path) -> None:
    runtime = Runtime.open(exported[0])
    (tmp_path / "captions.json").write_text('["a", "b"]')
    words = {"folder": str(tmp_path / "x.index"), "captions": str(tmp_path / "captions.json")}
    search_tables.build(width=runtime.width, rows=50, **words)
    search_tables.give(tmp_path / "x.index", exported[0])
    index = Index.open(tmp_path / "x.index")
    assert index.manifest.model.fingerprint == runtime.fingerprint
    (hits,) = index.search(Mixture(runtime.width).pictures(0, 50)[0][7:8], 3)
    assert hits[0].id == "00000/000000007.jpg"


@contextmanager
def answering(statuses: list[int]) -> Iterator[int]:
    """A server of HTTP that gives these statuses in turn, and hangs up for 0."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses[0]
            statuses.append(statuses.pop(0))
            if not status:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_clients_tell_errors_from_refusals(tmp_path: Path) -> None:
    captions = tmp_path / "captions.json"
    captions.write_text('["a", "b"]')
    with answering([200, 429, 500, 0]) as port:
        told = search_load.press(port, str(captions), "text", clients=1, seconds=0.3)
        assert told["refused"] > 0
        assert abs(told["errors"] - 2 * told["refused"]) <= 2
        assert told["first_error"]
    with answering([200]) as port, pytest.raises(TrainingError, match="answers with 200 and 0 hits"):
        search_load.measure(port, str(captions), ["text"], rounds=1, longest=1)
