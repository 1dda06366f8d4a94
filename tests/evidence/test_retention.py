"""What a student keeps of its teacher: each figure against its plain meaning, and the whole report by the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_fakes import NASTY, fake

from clipdistill.cli import main
from clipdistill.data.samples import Sample
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, DataError
from clipdistill.evaluation import zeroshot
from clipdistill.evaluation.compression import cut
from clipdistill.evaluation.evaluate import Evaluation, Gallery
from clipdistill.evaluation.metrics import unit
from clipdistill.evidence.directions import Prompts, Side
from clipdistill.evidence.report.retention_page import retention_page
from clipdistill.evidence.report.retention_words import as_dict, tables, verdict
from clipdistill.evidence.retained import Retention, check_widths, measure, worst
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer
from tiny_runs import TINY


def side(found: Evaluation) -> Side:
    """A fake model with prompts of its own: three classes of two sentences, near the pictures that have their label."""
    gallery = found.galleries["zeroshot"]
    labels = np.array([int(str(sample.label)[-1]) for sample in gallery.samples])
    centres = np.stack([gallery.images[labels == number].mean(axis=0) for number in range(3)])
    rows = np.repeat(centres, 2, axis=0) + np.random.default_rng(1).normal(size=(6, centres.shape[1]))
    prompts = Prompts(rows.astype(np.float32), [2, 2, 2], np.arange(len(labels)), labels)
    found.metrics |= zeroshot.classify(gallery.images, zeroshot.class_embeddings(prompts.rows, [2, 2, 2]), labels)
    return Side(found, 4 * found.params, prompts)


@pytest.fixture(scope="module")
def sides(samples: list[Sample]) -> tuple[Side, Side]:
    return side(fake("small", samples, 1.6)), side(fake("large", samples, 0.6, params=9_000_000))


@pytest.fixture(scope="module")
def found(sides: tuple[Side, Side]) -> Retention:
    return measure(*sides, widths=[4, 8])


def test_every_metric_of_eval_is_told_of_both_with_the_same_value(found: Retention) -> None:
    for name, model in (("student", found.student.found), ("teacher", found.teacher.found)):
        told = {metric: getattr(kept, name).value for metric, kept in found.kept.items()}
        assert told == pytest.approx(model.metrics)
    for kept in found.kept.values():
        assert kept.difference.value == pytest.approx(kept.student.value - kept.teacher.value)
        assert kept.difference.low is not None
        assert kept.difference.high is not None
        assert kept.difference.low <= kept.difference.value <= kept.difference.high


def test_narrower_rows_are_those_of_a_model_cut_by_hand(found: Retention) -> None:
    gallery, texts = found.student.found.galleries["retrieval"], found.student.found.texts
    assert texts is not None
    lines = {line.width: line for line in found.lines if line.model == "small" and line.form == "float32"}
    assert list(lines) == [16, 8, 4]
    for width, line in lines.items():
        images, captions = cut(gallery.images, width), cut(texts, width)
        scores = captions @ images.T
        hits = []
        for row, own in zip(scores, gallery.questions[1], strict=True):
            hits.append(np.delete(row, own).max() < row[own].max())
        assert line.figures["text_to_image_R@1"] == pytest.approx(100 * np.mean(hits))
        prompts = found.student.prompts
        assert prompts is not None
        centres = unit(unit(prompts.rows[:, :width]).reshape(3, 2, width).mean(axis=1))
        right = (images @ centres.T).argmax(axis=1) == prompts.labels
        assert line.figures["zeroshot_acc1"] == pytest.approx(100 * np.mean(right))
        assert line.row_bytes == 4 * width


def test_copies_of_a_picture_are_drawn_as_one(sides: tuple[Side, Side]) -> None:
    """A row for every caption of a picture says no more than one row with all of them."""
    student, teacher = (replace(one, prompts=None) for one in sides)

    def copied(whole: Side) -> Side:
        galleries = {
            task: replace(gallery, contents=[row - row % 4 for row in range(len(gallery.contents))])
            for task, gallery in whole.found.galleries.items()
        }
        return replace(whole, found=replace(whole.found, galleries=galleries))

    once, copies = (measure(*both, widths=[]) for both in ((student, teacher), (copied(student), copied(teacher))))
    units = [len(np.unique(one.student.directions()["text_to_image"].pictures)) for one in (once, copies)]
    assert units[1] == -(-units[0] // 4)
    assert copies.kept["text_to_image_R@1"].student.low is None, "ten pictures are too few"


def test_ways_to_store_are_told_of_both_models(found: Retention) -> None:
    for name in ("small", "large"):
        whole, *rest = [line for line in found.lines if line.model == name]
        stored = {(line.form, line.rescored): line for line in rest if line.width == 16}
        assert set(stored) == {
            *(("float16", False), ("int8", False), ("int8", True), ("binary", False), ("binary", True))
        }
        # No gallery here is larger than what is compared again.
        assert stored["binary", True].figures == whole.figures
        assert stored["binary", False].figures["text_to_image_R@1"] < whole.figures["text_to_image_R@1"]
        assert stored["binary", False].row_bytes == 2


def test_choices_are_counted_picture_by_picture(found: Retention) -> None:
    assert found.choices is not None
    chosen = []
    for model in (found.student, found.teacher):
        assert model.prompts is not None
        centres = unit(unit(model.prompts.rows).reshape(3, 2, -1).mean(axis=1))
        chosen.append((unit(model.found.galleries["zeroshot"].images) @ centres.T).argmax(axis=1))
        labels = model.prompts.labels
    mine, theirs = chosen
    assert found.choices.same == pytest.approx(100 * np.mean(mine == theirs))
    assert found.choices.teacher_alone == pytest.approx(100 * np.mean((theirs == labels) & (mine != labels)))
    parts = found.choices.both + found.choices.student_alone + found.choices.teacher_alone + found.choices.neither
    assert parts == pytest.approx(100)


def test_one_models_queries_in_the_others_index(found: Retention) -> None:
    crossings = {(one.asks, one.way): one for one in found.crossings}
    assert len(crossings) == 4
    student, teacher = found.student.found, found.teacher.found
    assert student.texts is not None
    gallery = teacher.galleries["retrieval"]
    scores = unit(student.texts) @ unit(gallery.images).T
    ranks = [
        1 + np.sum(np.delete(row, own) >= row[own].max()) for row, own in zip(scores, gallery.questions[1], strict=True)
    ]
    crossed = crossings["small", "text_to_image"].recalls
    assert {k: kept.student.value for k, kept in crossed.items()} == pytest.approx(
        {k: 100 * np.mean(np.array(ranks) <= k) for k in (1, 5, 10)}
    )
    assert crossed[5].teacher.value == pytest.approx(teacher.metrics["text_to_image_R@5"])
    pictures = crossings["large", "image_to_image"]
    assert pictures.holds == "small"
    scores = unit(teacher.galleries["image_retrieval"].images) @ unit(student.galleries["image_retrieval"].images).T
    np.fill_diagonal(scores, -9)
    keys = [set(several) for several in gallery.alike]
    firsts = [bool(keys[int(row.argmax())] & own) for row, own in zip(scores, keys, strict=True)]
    assert pictures.recalls[1].student.value == pytest.approx(100 * np.mean(firsts))
    assert set(found.cosines) == {"pictures", "captions"}


def test_models_of_other_widths_say_why_an_index_cannot_be_shared(sides: tuple[Side, Side]) -> None:
    student, teacher = sides
    found = measure(narrow(student, 8), teacher, widths=[4])
    assert found.crossings == []
    assert found.apart.startswith("small's rows are 8 wide and large's 16")
    assert found.agreements.keys() == {"text_to_image", "image_to_text", "image_to_image"}
    html = retention_page(found, {})
    assert "Not measured: small&#39;s rows are 8 wide" in html
    assert "must be built anew" in html
    assert as_dict(found)["one_index"]["absent"] == found.apart


def narrow(whole: Side, width: int) -> Side:
    evaluation, prompts = whole.found, whole.prompts
    assert evaluation.texts is not None
    assert prompts is not None
    gallery = replace(evaluation.galleries["retrieval"], images=evaluation.galleries["retrieval"].images[:, :width])
    small = replace(
        evaluation, texts=evaluation.texts[:, :width], galleries=dict.fromkeys(evaluation.galleries, gallery)
    )
    return replace(whole, found=small, prompts=replace(prompts, rows=prompts.rows[:, :width]))


def test_the_worst_queries_are_those_the_teacher_had_found() -> None:
    student = np.array([5, 900, 1, 40, 12, 9000, 3])
    teacher = np.array([1, 2, 1, 50, 10, 4000, 2])
    assert worst(student, teacher, 3) == [1, 0, 4]
    assert worst(student, teacher, 9) == [1, 0, 4, 6, 5]  # those beyond the first ten come after
    assert worst(teacher, teacher) == []


def test_a_model_beside_itself_keeps_everything(sides: tuple[Side, Side]) -> None:
    teacher = sides[1]
    found = measure(replace(teacher, found=replace(teacher.found, name="copy")), teacher, widths=[])
    for kept in found.kept.values():
        assert kept.share is not None
        assert (kept.share.value, kept.share.low, kept.share.high) == pytest.approx((100, 100, 100))
    assert all(set(one.overlap.values()) == {100} for one in found.agreements.values())
    assert all(one.correlation == pytest.approx(1) for one in found.agreements.values())
    assert found.worst == {"text_to_image": [], "image_to_image": []}
    assert found.cosines["pictures"] == pytest.approx(1)
    told = verdict(found)
    assert "copy keeps 100.0% (100.0 to 100.0) of large's mean recall" in told[0]
    assert "clearly lower: 0, clearly higher: 0, not told apart by these data: 14." in told[1]
    assert "Where it loses most" not in retention_page(found, {})


def test_classifiers_are_told_by_their_heads(samples: list[Sample]) -> None:
    def head(name: str, ranks: list[int]) -> Side:
        gallery = Gallery(samples, np.eye(40, 4, dtype=np.float32) + 1, list(range(40)), np.array(ranks))
        evaluation = Evaluation(name, name, 10, 10, 0, {}, {"image_ms": 1.0}, galleries={"zeroshot": gallery})
        return Side(evaluation, 40)

    found = measure(head("small", [1, 2, 6, 0] * 10), head("large", [1, 1, 6, 0] * 10))
    assert {name: kept.student.value for name, kept in found.kept.items()} == pytest.approx(
        {"classify_top1": 100 / 3, "classify_top5": 200 / 3}
    )
    assert verdict(found)[0].startswith("small keeps 50.0%")
    assert "Not measured" in retention_page(found, {})
    assert len(list(tables(found))) == 2


def test_models_without_a_common_figure_are_refused(sides: tuple[Side, Side]) -> None:
    one = replace(sides[0], prompts=None, found=replace(sides[0].found, galleries={}, texts=None, metrics={}))
    pictures = replace(sides[1].found, galleries={"image_retrieval": sides[1].found.galleries["retrieval"]})
    only = replace(one, found=replace(one.found, galleries={"zeroshot": sides[1].found.galleries["retrieval"]}))
    for student in (one, only):
        with pytest.raises(DataError, match="small and large have no figure in common"):
            measure(student, Side(pictures, 1))


def test_widths_are_below_the_students() -> None:
    assert check_widths(16, None) == [8, 4, 2]
    assert check_widths(16, [4, 8, 4]) == [8, 4]
    with pytest.raises(ConfigError, match="16 wide; --widths are below that, found 16"):
        check_widths(16, [16])


def test_the_page_is_whole_and_harmless(found: Retention) -> None:
    html = retention_page(found, {"retrieval": NASTY})
    assert "<script" not in html
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert html.count('class="strip"') == 2 * sum(len(queries) for queries in found.worst.values())
    assert sum(len(queries) for queries in found.worst.values()) > 2
    assert "<h1" in html
    assert html.index(verdict(found)[0].split("(")[0].split("'")[0]) < html.index("What is kept")
    assert retention_page(found, {"retrieval": NASTY}) == html


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled photos with captions, and two untrained models: one as wide as the teacher, one not."""
    desk = tmp_path_factory.mktemp("desk")
    source, lines = pairs("scenes:test?n=30"), []
    (desk / "photos").mkdir()
    for index in range(30):
        pixels = source[index].image
        assert isinstance(pixels, np.ndarray)
        Image.fromarray(pixels).save(desk / "photos" / f"{index}.png")
        line = {"file_name": f"{index}.png", "text": source[index].captions[0], "label": f"kind {index % 3}"}
        lines.append(json.dumps(line))
    (desk / "photos" / "metadata.jsonl").write_text("\n".join(lines))
    tokenizer = train_tokenizer([text for index in range(30) for text in source[index].captions], 520, 32)
    for seed, (name, width) in enumerate((("teacher", 16), ("student", 16), ("slim", 8))):
        build(StudentSpec(**{**TINY, "embed_dim": width}), tokenizer, width, seed).save(desk / name)
    return desk


