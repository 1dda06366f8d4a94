"""The command line as a user meets it: the main job on real files, and every mistake one clear message."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipdistill.cli import main
from clipdistill.data.sources import pairs
from tiny_runs import TINY

Photos = Callable[..., Path]
SMALL = [*(f"student.{key}={value}" for key, value in TINY.items()), "train.batch_size=8", "train.steps=4"]
SMALL += ["train.workers=0", "train.precision=float32", "train.log_every=1"]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    """Make a folder of captioned JPEG files, in the Hugging Face imagefolder convention."""

    def make(count: int = 24, seed: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("photos")
        source = pairs(f"scenes:train?n={count}&seed={seed}&mismatch=0")
        lines = []
        for index in range(count):
            sample = source[index]
            assert isinstance(sample.image, np.ndarray)
            Image.fromarray(sample.image).save(folder / f"{index:03d}.jpg")
            entry = {
                "file_name": f"{index:03d}.jpg",
                "text": sample.captions[0],
                "label": "even" if index % 2 else "odd",
            }
            lines.append(json.dumps(entry))
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return make


@pytest.fixture(scope="session")
def folder(photos: Photos) -> Path:
    return photos()


@pytest.fixture(scope="session")
def teacher(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    assert main(["distill", "recipe=clip", f"data={folder}", *SMALL, "student.width=32", f"out={out}"]) == 0
    return out


def test_the_main_job_from_a_folder_to_a_report(
    folder: Path, photos: Photos, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test, out = photos(16, seed=1), tmp_path / "student"
    words = ["recipe=clip-kd", f"teachers.T={teacher}", f"data={folder}", f"evaluate.retrieval={test}"]
    assert main(["distill", *words, *SMALL, "student.tokenizer=auto", "evaluate.every=2", f"out={out}"]) == 0
    assert "report.html" in capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert set(report["models"]) == {"teacher", "student"}
    assert report["models"]["student"]["params"] < report["models"]["teacher"]["params"]
    assert 0 <= report["models"]["student"]["metrics"]["text_to_image_R@1"] <= 100
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert sum("metrics" in entry for entry in logged) == 2

    compared = tmp_path / "compared"
    assert main(["eval", str(out), "--against", str(teacher), "--data", str(test), "--out", str(compared)]) == 0
    printed = capsys.readouterr().out
    assert "student" in printed
    assert "teacher" in printed
    metrics = json.loads((compared / "report.json").read_text())["models"]["student"]["metrics"]
    assert {"text_to_image_R@1", "image_to_text_R@10", "image_to_image_mAP", "zeroshot_acc1"} <= set(metrics)
    assert (compared / "report.html").is_file()
    assert list((compared / "clip_benchmark").glob("*.json"))


def test_eval_prints_json(teacher: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(teacher), "--retrieval", str(folder), "--json"]) == 0
    assert "text_to_image_R@1" in json.dumps(json.loads(capsys.readouterr().out))


def test_data_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(folder)]) == 0
    assert "24" in capsys.readouterr().out
    assert main(["data", "check", str(folder), "--against", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["errors"]


def test_recipes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recipes", "list"]) == 0
    assert "CVPR 2024" in capsys.readouterr().out
    assert main(["recipes", "show", "clip-kd"]) == 0
    assert "fd_image" in capsys.readouterr().out
    file = tmp_path / "mine.yaml"
    file.write_text("terms: [{feature: 'SI>UI'}]")
    assert main(["recipes", "check", str(file)]) == 0
    assert "needs teachers.U" in capsys.readouterr().out


def broken_line(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "000.jpg", "text": "a"}\n{"file_name": oops\n')


def no_columns(folder: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("picture,words\n000.jpg,a\n")


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (broken_line, r"metadata\.jsonl:2"),
        (no_columns, r"picture, words"),
        (emptied, r"photos\d+"),
    ],
)
def test_data_that_cannot_be_opened(
    harm: Callable[[Path], None],
    message: str,
    photos: Photos,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = photos(), tmp_path / "run"
    harm(folder)
    assert main(["distill", "recipe=clip", f"data={folder}", *SMALL, f"out={out}"]) == 1
    assert_one_message(capsys, message)
    assert not out.exists()


def assert_one_message(capsys: pytest.CaptureFixture[str], message: str) -> None:
    errors = capsys.readouterr().err
    assert len(re.findall(r"^error: ", errors, re.MULTILINE)) == 1, errors
    assert re.search(message, errors), errors
    assert "Traceback" not in errors


def harm_pictures(folder: Path) -> None:
    whole = (folder / "003.jpg").read_bytes()
    (folder / "003.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "005.jpg").write_text("this is no picture")
    Image.new("1", (10_000, 10_000)).save(folder / "007.png")
    lines = (folder / "metadata.jsonl").read_text().replace("007.jpg", "007.png")
    (folder / "metadata.jsonl").write_text(lines)


def test_broken_pictures_are_named_counted_and_skipped(
    photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = photos(), tmp_path / "run"
    harm_pictures(folder)
    assert main(["distill", "recipe=clip", f"data={folder}", *SMALL, f"out={out}"]) == 0
    skipped = {
        entry["id"]: entry["reason"] for entry in map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    }
    assert set(skipped) == {"003.jpg", "005.jpg", "007.png"}
    assert "100.0 megapixels, the limit is 64" in skipped["007.png"]
    assert "truncated" in skipped["003.jpg"]
    assert "not a picture" in skipped["005.jpg"]
    capsys.readouterr()

    limited = tmp_path / "limited"
    words = ["distill", "recipe=clip", f"data={folder}", *SMALL, "train.max_broken=1", f"out={limited}"]
    assert main(words) == 1
    assert_one_message(capsys, "train.max_broken allows 1")
    assert not (limited / "student").exists()

    assert main(["data", "check", str(folder)]) == 1
    assert "007.png" in capsys.readouterr().out


def test_mistakes_are_one_message(
    folder: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    base = ["distill", f"data={folder}", *SMALL, f"out={out}"]
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((teacher / "student" / "config.json").read_text())
    for path in (teacher / "student").glob("*token*"):
        (bare / path.name).write_bytes(path.read_bytes())
    (bare / "preprocessor_config.json").write_text((teacher / "student" / "preprocessor_config.json").read_text())
    for words, message in [
        ([*base, "recipe=clip-kt"], "Did you mean 'clip-kd'"),
        ([*base, "recipe=clip-kd", f"teachers.T={bare}"], "holds no weights"),
        ([*base, "recipe=clip-kd", f"teachers.T={tmp_path}/none"], "none"),
        (["distill", "recipe=clip", f"data={tmp_path}/none", *SMALL, f"out={out}"], "none"),
        ([*base, "recipe=clip", f"out={folder}"], "is not empty"),
        ([*base, "recipe=clip", "train.step=3"], "Did you mean 'steps'"),
        (["distill", "nothing.yaml"], r"no run file nothing\.yaml"),
        (["eval", str(teacher)], "name data to evaluate on"),
        (["recipes", "show", "clip-k"], "Did you mean"),
        (["demo", "--out", str(folder)], "is not empty"),
    ]:
        assert main(words) == 1, words
        assert_one_message(capsys, message)
    assert not out.exists()


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "nothing", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_unknown_verbs_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distil"]) == 2
    assert "distill" in capsys.readouterr().err
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in ("demo", "distill", "eval", "data", "recipes"))


def test_help_imports_no_torch() -> None:
    program = "import sys; from clipdistill.cli import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
