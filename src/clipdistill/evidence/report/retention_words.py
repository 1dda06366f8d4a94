"""What a retention report says in words, on the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from clipdistill.evaluation.bootstrap import Interval, Kept
from clipdistill.evidence.directions import FIRST
from clipdistill.evidence.report.comparison import Size, change, label, points, sizes
from clipdistill.evidence.report.results import as_dict as models_as_dict
from clipdistill.evidence.report.results import plain
from clipdistill.evidence.report.terminal import ascii_signs
from clipdistill.evidence.retained import Agreement, Crossing, Line, Retention

#: What the verdict names, in this order.
_HEADLINES = {
    "mean_recall": "mean recall between captions and pictures",
    "image_to_image_R@1": "image-to-image R@1",
    "zeroshot_acc1": "zero-shot top 1",
    "classify_top1": "top 1 as a classifier",
}
_UNSURE = " (too few for an interval)"
#: A direction for people.
WAYS = {
    "text_to_image": "Text to image",
    "image_to_text": "Image to text",
    "image_to_image": "Image to image",
    "zeroshot": "Zero-shot",
}


def verdict(found: Retention) -> list[str]:
    """Return sentences for who must decide: what is kept and at what cost, what is lost, whether the index can stay."""
    return [_keeps(found), _counted(found), _index(found)]


def _keeps(found: Retention) -> str:
    student, teacher = found.student.found.name, found.teacher.found.name
    shares = [
        f"{interval(kept.share, '%')}{_UNSURE if kept.share.low is None else ''} of its {name}"
        for metric, name in _HEADLINES.items()
        if (kept := found.kept.get(metric)) and kept.share is not None
    ]
    if not shares:
        told = [name for metric, name in _HEADLINES.items() if metric in found.kept] or ["what was measured"]
        return f"{teacher} has nothing of {_and(told)} that {student} could keep."
    shares[0] = shares[0].replace(" of its ", f" of {teacher}'s ", 1)
    return f"{student} keeps {_and(shares)}{_cost(found)}."


def _cost(found: Retention) -> str:
    """With which part of the parameters and of the time."""
    student, teacher = found.student.found, found.teacher.found
    parts = [f"{_percent(student.params, teacher.params)} of the parameters"]
    for key, what in (("image_ms", "picture"), ("text_ms", "caption")):
        if key in student.latency and teacher.latency.get(key):
            parts.append(f"about {100 * student.latency[key] / teacher.latency[key]:.0f}% of the time for a {what}")
    return f", with {_and(parts)}"


def _counted(found: Retention) -> str:
    """How many figures differ by more than chance, and where most is lost."""
    told_apart = [clear(kept.difference) for kept in found.kept.values()]
    told = (
        f"Of {len(found.kept)} figures clearly lower: {told_apart.count(-1)}, clearly higher: {told_apart.count(1)}, "
        f"not told apart by these data: {told_apart.count(0)}."
    )
    metric, most = min(found.kept.items(), key=lambda item: item[1].difference.value)
    if most.difference.value >= 0:
        return told
    return (
        f"{told} The largest loss is in {metric_name(metric)}: {points(most.student.value)} "
        f"against {points(most.teacher.value)}."
    )


def clear(difference: Interval) -> int:
    """1 or -1 where the interval, as it is shown, lies above or below zero, else 0."""
    if difference.low is None or difference.high is None:
        return 0
    return int(round(difference.low, 1) > 0) - int(round(difference.high, 1) < 0)


def _index(found: Retention) -> str:
    """Whether the student's queries can be asked of the teacher's gallery."""
    teacher = found.teacher.found.name
    if found.apart:
        return f"The index of {teacher} must be built anew: {found.apart}"
    first = next((one for one in found.crossings if one.holds == teacher), None)
    if first is None:
        return f"These data do not tell whether the index of {teacher} can stay: that takes searches for pictures."
    kept = first.recalls[10]
    share = (
        f", {interval(kept.share, '%')} of what its own queries find"
        if kept.share and kept.share.low is not None
        else ""
    )
    return (
        f"In the index of {teacher}, queries of {first.asks} have a {WAYS[first.way].lower()} R@10 of "
        f"{points(kept.student.value)}{share}."
    )


def correlation(one: Agreement) -> str:
    """Write a rank correlation, or that there was nothing to rank."""
    return "–" if one.correlation is None else f"{one.correlation:.3f}"


def metric_name(metric: str) -> str:
    """Return a metric for the middle of a sentence: text to image, R@1."""
    group, name = label(metric)
    return f"{group[:1].lower()}{group[1:]}, {name}"


def interval(found: Interval | None, unit: str = "") -> str:
    """Write a figure with its interval: 91.2% (89.9 to 92.4)."""
    if found is None:
        return "–"
    value = f"{points(found.value)}{unit}"
    if found.low is None or found.high is None:
        return value
    return f"{value} ({points(found.low)} to {points(found.high)})"


def signed(found: Interval) -> str:
    """Write a difference with its interval, all with their signs."""
    if found.low is None or found.high is None:
        return change(found.value)
    return f"{change(found.value)} ({change(found.low)} to {change(found.high)})"


def line_name(line: Line) -> str:
    """What a way to store rows is called: 512 int8, rescored."""
    return f"{line.width} {line.form}{', rescored' if line.rescored else ''}"


def costs(found: Retention) -> list[Size]:
    """Parameters, weights and latencies, the teacher's first."""
    sides = (found.teacher, found.student)
    megabytes = [f"{side.weight_bytes / 1e6:.3g}" for side in sides]
    whole, *rest = sizes([side.found for side in sides])
    weights = Size("weights, MB", megabytes, [f"{side.weight_bytes:,}" for side in sides])
    widths = [f"{side.width}" for side in sides]
    return [whole, weights, *rest, Size("width of rows", widths, widths)]


