"""Models side by side: what the table says, before anyone draws it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipdistill.evaluation.evaluate import Evaluation

_GROUPS = {
    "text_to_image_": "Text to image",
    "image_to_text_": "Image to text",
    "image_to_image_": "Image to image",
    "zeroshot_": "Zero-shot classes",
}
_LABELS = {
    "mean_recall": ("Both directions", "mean recall"),
    "zeroshot_acc1": ("Zero-shot classes", "top 1"),
    "zeroshot_acc5": ("Zero-shot classes", "top 5"),
    "classify_top1": ("Classifier head", "top 1"),
    "classify_top5": ("Classifier head", "top 5"),
    "zeroshot_mean_per_class_recall": ("Zero-shot classes", "mean per class"),
}
_LATENCIES = {"image_ms": "picture, ms", "text_ms": "caption, ms"}


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure of every model, missing ones None.

    ``changes`` are points against the first model, unless there is a teacher, a baseline and a distilled model:
    then ``gain`` is distilled minus baseline in points, and ``closed`` the percentage of the gap between baseline and
    teacher that it closes, if there is one. ``best`` marks the highest value among several students.
    """

    group: str
    label: str
    values: list[float | None]
    changes: list[float | None]
    best: list[bool]
    gain: float | None = None
    closed: float | None = None


@dataclass(frozen=True)
class Size:
    """One line on what a model costs: ``texts`` to read, ``exact`` figures."""

    label: str
    texts: list[str]
    exact: list[str]


def has_trio(evaluations: Sequence[Evaluation]) -> bool:
    """Whether the models are named as in a distillation experiment: teacher, baseline and distilled."""
    return {"teacher", "baseline", "distilled"} <= {found.name for found in evaluations}


def rows(evaluations: Sequence[Evaluation]) -> list[Row]:
    """Return one row per metric that any model has, in the order in which the metrics were measured."""
    metrics = dict.fromkeys(metric for found in evaluations for metric in found.metrics)
    return [_row(metric, evaluations) for metric in metrics]


def sizes(evaluations: Sequence[Evaluation]) -> list[Size]:
    """Return parameters and latencies."""
    lines = [
        _counts("parameters", [found.params for found in evaluations]),
        _counts("image tower", [found.image_params for found in evaluations]),
        _counts("text tower", [found.text_params for found in evaluations]),
    ]
    for key in dict.fromkeys(key for found in evaluations for key in found.latency):
        times = [found.latency.get(key) for found in evaluations]
        texts = ["–" if time is None else f"{time:.3g}" if time < 100 else f"{time:.0f}" for time in times]
        lines.append(Size(_LATENCIES.get(key, key), texts, texts))
    return lines


def short_count(number: int) -> str:
    """Write a count in three digits: 812, 94.1 k, 3.20 M, 1.01 B."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit * 0.9995:
            scaled = number / unit
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f} {name}"
    return str(number)


def points(value: float | None) -> str:
    """Write a metric or nothing: 45.3."""
    return "–" if value is None else f"{value:.1f}"


def change(value: float | None) -> str:
    """Write a difference with its sign: +3.2, \N{MINUS SIGN}0.4; a change that rounds to nothing has none."""
    if value is None:
        return ""
    text = f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
    return "0.0" if text[1:] == "0.0" else text


def share(value: float | None) -> str:
    """Write a share of the gap: 62 %, with a space that does not break."""
    return "" if value is None else f"{round(value)}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")


def _row(metric: str, evaluations: Sequence[Evaluation]) -> Row:
    group, name = label(metric)
    values = [_finite(found.metrics.get(metric)) for found in evaluations]
    gain, closed = None, None
    changes = [_difference(value, values[0]) for value in values]
    if has_trio(evaluations):
        changes = [None] * len(values)
        by_name = {found.name: value for found, value in zip(evaluations, values, strict=True)}
        gain = _difference(by_name["distilled"], by_name["baseline"])
        gap = _difference(by_name["teacher"], by_name["baseline"])
        closed = 100 * gain / gap if gain is not None and gap is not None and gap > 0 else None
    changes[0] = None
    return Row(group, name, values, changes, _best(evaluations, values), gain, closed)


def _best(evaluations: Sequence[Evaluation], values: Sequence[float | None]) -> list[bool]:
    """Mark the highest value among the models that are no teachers, if there are several, as far as shown digits go."""
    students = [found.name.split()[:1] != ["teacher"] for found in evaluations]
    shown = [points(value) if student else None for student, value in zip(students, values, strict=True)]
    known = [value for student, value in zip(students, values, strict=True) if student and value is not None]
    if len(known) < 2:
        return [False] * len(values)
    return [text == points(max(known)) for text in shown]


def label(metric: str) -> tuple[str, str]:
    """Return the group a metric is shown in, and what it is called there."""
    if metric in _LABELS:
        return _LABELS[metric]
    for prefix, group in _GROUPS.items():
        if metric.startswith(prefix):
            return group, metric[len(prefix) :].replace("_", " ")
    return "Other", metric.replace("_", " ")


def _counts(label: str, numbers: list[int]) -> Size:
    return Size(label, [short_count(number) for number in numbers], [f"{number:,}" for number in numbers])


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value - base
