"""What an export leaves behind: everything, or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipdistill.cli import main
from clipdistill.errors import ConfigError, DataError, ModelError
from clipdistill.export import gate, reading
from clipdistill.export import onnx as job
from clipdistill.export.layouts import export_layout
from clipdistill.export.onnx import export
from clipdistill.models.loading import load
from clipdistill.search.runtime import Runtime
from tiny_open_clip import make


def left_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def classifier(make_model: Callable[[str], Path], graphs_once: None) -> Path:
    """A model of pictures alone: the one that is exported quickest."""
    return make_model("pictures")


def test_the_command_writes_a_run_that_keeps_its_record(
    make_model: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(str(make_model("clip")))
    run, out = tmp_path / "run", tmp_path / "out" / "onnx"
    card = {"teachers": {"T": "hf:org/teacher"}, "recipe": "clip-kd", "metrics": {"r1": 0.5}}
    model.save(run / "student", card)
    assert main(["export", str(run), "--out", str(out), "--data", "scenes:test?n=3", "--precision", "float32"]) == 0
    assert "text graph: cosine with the model 0.99999" in capsys.readouterr().err + "\n"
    names = {
        "README.md",
        "clipdistill.json",
        "golden.npz",
        "tokenizer.json",
        "onnx/text_model.onnx",
        "onnx/vision_model.onnx",
    }
    assert left_in(out) == names
    assert left_in(out.parent) == {f"onnx/{name}" for name in names}
    record = json.loads((out / "clipdistill.json").read_text())
    assert {key: record[key] for key in card} == card
    assert record["fingerprint"] == model.fingerprint
    section = record["runtime"]
    assert section["scale"] == pytest.approx(model.scale)
    assert section["text"]["rules"]["inputs"] == ["input_ids"]
    assert not section["text"]["rules"]["fixed"]
    assert section["parity"]["batches"] == [1, 2, 7, 32]
    assert set(section["files"]) == names - {"README.md", "clipdistill.json"}
    assert main(["doctor", str(out)]) == 0


def test_a_graph_that_differs_is_not_published(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = job.write_graph

    @torch.no_grad()
    def drifting(encoder: Any, *arguments: Any, **more: Any) -> None:
        written(encoder, *arguments, **more)
        for parameter in encoder.module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(job, "write_graph", drifting)
    before = left_in(tmp_path)
    with pytest.raises(ModelError, match=r"picture \d+ in a batch of \d+ has cosine 0\.\d+ with the model's row"):
        export(classifier, tmp_path / "out")
    assert left_in(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_an_earlier_export_is_replaced_and_kept_until_then(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(classifier, out, precision="float32")
    first = {name: (out / name).read_bytes() for name in left_in(out)}
    assert set(first) == {"README.md", "clipdistill.json", "golden.npz", "onnx/vision_model.onnx"}
    with monkeypatch.context() as patch:

        def stop(encoder: Any, side: Any, pixels: Any, path: Path, own_length: bool) -> None:
            path.write_bytes(b"half a graph")
            raise KeyboardInterrupt

        patch.setattr(job, "write_graph", stop)
        with pytest.raises(KeyboardInterrupt):
            export(classifier, out, precision="float32")
    assert {name: (out / name).read_bytes() for name in left_in(out)} == first
    export(classifier, out, data="scenes:test?n=2&seed=5", precision="float32")
    again = Runtime.open(out)
    assert left_in(out) == set(first)
    with np.load(out / "golden.npz") as golden:
        assert golden["pictures"].shape == (4, 128, 128, 3)  # two pictures, repeated
    assert again.record["runtime"]["parity"]["image"] >= 0.99999
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_of_something_else_is_left_alone(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "clipdistill.json").write_text('{"width": 3}')
    with pytest.raises(ConfigError, match="will not replace"):
        export(classifier, tmp_path / "mine")
    (tmp_path / "file").write_text("words")
    with pytest.raises(ConfigError, match="it is a file"):
        export(classifier, tmp_path / "file")
    assert left_in(tmp_path / "mine") == {"clipdistill.json"}


def test_the_current_folder_is_not_replaced(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "inner")
    for out in (".", "..", tmp_path / "empty"):
        with pytest.raises(ConfigError, match="the current folder cannot be replaced whole"):
            export("no/such/model", out)
        with pytest.raises(ConfigError, match="the current folder cannot be replaced whole"):
            export_layout("no/such/model", out, "huggingface")
    assert main(["export", str(classifier), "--out", "here", "--precision", "float32"]) == 0
    assert (tmp_path / "empty" / "inner" / "here" / "clipdistill.json").is_file()


def test_pictures_that_cannot_be_read_are_left_out(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (40, 30), (60 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "0.png").write_bytes(b"no picture")
    export(classifier, tmp_path / "out", data=str(tmp_path / "photos"), precision="float32")
    with np.load(tmp_path / "out" / "golden.npz") as golden:
        assert [int(picture[0, 0, 0]) for picture in golden["pictures"]] == [60, 120, 180, 60]


def test_pictures_are_needed_to_compare_pictures(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a cat\na dog\n")
    with pytest.raises(DataError, match="has no pictures to compare"):
        export(classifier, tmp_path / "out", data=str(tmp_path / "words.txt"))


def test_a_tower_that_has_no_graph_is_named(
    make_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(uri: str) -> Any:
        encoder: Any = load(uri)

        def by_value(pixels: Any) -> torch.Tensor:
            rows: torch.Tensor = images(pixels)
            return rows if rows.sum() > 0 else -rows  # which of the two, no graph can hold

        images = encoder.images
        monkeypatch.setattr(encoder, "images", by_value)
        return encoder

    monkeypatch.setattr(job, "load", loaded)
    with pytest.raises(ModelError, match="its image tower, a ResNetForImageClassification, cannot be written"):
        export(make_model("pictures"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_open_clips_causal_tower_is_read_at_its_own_length(tmp_path: Path) -> None:
    encoder: Any = load(str(make(tmp_path / "model", "bpe")))
    rules = reading.write_tokenizer(encoder, tmp_path)
    assert (rules.inputs, rules.fixed, rules.clean) == (("input_ids",), False, "whitespace")
    with pytest.raises(RuntimeError, match="attn_mask"):  # as it comes it takes its full length alone
        encoder.texts({"input_ids": encoder.tokenize(["x"])["input_ids"][:, :5]})


def test_a_slow_tokenizer_is_refused(make_model: Callable[[str], Path], tmp_path: Path) -> None:
    encoder: Any = load(str(make_model("clip")))

    class Slow:
        is_fast = False

    encoder.tokenizer = Slow()
    with pytest.raises(ModelError, match=r"a Slow, has no tokenizer\.json"):
        reading.write_tokenizer(encoder, tmp_path)
    assert not (tmp_path / "tokenizer.json").exists()
    shutil.rmtree(tmp_path / "model")


def test_a_precision_by_name_is_measured_and_ships(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(classifier), "--out", str(tmp_path / "out"), "--data", "scenes:test?n=12"]
    assert main([*words, "--precision", "float16"]) == 0
    printed = capsys.readouterr().out
    assert "float16" in printed
    assert "Ships: image float16; together they lose" in printed
    assert left_in(tmp_path / "out") >= {"clipdistill.json", "golden.npz", "onnx/vision_model_float16.onnx"}
    assert "onnx/vision_model.onnx" not in left_in(tmp_path / "out")
    section = json.loads((tmp_path / "out" / "clipdistill.json").read_text())["runtime"]
    assert section["image"]["file"] in section["files"]
    assert section["gate"]["judged_by"] == "neighbours"
    assert main(["doctor", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("precision", ["auto", "float32"])
def test_weights_too_large_for_one_file_ship_beside_their_graph(
    precision: str, make_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    monkeypatch.setattr(gate, "time_in_turn", lambda *graphs: gate.Timing(1.0, 1.0))  # nothing is faster
    out, model = tmp_path / "out", make_model("pictures")
    words = ["export", str(model), "--out", str(out), "--data", "scenes:test?n=12", "--precision", precision]
    assert main(words) == 0
    graph = out / "onnx" / "vision_model.onnx"
    weights = graph.with_name("vision_model.onnx.data")
    assert {"onnx/vision_model.onnx", "onnx/vision_model.onnx.data"} <= left_in(out)
    section = json.loads((out / "clipdistill.json").read_text())["runtime"]
    assert "onnx/vision_model.onnx.data" in section["files"]
    assert gate.file_bytes(graph) == graph.stat().st_size + weights.stat().st_size
    out.replace(tmp_path / "moved")
    rows = Runtime.open(tmp_path / "moved").images([Image.new("RGB", (40, 30), "red")])
    assert np.linalg.norm(rows) == pytest.approx(1, abs=1e-5)
    assert main(["doctor", str(tmp_path / "moved")]) == 0
    (tmp_path / "moved" / "onnx" / weights.name).write_bytes(b"others")
    assert main(["doctor", str(tmp_path / "moved")]) == 1


def test_options_that_mean_nothing_are_refused(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no precision 'int9'\. Did you mean 'int8'"):
        export(classifier, tmp_path / "out", precision="int9")
    words = ["export", str(classifier), "--out", str(tmp_path / "out"), "--layout", "immich", "--precision", "int8"]
    assert main(words) == 1
    with pytest.raises(DataError, match="2 pictures that can be read; precisions are compared on 3 or more"):
        export(classifier, tmp_path / "out", data="scenes:test?n=2")
    assert not (tmp_path / "out").exists()