def test_the_command_writes_the_report(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = desk / "kept"
    words = ["retention", str(desk / "student"), "--against", str(desk / "teacher"), "--data", str(desk / "photos")]
    assert main([*words, "--out", str(out), "--widths", "8,4"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("student ") or printed.startswith("teacher has nothing of ")
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"][0].split()[0] in printed
    assert len(report["kept"]) == 14
    assert {line["width"] for line in report["smaller_rows"]} == {16, 8, 4}
    assert len(report["one_index"]["crossings"]) == 4
    assert report["models"]["student"]["weight_bytes"] == 4 * report["models"]["student"]["params"]
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    compared = [str(desk / "student"), "--against", str(desk / "teacher"), "--data", str(desk / "photos")]
    assert main(["eval", *compared, "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)["models"]
    for model in ("student", "teacher"):
        told = {name: round(kept[model]["value"], 4) for name, kept in report["kept"].items()}
        assert told == pytest.approx(evaluated[model]["metrics"], abs=1e-3)


def test_the_command_prints_json_of_one_task(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["retention", str(desk / "slim"), "--against", str(desk / "teacher"), "--out", str(desk / "pictures")]
    assert main([*words, "--image-retrieval", str(desk / "photos"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["agreement"]) == ["image_to_image"]
    assert report["zeroshot_choices"] is None
    assert "slim's rows are 8 wide" in report["one_index"]["absent"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (lambda desk: ["--data", f"{desk}/photos", "--widths", "8,x"], "whole numbers with commas between"),
        (lambda desk: ["--data", f"{desk}/photos", "--widths", "64"], "16 wide; --widths are below that, found 64"),
        (lambda desk: [], "name data to evaluate on"),
        (lambda desk: ["--data", f"{desk}/photos", "--out", f"{desk}/photos"], "holds other files"),
    ],
)
def test_what_the_command_refuses(
    desk: Path, more: Callable[[Path], list[str]], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["retention", str(desk / "student"), "--against", str(desk / "teacher"), "--out", str(desk / "refused")]
    assert main([*words, *more(desk)]) == 1
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (desk / "refused").exists()
