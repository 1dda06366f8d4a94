"""The runtime: the model's rows, without torch anywhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipdistill.errors import SearchError
from clipdistill.export.parity import model_images, model_texts
from clipdistill.search.runtime import BATCH, Runtime

CAPTIONS = ["x", "a red circle", "两只狗在海滩上", "Two dogs! " * 40, "", "🐶 on a beach"]


def test_rows_are_the_models(exported: tuple[Path, Any], picture: Any, png: Any, tmp_path: Path) -> None:
    folder, encoder = exported
    runtime = Runtime.open(folder, threads=1)
    drawn = [picture(seed, size) for seed, size in enumerate([(97, 64), (41, 83), (300, 33)])]
    (tmp_path / "a.png").write_bytes(png(drawn[1]))
    rows = runtime.images([drawn[0], tmp_path / "a.png", png(drawn[2])])
    assert rows.shape == (3, runtime.width)
    assert rows.dtype == np.float32
    assert np.abs(rows - model_images(encoder, drawn)).max() < 1e-5
    rows = runtime.texts(CAPTIONS)
    assert np.abs(rows - model_texts(encoder, CAPTIONS)).max() < 1e-5
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5
    assert np.abs(rows[0] - rows[1]).max() > 1e-2
    assert (runtime.sides, runtime.bias, runtime.fingerprint) == ("IT", None, encoder.fingerprint)
    assert runtime.scale == pytest.approx(encoder.scale)


def test_many_captions_come_back_in_their_own_order(exported: tuple[Path, Any]) -> None:
    runtime = Runtime.open(exported[0], threads=1)
    captions = [f"{number} {'dog ' * (number * 7 % 30)}" for number in range(2 * BATCH + 5)]
    seen: list[tuple[int, ...]] = []
    read = runtime.reader

    class Watched:
        rules, lengths = read.rules, staticmethod(read.lengths)

        def __call__(self, words: list[str]) -> Any:
            tokens = read(words)
            seen.append(tokens["input_ids"].shape)
            return tokens

    runtime.reader = Watched()  # type: ignore[assignment]
    together = runtime.texts(captions)
    alone = np.concatenate([Runtime.texts(runtime, [caption]) for caption in captions[::13]])
    assert np.abs(together[::13] - alone).max() < 1e-5
    assert [rows for rows, _ in seen[:3]] == [BATCH, BATCH, 5]
    lengths = [length for _, length in seen[:3]]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] < 77 * 2


def test_nothing_gives_no_rows(exported: tuple[Path, Any]) -> None:
    runtime = Runtime.open(exported[0])
    assert runtime.texts([]).shape == runtime.images([]).shape == (0, runtime.width)


def test_it_runs_where_torch_is_not(exported: tuple[Path, Any], picture: Any, tmp_path: Path) -> None:
    folder, encoder = exported
    picture(5).save(tmp_path / "a.png")
    blocked = "{'torch', 'transformers', 'safetensors', 'pyarrow', 'onnx', 'torchvision', 'huggingface_hub', 'ftfy'}"
    program = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import numpy as np\n"
        "from clipdistill.search.runtime import Runtime\n"
        "from clipdistill.search.golden import check_golden\n"
        "runtime = Runtime.open(sys.argv[1], threads=1)\n"
        "np.savez(sys.argv[3], images=runtime.images([sys.argv[2]]), texts=runtime.texts(['a red circle']))\n"
        "print(check_golden(sys.argv[1]))\n"
    )
    arguments = [str(folder), str(tmp_path / "a.png"), str(tmp_path / "rows.npz")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    rows = np.load(tmp_path / "rows.npz")
    assert np.abs(rows["images"] - model_images(encoder, [picture(5)])).max() < 1e-5
    assert np.abs(rows["texts"] - model_texts(encoder, ["a red circle"])).max() < 1e-5


def test_a_side_that_is_not_there_is_named(exported: tuple[Path, Any], picture: Any) -> None:
    runtime = Runtime.open(exported[0])
    section = runtime.record["runtime"]
    for side, embed in (("image", lambda one: one.images([picture()])), ("text", lambda one: one.texts(["x"]))):
        less = {key: value for key, value in section.items() if key != side}
        with pytest.raises(SearchError, match=f"has no {side} tower"):
            embed(Runtime(exported[0], {**runtime.record, "runtime": less}))


def test_one_text_is_no_list_of_texts(exported: tuple[Path, Any]) -> None:
    with pytest.raises(SearchError, match="Put it in brackets"):
        Runtime.open(exported[0]).texts("a red circle")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "there is no such file"),
        ("{", "is not an exported model"),
        ("[]", "is a model that is not exported"),
        ('{"width": 3}', "clipdistill export .* --out FOLDER"),
        ('{"runtime": {"version": 9}}', "of version 9, this clipdistill reads version 1"),
    ],
)
def test_other_folders_are_refused(record: str | None, message: str, tmp_path: Path) -> None:
    if record is not None:
        (tmp_path / "clipdistill.json").write_text(record)
    with pytest.raises(SearchError, match=message):
        Runtime.open(tmp_path)


def test_a_damaged_graph_is_named(exported: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported[0], folder)
    graph = folder / "onnx" / "text_model.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    with pytest.raises(SearchError, match=r"text_model\.onnx cannot be loaded"):
        Runtime.open(folder).texts(["x"])