def crossing_cells(one: Crossing) -> list[str]:
    """Who asks, whose gallery, R@1, 5, 10, and the share of the teacher's own R@10."""
    return [
        one.asks,
        one.holds,
        *(points(kept.student.value) for kept in one.recalls.values()),
        interval(one.recalls[10].share),
    ]


def tables(found: Retention) -> Iterator[Table]:
    """The figures for the terminal."""
    student, teacher = found.student.found.name, found.teacher.found.name
    yield _table(
        ["quality, %", teacher, student, "difference", "kept, %"],
        [[f"{', '.join(label(metric))}", *kept_cells(kept)] for metric, kept in found.kept.items()],
    )
    if found.agreements:
        ks = sorted({k for agreement in found.agreements.values() for k in agreement.overlap})
        rows = [
            [WAYS[way], *(points(one.overlap.get(k)) for k in ks), correlation(one)]
            for way, one in found.agreements.items()
        ]
        yield _table(["the same answers, %", *(f"top {k}" for k in ks), "rank correlation"], rows)
    if found.choices:
        chosen = found.choices
        cells = [chosen.same, chosen.both, chosen.student_alone, chosen.teacher_alone, chosen.neither]
        heads = [
            "zero-shot, % of pictures",
            "same class",
            "both right",
            f"{student} alone",
            f"{teacher} alone",
            "neither",
        ]
        yield _table(heads, [["", *map(points, cells)]])
    if found.lines:
        ways = list(found.lines[0].figures)
        lines = [
            [f"{line.model}, {line_name(line)}", f"{line.row_bytes:,}", *(points(line.figures[way]) for way in ways)]
            for line in found.lines
        ]
        yield _table(["smaller rows", "bytes", *(", ".join(label(way)) for way in ways)], lines)
    if found.crossings:
        crossed = [[WAYS[one.way], *crossing_cells(one)] for one in found.crossings]
        yield _table(["one index, two models", "queries", "gallery", "R@1", "R@5", "R@10", "kept of R@10, %"], crossed)
    elif found.apart:
        yield _table(["one index, two models"], [[f"absent: {found.apart}"]])
    yield _table(["cost", teacher, student], [[size.label, *size.texts] for size in costs(found)])


def kept_cells(kept: Kept) -> list[str]:
    """The teacher's figure, the student's, their difference, and the share that is kept."""
    return [interval(kept.teacher), interval(kept.student), signed(kept.difference), interval(kept.share)]


def as_dict(found: Retention) -> dict[str, Any]:
    """Return all figures as JSON knows them."""
    models = models_as_dict([found.student.found, found.teacher.found])["models"]
    for side in (found.student, found.teacher):
        models[side.found.name] |= {"weight_bytes": side.weight_bytes, "width": side.width}
    content: dict[str, Any] = {
        "verdict": verdict(found),
        "student": found.student.found.name,
        "teacher": found.teacher.found.name,
        "models": models,
        "kept": {metric: asdict(kept) for metric, kept in found.kept.items()},
        "agreement": {way: asdict(one) for way, one in found.agreements.items()},
        "zeroshot_choices": asdict(found.choices) if found.choices else None,
        "smaller_rows": [asdict(line) for line in found.lines],
        "one_index": {
            "absent": found.apart or None,
            "centred_cosine": found.cosines,
            "crossings": [asdict(one) for one in found.crossings],
        },
        "worst_queries": found.worst,
    }
    clean: dict[str, Any] = plain(content)
    return clean


def first_of(found: Retention) -> list[str]:
    """The directions that the lines of smaller rows are told by."""
    return [way for way, metric in FIRST.items() if found.lines and metric in found.lines[0].figures]


def _table(heads: list[str], rows: list[list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(Text(ascii_signs(head)), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(ascii_signs(cell)) for cell in row))
    return table


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g}%" if whole else "–"
