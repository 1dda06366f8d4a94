"""What the report says in figures: JSON, CLIP_benchmark's JSON, the comparison, the terminal's table."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from clipdistill.data.samples import Sample
from clipdistill.errors import DataError
from clipdistill.evaluation.evaluate import Evaluation
from clipdistill.evidence.report import as_dict, table, write_report
from clipdistill.evidence.report.comparison import change, rows, share, short_count
from clipdistill.evidence.report.results import clip_benchmark

DATASETS = {"retrieval": "scenes:test?n=40", "zeroshot": "photos/of things"}


def measured(name: str, **metrics: float) -> Evaluation:
    return Evaluation(name, f"models/{name}", 10, 6, 4, metrics)


def test_results_hold_rounded_percentages_and_sizes(trio: list[Evaluation]) -> None:
    models = as_dict(trio)["models"]
    assert list(models) == ["teacher", "baseline", "distilled"]
    teacher = models["teacher"]
    assert (teacher["params"], teacher["image_params"], teacher["text_params"]) == (86_192_640, 86_191_640, 1000)
    assert teacher["uri"] == "models/teacher"
    assert teacher["metrics"]["zeroshot_acc1"] == 61.2346
    assert set(teacher["metrics"]) == set(trio[0].metrics)
    assert teacher["latency"] == {"image_ms": 3.14159, "text_ms": 1.0}


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    found = measured("m", text_to_image_R=float("nan"), zeroshot_acc1=float("inf"))
    write_report([found], tmp_path, "t", facts={"loss": [float("nan")], "folder": Path("a/b")})
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    report = json.loads(text)
    assert report["models"]["m"]["metrics"] == {"text_to_image_R": None, "zeroshot_acc1": None}
    assert report["facts"] == {"loss": [None], "folder": "a/b"}


def test_clip_benchmark_files_have_its_names_and_fractions(trio: list[Evaluation]) -> None:
    files = clip_benchmark(trio[:1], DATASETS)
    retrieval, zeroshot = files.values()
    name = "scenes-test-n-40_models-teacher_teacher_en-zh_zeroshot_retrieval.json"
    assert next(iter(files)) == name
    assert retrieval["dataset"] == "scenes:test?n=40"
    assert (retrieval["model"], retrieval["pretrained"]) == ("teacher", "models/teacher")
    assert (retrieval["task"], retrieval["language"]) == ("zeroshot_retrieval", "en-zh")
    assert set(retrieval["metrics"]) == {f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)}
    own = trio[0].metrics["text_to_image_R@1"] / 100
    assert retrieval["metrics"]["image_retrieval_recall@1"] == pytest.approx(own, abs=1e-6)
    assert 0 < own < 1
    assert zeroshot["metrics"] == {"acc1": 0.612346, "acc5": 1.0, "mean_per_class_recall": 0.6}
    assert (zeroshot["task"], zeroshot["language"]) == ("zeroshot_classification", "en")


@pytest.mark.parametrize(
    ("texts", "label", "expected"), [(["狗"], "狗", ("zh", "cn")), (["a dog"], "dog", ("en", "en"))]
)
def test_the_language_is_that_of_captions_and_of_labels(
    trio: list[Evaluation], texts: list[str], label: str, expected: tuple[str, str]
) -> None:
    gallery = replace(trio[0].galleries["retrieval"], samples=[Sample("a", b"", {"": texts}, label)])
    found = replace(trio[0], galleries={"retrieval": gallery, "zeroshot": gallery})
    assert tuple(content["language"] for content in clip_benchmark([found], {}).values()) == expected


def test_file_names_are_safe_short_and_distinct() -> None:
    uri = "../../secret/" + "x" * 300
    found = [replace(measured(name, zeroshot_acc1=1.0), uri=uri) for name in ("a/b", "a:b", "..", "模型")]
    names = list(clip_benchmark(found, {"zeroshot": "C:\\data\x00"}))
    assert len(set(names)) == 4
    for name in names:
        assert len(name.encode()) < 255
        assert not set(name) & set('/\\:?*"<>|\x00 ')
        assert not name.startswith(".")
    assert "模型" in names[3]


def test_gap_closed_needs_a_gap() -> None:
    def closed(teacher: float, baseline: float, distilled: float) -> float | None:
        values = {"teacher": teacher, "baseline": baseline, "distilled": distilled}
        (row,) = rows([measured(name, mAP=value) for name, value in values.items()])
        assert row.gain == pytest.approx(distilled - baseline)
        assert row.changes == [None, None, None]
        return row.closed

    assert closed(80, 40, 60) == pytest.approx(50)
    assert closed(80, 40, 30) == pytest.approx(-25)
    assert closed(80, 40, 90) == pytest.approx(125)
    assert closed(40, 40, 60) is None
    assert closed(30, 40, 60) is None


def test_differences_are_to_the_first_model_and_absent_metrics_stay_absent() -> None:
    first, second = rows([measured("a", mAP=40.0), measured("b", mAP=42.5, zeroshot_acc1=3.0)])
    assert first.changes == [None, pytest.approx(2.5)]
    assert second.values == [None, 3.0]
    assert second.changes == [None, None]


def test_best_is_among_students_and_ties_share_it() -> None:
    evaluations = [measured("teacher T", m=90.0), measured("a", m=50.01), measured("b", m=50.04), measured("c", m=1.0)]
    assert rows(evaluations)[0].best == [False, True, True, False]
    assert rows(evaluations[:2])[0].best == [False, False]


def test_figures_are_written_in_three_digits() -> None:
    counts = {0: "0", 812: "812", 9_999: "10.0 k", 94_100: "94.1 k", 999_999: "1.00 M", 151_277_313: "151 M"}
    assert {number: short_count(number) for number in counts} == counts
    assert [change(3.24), change(-0.4), change(-0.01), change(None)] == ["+3.2", "−0.4", "0.0", ""]
    assert [share(62.4), share(-7.0), share(-0.4), share(None)] == ["62\u00a0%", "−7\u00a0%", "0\u00a0%", ""]


def test_table_fits_a_terminal_of_100_columns(trio: list[Evaluation]) -> None:
    text = _rendered(trio)
    lines = {line.split("  ")[0].strip(): line.split() for line in text.splitlines()}
    values = [f"{found.metrics['text_to_image_R@1']:.1f}" for found in trio]
    assert lines["Text to image, R@1"][4:7] == values
    assert lines["parameters"][1:] == ["86.2", "M", "3.00", "M", "3.00", "M"]
    assert "gap closed" in text
    assert max(map(len, text.splitlines())) <= 100
    assert text.replace("─", "").isascii()


def test_table_takes_names_literally_and_shows_differences() -> None:
    text = _rendered([measured("[red]a[/red]", mAP=40.0), measured("[/b", mAP=38.0)])
    assert "[red]a[/red]" in text
    assert "[/b" in text
    assert "38.0   -2.0" in text
    assert "Small figures: points above [red]a[/red]" in text
    assert "gap closed" not in text


def test_models_need_names_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a, a"):
        write_report([measured("a"), measured("a")], tmp_path / "out", "t")
    with pytest.raises(DataError, match="none"):
        write_report([], tmp_path / "out", "t")
    assert not (tmp_path / "out").exists()


def _rendered(evaluations: list[Evaluation]) -> str:
    file = io.StringIO()
    Console(file=file, width=100).print(table(evaluations))
    return file.getvalue()


def test_importing_the_package_brings_nothing_heavy() -> None:
    heavy = ("torch", "matplotlib", "jinja2", "transformers")
    code = f"import sys, clipdistill.evidence.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
