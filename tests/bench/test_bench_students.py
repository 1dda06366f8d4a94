"""The list of presets: sizes, and which of them are fast enough."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clipdistill.bench import clock, students, towers
from clipdistill.cli import main
from clipdistill.models.presets import PRESETS

#: A preset with a text tower, one without, and one more.
FEW = {name: PRESETS[name] for name in ("scenes-student", "scenes-vit", "scenes-teacher")}
TIMES = {
    "scenes-student": {"image": {"p50": 4.0, "p99": 30.0}, "text": {"p50": 1.0, "p99": 2.0}},
    "scenes-vit": {"image": {"p50": 2.0, "p99": 3.0}},
    "scenes-teacher": {"image": {"p50": 3.0, "p99": 4.0}, "text": {"p50": 9.0, "p99": 9.5}},
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(students, "PRESETS", FEW)


def measured(name: str, device: torch.device) -> Any:
    return TIMES[name]


def test_sizes_are_those_of_the_models_with_clips_vocabulary() -> None:
    found = {student.name: student for student in students.students()}
    assert list(found) == list(FEW)
    encoder = towers.make("scenes-student")
    parts = dict(encoder.module.named_parameters())
    text = sum(part.numel() for name, part in parts.items() if name.startswith("text"))
    rows = parts["text_model.embeddings.token_embedding.weight"].shape[0]
    assert found["scenes-student"].text_params == text + (49_408 - rows) * 48
    image = sum(part.numel() for name, part in parts.items() if name.startswith("vis"))
    assert found["scenes-student"].image_params == image
    assert found["scenes-vit"].text_params == 0


def test_those_within_the_target_come_first_the_fastest_before_others() -> None:
    found = students.students(5.0, measure=measured)
    assert [student.name for student in found if student.meets(5.0)] == ["scenes-student", "scenes-vit"]
    lines = students.table(found, 5.0).splitlines()
    assert lines[0] == "2 of 3 presets have both medians within 5 ms:"
    assert [line.split()[0] for line in lines[2:7]] == [
        "scenes-vit",
        "scenes-student",
        "slower:",
        "preset",
        "scenes-teacher",
    ]
    assert lines[3].split()[3:] == ["4.00", "30.00", "1.00", "2.00", "-"]
    assert lines[2].split()[3:] == ["2.00", "3.00", "-", "-", "-"]
    assert students.table(found, 0.5).startswith("0 of 3 presets")


def test_quality_is_what_the_paper_says_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(students.published()) <= set(PRESETS)
    monkeypatch.setattr(students, "PRESETS", {"vit-tiny-16": PRESETS["vit-tiny-16"], **FEW})
    lines = students.table(students.students()).splitlines()
    assert lines[1].endswith("34.9 (30.6 alone)")
    assert lines[2].endswith("-")


def test_a_tower_that_needs_more_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from clipdistill.errors import ModelError

    def failing(name: str) -> Any:
        raise ModelError("timm is not here")

    monkeypatch.setattr(towers, "make", failing)
    assert main(["students"]) == 0
    assert "scenes-vit is left out: timm is not here" in capsys.readouterr().out


def test_towers_are_really_timed_with_so_many_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(clock, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(clock, "LEAST_ROUNDS", 3)
    seen = []
    monkeypatch.setattr(students, "_awaited", lambda rows: seen.append((rows.shape, torch.get_num_threads())))
    before = torch.get_num_threads()
    assert main(["students", "--target-ms", "100000", "--threads", "2"]) == 0
    assert torch.get_num_threads() == before
    assert "3 of 3 presets have both medians within 100000 ms" in capsys.readouterr().out
    assert {threads for _, threads in seen} == {2}
    assert {tuple(shape) for shape, _ in seen} == {(1, 128), (1, 48)}
    assert len(seen) == 4 * 5  # three rounds of five towers, and one of each to warm up


def test_a_device_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["students", "--target-ms", "5", "--device", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_percentiles_are_in_milliseconds_and_in_turn() -> None:
    found = clock.percentiles([0.001] * 99 + [0.101])
    assert found == {"p50": 1.0, "p99": pytest.approx(2.0), "rounds": 100}
    order: list[str] = []
    clock.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert order[:6] == ["a", "b"] * 3
    assert order.count("a") == order.count("b")
