"""The README and the docs are run: every command on real files, every Python block in order, every link."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from clipdistill.cli import main
from clipdistill.data.sources import pairs
from tiny_runs import TINY, write_chinese_clip

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What makes the documented runs small enough for a test.
SMALL = [*(f"student.{key}={value}" for key, value in TINY.items() if key != "vocab_size"), "train.workers=0"]
SMALL += ["student.image_size=48", "train.epochs=1", "train.batch_size=8", "student.tokenizer=auto"]
#: The same for a grid that trains a teacher of its own on drawn pictures.
SMALL_GRID = [*SMALL, "data=scenes:train?n=24", "evaluate.image_retrieval=null", "evaluate.zeroshot=null"]
#: A student that is fine-tuned brings its sizes along.
SMALL_TUNING = ["train.workers=0", "train.steps=2", "train.batch_size=8", "evaluate.every=null"]
SMALL_GRID += [f"teacher.{word}" for word in SMALL_GRID[: len(SMALL) + 1]]


def small(words: list[str]) -> list[str]:
    """The overrides that a documented command needs to be quick."""
    if words[0] == "chinese-clip":
        return SMALL_TUNING
    if words[0] in ("distill", "plan"):
        return SMALL
    if words[0] == "compare" and ("--recipes" in words or words[1].endswith(".yaml")):
        return SMALL
    return SMALL_GRID if words[0] == "compare" and "--grid" in words else []


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def pictures(folder: Path, uri: str) -> None:
    folder.mkdir(parents=True)
    source = pairs(uri)
    lines = []
    for index in range(len(source)):
        sample = source[index]
        assert isinstance(sample.image, np.ndarray)
        Image.fromarray(sample.image).save(folder / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": sample.captions[0]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder as the docs assume it: photos, a teacher, and the files whose names head the YAML blocks."""
    desk = tmp_path_factory.mktemp("desk")
    pictures(desk / "photos" / "train", "scenes:train?n=24")
    pictures(desk / "photos" / "test", "scenes:test?n=16")
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
    return desk


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs(
    page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    for line in "".join(blocks(page, "bash")).splitlines():
        program, *words = shlex.split(line)
        if program == "torchrun":
            start, words = words[: words.index("clipdistill") + 1], words[words.index("clipdistill") + 1 :]
            torchrun(start, [*words, *small(words)])
            continue
        assert program == "clipdistill"
        resume = ["--resume"] if "--resume" in words else []
        words = [word for word in words if word != "--resume"]
        assert main([*words, *small(words), *resume]) == 0, f"{line}\n{capsys.readouterr().err}"


def torchrun(start: list[str], words: list[str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *start, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_every_python_block_runs(page: Path, tmp_path: Path) -> None:
    program = "\n".join(blocks(page, "python"))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    for link in links:
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_every_run_key_is_documented() -> None:
    from clipdistill.config import _Section
    from clipdistill.models.presets import StudentSpec

    sections = [*_Section.__subclasses__(), StudentSpec]
    assert len(sections) > 8

    text = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8")
    for model in sections:
        for key in model.model_fields:
            assert re.search(rf"\b{key}\b", text), f"{model.__name__}.{key} is not in docs/runs.md"


def test_every_documented_run_file_is_a_run() -> None:
    from clipdistill.config import make_run
    from clipdistill.training.stages import stage_runs

    runs = [yaml.safe_load(block) for block in blocks(ROOT / "docs" / "runs.md", "yaml")]
    assert len(runs) >= 3
    assert max(len(stage_runs(make_run(run))) for run in runs) == 4


def test_every_key_of_a_term_is_documented() -> None:
    from clipdistill.algebra.reading import TERM_KEYS
    from clipdistill.algebra.term import ADAPTERS, VERBS

    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    words = {*TERM_KEYS, *ADAPTERS, *(metric for metrics in VERBS.values() for metric in metrics)}
    # Two stand in the table of verbs: "relation ... like ...", and "metrics" heads a column.
    assert not [word for word in words - {"like", "metric"} if not re.search(rf"`{word}\b", text)]


def test_every_flag_of_chinese_clip_is_documented() -> None:
    from clipdistill.coming_from.chinese_clip_flags import IDLE, MAPPED, REFUSED

    text = (ROOT / "docs" / "coming-from-chinese-clip.md").read_text(encoding="utf-8").replace("_", "-")
    assert not [flag for flag in (*MAPPED, *IDLE, *REFUSED) if f"`--{flag}`" not in text]


def test_every_recipe_is_documented() -> None:
    from clipdistill.algebra.recipe import available

    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in available())


METHODS = ROOT / "docs" / "methods.md"


@pytest.mark.parametrize("block", blocks(METHODS, "yaml"))
def test_every_documented_method_is_a_recipe(block: str) -> None:
    """A block headed by a recipe's name is that recipe."""
    from clipdistill.algebra.recipe import Recipe

    recipe = Recipe.load(yaml.safe_load(block))
    name = re.match(r"# recipe ([\w-]+)\n", block)
    assert name is None or recipe.terms == Recipe.load(name[1]).terms


def test_every_test_that_the_methods_name_exists() -> None:
    named = set(re.findall(r"\btest_\w+", METHODS.read_text(encoding="utf-8")))
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 20
    assert named <= set(re.findall(r"^def (test_\w+)", tests, re.MULTILINE))
