"""A folder that the gate has been through: what is left in it, and that it opens where torch is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdistill.data.sources import pairs
from clipdistill.export import gallery as gallery_room
from clipdistill.export import shipping
from clipdistill.export.gallery import QUERY, open_gallery
from clipdistill.export.gate import Timing, run_gate
from clipdistill.export.probes import take_probes
from clipdistill.export.quantise import CANDIDATES, Candidate
from clipdistill.export.shipping import find_precision, ship
from clipdistill.search.engines import open_graph
from clipdistill.search.golden import LEAST_COSINE, check_golden
from clipdistill.search.runtime import Runtime, read_record

CAPTIONS = ["x", "a red circle", "Two dogs! " * 40]
FEW = "scenes:test?n=24&lang=both"


def shipped(exported: Path, folder: Path, only: str, allowed: float = 0.5) -> dict[str, Any]:
    """Put a copy of an exported folder through the gate, and return its record."""
    shutil.copytree(exported, folder)
    record = read_record(folder)
    ship(folder, record, take_probes(pairs(FEW), "IT"), FEW, find_precision(only), allowed)
    record["runtime"]["files"] = {}
    (folder / "clipdistill.json").write_text(json.dumps(record))
    return record


def graphs(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for kind in ("onnx", "openvino") for path in folder.glob(f"{kind}/*")}


def test_int8_opens_without_torch_and_gives_its_rows(exported: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "int8"
    section = shipped(exported[0], folder, "int8-channel")["runtime"]
    names = {side: f"onnx/{name}_model_int8-channel.onnx" for side, name in (("image", "vision"), ("text", "text"))}
    assert graphs(folder) == set(names.values())
    for side, name in names.items():
        assert (section[side]["engine"], section[side]["precision"]) == ("onnxruntime", "int8-channel")
        assert (section[side]["file"], section[side]["others"]) == (name, [])
        assert 0.9 < section[side]["least_cosine"] < LEAST_COSINE
    rows = {row["name"]: row for row in section["gate"]["candidates"]["image"]}
    assert set(rows) == {"float32", "int8-channel"}
    assert rows["float32"]["bytes"] > rows["int8-channel"]["bytes"] > 0
    assert section["gate"]["machine"]["processor"]
    program = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'transformers', 'onnx', 'openvino', 'nncf'}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import numpy as np\n"
        "from clipdistill.search.runtime import Runtime\n"
        "from clipdistill.search.golden import check_golden\n"
        f"np.save(sys.argv[2], Runtime.open(sys.argv[1], threads=1).texts({CAPTIONS!r}))\n"
        "print(check_golden(sys.argv[1]))\n"
    )
    arguments = [str(folder), str(tmp_path / "rows.npy")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    rows_there = np.load(tmp_path / "rows.npy")
    assert np.abs(rows_there - Runtime.open(folder, threads=1).texts(CAPTIONS)).max() < 1e-6
    away = np.abs(rows_there - Runtime.open(exported[0], threads=1).texts(CAPTIONS)).max()
    assert 1e-4 < away < 0.1  # it is really another precision


def test_other_preprocessing_is_found_in_int8_too(exported: tuple[Path, Any], tmp_path: Path) -> None:
    record = shipped(exported[0], tmp_path / "int8", "int8")
    assert check_golden(tmp_path / "int8") == []
    record["runtime"]["image"]["transform"]["mean"] = [0.0, 0.0, 0.0]
    (tmp_path / "int8" / "clipdistill.json").write_text(json.dumps(record))
    assert any(line.startswith("golden picture") for line in check_golden(tmp_path / "int8"))


def test_each_engine_keeps_its_best_and_the_rest_is_deleted(
    exported: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ("float32", "float16", "int8-channel", "openvino-float32")
    chosen = [one for one in CANDIDATES if one.name in wanted]

    def copied(source: Path, target: Path, probes: Any) -> Path:
        shutil.copy(source, target.with_suffix(".onnx"))
        return target.with_suffix(".onnx")

    chosen.append(Candidate("quick", copied, "openvino", ("openvino",)))
    speeds = iter([1.0, 0.8, 4.0, 1.0, 3.0, 1.0, 0.8, 4.0, 1.0, 3.0])  # of the candidates of one side, then the other
    timer = partial(_timing, speeds)
    monkeypatch.setattr(shipping, "run_gate", partial(run_gate, candidates=chosen, timer=timer))
    section = shipped(exported[0], tmp_path / "out", "auto", allowed=0.0)["runtime"]
    for side, name in (("image", "vision"), ("text", "text")):
        lost = {row["name"]: row["loss"] for row in section["gate"]["candidates"][side]}
        assert lost["int8-channel"] > 0  # it is faster, and loses
        assert (section[side]["engine"], section[side]["precision"]) == ("openvino", "quick")
        assert section[side]["file"] == f"openvino/{name}_model_quick.onnx"
        (other,) = section[side]["others"]
        assert (other["engine"], other["file"]) == ("onnxruntime", f"onnx/{name}_model.onnx")
    both = {f"{engine}.onnx" for engine in ("onnx/vision_model", "onnx/text_model")}
    assert graphs(tmp_path / "out") == both | {f"openvino/{name}_model_quick.onnx" for name in ("vision", "text")}
    assert check_golden(tmp_path / "out") == []
    one, other = (Runtime.open(tmp_path / "out", engine=engine) for engine in (None, "onnxruntime"))
    assert np.abs(one.texts(CAPTIONS) - other.texts(CAPTIONS)).max() < 1e-4


def _timing(speeds: Any, one: Any, other: Any, inputs: Any) -> Timing:
    return Timing(10 / next(speeds), 10, 0.1)


def test_a_gallery_gives_the_rows_of_the_runtime_in_their_order(exported: tuple[Path, Any], tmp_path: Path) -> None:
    runtime = Runtime.open(exported[0], threads=1)
    gallery = open_gallery("scenes:test?n=40&lang=both", runtime, tmp_path)
    source = pairs("scenes:test?n=40&lang=both")
    samples = [source[place] for place in range(40)]
    captions = [caption for sample in samples for caption in sample.captions]
    assert (len(captions), gallery.captions, gallery.pairs) == (80, captions, 40)
    assert gallery.owner == [place for place in range(40) for _ in range(2)]
    opened = [Image.fromarray(np.asarray(sample.image)) for sample in samples]
    for side, rows in (("image", runtime.images(opened)), ("text", runtime.texts(captions))):
        graph = open_graph(exported[0] / runtime.graph_of(side)["file"], "onnxruntime")
        assert np.abs(gallery.batches[side].embed(graph) - rows).max() < 1e-5
    assert gallery.alone["image"]["pixel_values"].shape[0] == 1
    assert gallery.alone["text"]["input_ids"].shape == (1, runtime.reader.lengths([QUERY])[0])


def test_pictures_alone_take_drawn_captions_and_broken_ones_are_left_out(
    exported: tuple[Path, Any], tmp_path: Path, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(5):
        picture(number).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "2.png").write_bytes(b"words")
    monkeypatch.setattr(gallery_room, "SCENES", FEW)
    gallery = open_gallery(f"{tmp_path}/photos?caption=none", Runtime.open(exported[0]), tmp_path)
    assert (len(gallery.batches["image"]), gallery.skipped, gallery.owner) == (4, 1, [])
    assert (len(gallery.batches["text"]), gallery.pairs) == (48, 0)
