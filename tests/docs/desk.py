"""What the docs assume: a working folder with pictures and models, and how their blocks are run there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdistill.cli import main
from clipdistill.data.sources import pairs
from tiny_runs import TINY, write_chinese_clip

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
#: What makes the documented runs small enough for a test.
SMALL = [*(f"student.{key}={value}" for key, value in TINY.items() if key != "vocab_size"), "train.workers=0"]
SMALL += ["student.image_size=48", "train.epochs=1", "train.batch_size=8", "student.tokenizer=auto"]
#: The same for a grid that trains a teacher of its own on drawn pictures.
SMALL_GRID = [*SMALL, "data=scenes:train?n=24", "evaluate.image_retrieval=null", "evaluate.zeroshot=null"]
#: Another process would import torch for longer than it trains.
ONE_PROCESS = ["--jobs", "1"]
#: A student that is fine-tuned, or whose towers are another's, brings its sizes along.
SMALL_SIZED = ["train.workers=0", "train.epochs=1", "train.batch_size=8"]
SMALL_TUNING = ["train.workers=0", "train.steps=2", "train.batch_size=8", "evaluate.every=null"]
SMALL_GRID += [f"teacher.{word}" for word in SMALL_GRID[: len(SMALL) + 1]]
#: Beginnings of overrides that make a student's sizes not a preset's.
_SIZED = ("student.pretrained=", "student.keep=", "student.preset=scenes-", "student.preset=vit-tiny-cifar")


def small(words: list[str]) -> list[str]:
    """The overrides that a documented command needs to be quick."""
    if words[0] == "chinese-clip":
        return SMALL_TUNING
    if words[0] in ("distill", "plan") and any(word.startswith(_SIZED) for word in words):
        return SMALL_SIZED
    if words[0] in ("distill", "plan"):
        return SMALL
    if words[0] == "export" and not {"--precision", "--layout"} & set(words):
        return ["--precision", "float32"]  # the gate has tests of its own
    if words[0] == "compare" and ("--recipes" in words or words[1].endswith(".yaml")):
        return [*ONE_PROCESS, *SMALL]
    return [*ONE_PROCESS, *SMALL_GRID] if words[0] == "compare" and "--grid" in words else []


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of one language, in order."""
    return [block for found, block in all_blocks(page) if found == language]


def all_blocks(page: Path) -> list[tuple[str, str]]:
    """Every block of a page with its language, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```([\w-]*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run_commands(block: str) -> None:
    """Run every line of a ``bash`` block as the program would be; a command that fails is an assertion."""
    for line in block.splitlines():
        program, *words = shlex.split(line)
        if program == "torchrun":
            start, words = words[: words.index("clipdistill") + 1], words[words.index("clipdistill") + 1 :]
            _torchrun(start, [*words, *small(words)])
            continue
        assert program == "clipdistill"
        resume = ["--resume"] if "--resume" in words else []
        words = [word for word in words if word != "--resume"]
        assert main([*words, *small(words), *resume]) == 0, line


def _torchrun(start: list[str], words: list[str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *start, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def make_desk(desk: Path) -> None:
    """Fill a folder with photos, models, and the files whose names head the YAML blocks."""
    pictures(desk / "photos" / "train", "scenes:train?n=24")
    pictures(desk / "photos" / "test", "scenes:test?n=16")
    pictures(desk / "products" / "train", "scenes:train?n=12&copies=2")
    pictures(desk / "products" / "test", "scenes:test?n=8&copies=2")
    class_folders(desk / "signs" / "train", "scenes:zeroshot?n=24&seed=1")
    class_folders(desk / "signs" / "test", "scenes:zeroshot?n=16")
    words = [f"data={desk}/photos/train", *SMALL, "student.vocab_size=520", f"out={desk}/made"]
    assert main(["distill", "recipe=clip", *words]) == 0
    (desk / "models").mkdir()
    (desk / "made" / "student").rename(desk / "models" / "teacher")
    shutil.copytree(desk / "models" / "teacher", desk / "models" / "student")
    for split in ("train", "valid"):
        write_chinese_clip(desk / "datasets" / "MUGE" / split, f"scenes:{split.replace('valid', 'test')}?n=16&lang=zh")
    for page in PAGES:
        for block in blocks(page, "yaml"):
            name = re.match(r"# ([\w/.-]+\.yaml)", block)
            if name:
                (desk / name[1]).parent.mkdir(exist_ok=True)
                (desk / name[1]).write_text(block)


def pictures(folder: Path, uri: str) -> None:
    """Write drawn pictures as a folder with metadata.jsonl; copies of one scene are one group."""
    folder.mkdir(parents=True)
    source = pairs(uri)
    lines = []
    for index in range(len(source)):
        sample = source[index]
        row: dict[str, Any] = {"file_name": f"{index}.png", "text": sample.captions[0]}
        if "copies" in uri:
            row["group"] = sample.group
        _save(sample.image, folder / row["file_name"])
        lines.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def class_folders(folder: Path, uri: str) -> None:
    """Write labelled drawn pictures as one folder per class: how the object of each is painted."""
    source = pairs(uri)
    for index in range(len(source)):
        sample = source[index]
        assert sample.label is not None
        path = folder / str(sample.label).split()[-1] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(sample.image, path)


def _save(image: Any, path: Path) -> None:
    assert isinstance(image, np.ndarray)
    Image.fromarray(image).save(path)


def run_page(page: Path, desk: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the ``bash`` and ``python`` blocks of a page in order, in ``folder``, a copy of the desk of its own.

    Python blocks share their names. A page may begin with the exported student that the page on exports makes.
    """
    exported = desk / "exported" / "student"
    if "--model exported/student" in page.read_text(encoding="utf-8") and not exported.exists():
        words = ["--out", str(exported), "--precision", "float32"]
        assert main(["export", str(desk / "models" / "student"), *words]) == 0
    shutil.copytree(desk, folder)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, block in all_blocks(page):
        if language == "bash":
            run_commands(block)
        elif language == "python":
            exec(compile(block, str(page), "exec"), names)
