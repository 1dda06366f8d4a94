"""What a student keeps of its teacher: quality with intervals, the same answers, smaller rows, the teacher's index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipdistill.errors import ConfigError, DataError
from clipdistill.evaluation.agreement import centred_cosine, predictions, rank_correlation, top_k_overlap
from clipdistill.evaluation.bootstrap import Kept, Statistic, mean_of, paired, per_class, ratio
from clipdistill.evaluation.compression import ranks_stored, row_bytes
from clipdistill.evaluation.retrieval import KS
from clipdistill.evidence.directions import FIRST, Direction, Side
from clipdistill.progress import progress

#: Of more queries so many, spread evenly, are asked for overlap and for smaller rows, and for rank correlation.
MOST_QUERIES = 5_000
MOST_CORRELATED = 1_000
#: How many of the worst queries are shown.
WORST = 6
#: What is answered among so many is what a user of the teacher has seen.
_SEEN = 10
#: Directions that are measured on the same pictures.
_TASKS = (("text_to_image", "image_to_text"), ("image_to_image",), ("zeroshot",))
#: Formats, and whether the first rows are compared again.
_STORED = (("float16", False), ("int8", False), ("int8", True), ("binary", False), ("binary", True))

Ranks = Mapping[str, NDArray[np.intp]]


@dataclass(frozen=True)
class Agreement:
    """How alike two models answer ``queries``: shared rows among the first k in percent, and Spearman's correlation, if
    there is more than one row to rank.
    """

    overlap: dict[int, float]
    correlation: float | None
    queries: int


@dataclass(frozen=True)
class Choices:
    """Zero-shot: in percent of the pictures the same class chosen, both right, one alone right, neither."""

    same: float
    both: float
    student_alone: float
    teacher_alone: float
    neither: float


@dataclass(frozen=True)
class Line:
    """A model's rows stored in one way, and the figures that are left, by metric in percent."""

    model: str
    width: int
    form: str
    rescored: bool
    row_bytes: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Crossing:
    """One model's queries over the other's gallery, beside the teacher's over its own; ``way`` as in ``FIRST``."""

    asks: str
    holds: str
    way: str
    recalls: dict[int, Kept]


@dataclass(frozen=True)
class Retention:
    """All that is told of a student beside its teacher.

    ``apart`` says why one model's queries cannot be asked of the other's gallery; empty if they can. ``worst`` are the
    numbers of the queries on which the student loses most rank. ``cosines`` are centred, by "pictures" and "captions".
    """

    student: Side
    teacher: Side
    kept: dict[str, Kept]
    agreements: dict[str, Agreement]
    choices: Choices | None
    lines: list[Line]
    crossings: list[Crossing]
    cosines: dict[str, float]
    apart: str
    worst: dict[str, list[int]]


def measure(student: Side, teacher: Side, widths: Sequence[int] | None = None) -> Retention:
    """Measure all there is; without ``widths`` rows are also cut to a half, a quarter and an eighth.

    Raises:
        ConfigError: a width is not below the student's.
        DataError: no figure was measured of both models.
    """
    mine, theirs = student.directions(), teacher.directions()
    shared = [way for way in mine if way in theirs]
    ranks = [{way: own[way].ranks() for way in shared} for own in (mine, theirs)]
    kept = _kept(student, teacher, (mine, theirs), ranks)
    if not kept:
        raise DataError(
            f"{student.found.name} and {teacher.found.name} have no figure in common, so nothing says what is kept. "
            f"Found {_list(student.found.metrics)} and {_list(teacher.found.metrics)}."
        )
    widths, apart = check_widths(student.width, widths), _apart(student, teacher)
    return Retention(
        student=student,
        teacher=teacher,
        kept=kept,
        agreements={way: _agreement(mine[way], theirs[way]) for way in shared if way != "zeroshot"},
        choices=_choices(mine["zeroshot"], theirs["zeroshot"], ranks) if "zeroshot" in shared else None,
        lines=_lines((student, teacher), widths, shared) if shared else [],
        crossings=[] if apart else list(_crossings(student, teacher, ranks[1])),
        cosines={} if apart else _cosines(student, teacher),
        apart=apart,
        worst={
            way: [int(mine[way].numbers[query]) for query in worst(ranks[0][way], ranks[1][way])]
            for way in ("text_to_image", "image_to_image")
            if way in shared
        },
    )


def check_widths(width: int, widths: Sequence[int] | None) -> list[int]:
    """Return the widths to cut rows to, the widest first; raise ConfigError for one that is not below ``width``."""
    if widths is None:
        return [part for part in (width // 2, width // 4, width // 8) if part]
    if wrong := [each for each in widths if not 0 < each < width]:
        raise ConfigError(f"the student's rows are {width} wide; --widths are below that, found {wrong[0]}.")
    return sorted(set(widths), reverse=True)


def worst(student: NDArray[np.intp], teacher: NDArray[np.intp], count: int = WORST) -> list[int]:
    """Choose the queries on which the student's rank ``[Q]`` is furthest behind the teacher's, the worst first.

    Those that the teacher answers among its first ten come first: what it does not find is no loss to anyone.
    """
    loss = student - teacher
    order = np.lexsort((np.arange(len(loss)), -loss, teacher > _SEEN))
    return [int(query) for query in order if loss[query] > 0][:count]


def _kept(
    student: Side, teacher: Side, directions: tuple[dict[str, Direction], dict[str, Direction]], ranks: Sequence[Ranks]
) -> dict[str, Kept]:
    """What is kept of every metric that both have; pictures are drawn by task, the same for both models."""
    result: dict[str, Kept] = {}
    for ways in _TASKS:
        asked = [way for way in ways if way in ranks[0]]
        if asked:
            units = np.unique(np.concatenate([directions[0][way].pictures for way in asked]))
            mine, theirs = (
                _statistics(side, {way: own[way] for way in asked}, found, units)
                for side, own, found in zip((student, teacher), directions, ranks, strict=True)
            )
            result |= paired(len(units), {name: (mine[name], theirs[name]) for name in mine})
    return result | _classified(student, teacher)


def _statistics(
    side: Side, directions: Mapping[str, Direction], ranks: Ranks, units: NDArray[np.intp]
) -> dict[str, Statistic]:
    """The metrics of one task under one model, of draws of the pictures ``units``."""
    result: dict[str, Statistic] = {}
    if "zeroshot" in directions and side.prompts is not None:
        found, everyone = ranks["zeroshot"], np.ones(len(units))
        result |= {f"zeroshot_acc{k}": ratio(found <= k, everyone) for k in (1, 5)}
        return {**result, "zeroshot_mean_per_class_recall": per_class(found <= 1, side.prompts.labels)}
    for way, direction in directions.items():
        result |= recall_statistics(way, direction, ranks[way], units)
    if "text_to_image" in directions:
        return {**result, "mean_recall": mean_of(list(result.values()))}
    (direction,) = directions.values()
    precisions = _per_picture(direction, direction.average_precisions(), units)
    return {**result, "image_to_image_mAP": ratio(precisions, _per_picture(direction, None, units))}


def recall_statistics(
    way: str, direction: Direction, ranks: NDArray[np.intp], units: NDArray[np.intp]
) -> dict[str, Statistic]:
    """Recall at 1, 5 and 10 of draws of the pictures ``units``, to which the queries belong."""
    asked = _per_picture(direction, None, units)
    return {f"{way}_R@{k}": ratio(_per_picture(direction, ranks <= k, units), asked) for k in KS}


def _per_picture(
    direction: Direction, values: NDArray[np.bool_] | NDArray[np.float64] | None, units: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Sums of the queries' values over the pictures they belong to, or how many queries there are, ``[U]``."""
    places = np.searchsorted(units, direction.pictures)
    weights = None if values is None else values.astype(np.float64)
    return np.bincount(places, weights, minlength=len(units)).astype(np.float64)


def _classified(student: Side, teacher: Side) -> dict[str, Kept]:
    """Top 1 and top 5 of two classifiers' own heads."""
    ranks = [
        side.found.galleries["zeroshot"].ranks if "zeroshot" in side.found.galleries else None
        for side in (student, teacher)
    ]
    if ranks[0] is None or ranks[1] is None:
        return {}
    known = ranks[0] > 0
    everyone = np.ones(int(known.sum()))
    both = {
        f"classify_top{k}": (ratio(ranks[0][known] <= k, everyone), ratio(ranks[1][known] <= k, everyone))
        for k in (1, 5)
    }
    return paired(len(everyone), both)


def _agreement(student: Direction, teacher: Direction) -> Agreement:
    mine, theirs = student.few(MOST_QUERIES), teacher.few(MOST_QUERIES)
    overlap = top_k_overlap(mine.asked, theirs.asked, KS, mine.exclude)
    fewer, others = student.few(MOST_CORRELATED), teacher.few(MOST_CORRELATED)
    return Agreement(overlap, rank_correlation(fewer.asked, others.asked, fewer.exclude), len(mine.queries))


def _choices(student: Direction, teacher: Direction, ranks: Sequence[Ranks]) -> Choices:
    same = predictions(*student.asked) == predictions(*teacher.asked)
    mine, theirs = (found["zeroshot"] <= 1 for found in ranks)
    cases = (same, mine & theirs, mine & ~theirs, ~mine & theirs, ~mine & ~theirs)
    return Choices(*(100.0 * float(np.mean(case)) for case in cases))


def _lines(sides: Sequence[Side], widths: Sequence[int], ways: Sequence[str]) -> list[Line]:
    """Whole rows, narrower ones, and whole ones in fewer bits, of both models."""
    plans = [
        (side, width, form, rescored)
        for side in sides
        for width, form, rescored in (
            (side.width, "float32", False),
            *((width, "float32", False) for width in widths if width < side.width),
            *((side.width, form, rescored) for form, rescored in _STORED),
        )
    ]
    lines = []
    with progress("smaller rows", len(plans), "ways to store") as advance:
        for number, (side, width, form, rescored) in enumerate(plans, 1):
            directions = side.directions(None if width == side.width else width)
            figures = {FIRST[way]: _stored(directions[way].few(MOST_QUERIES), form, rescored) for way in ways}
            lines.append(Line(side.found.name, width, form, rescored, row_bytes(form, width), figures))
            advance(number, "")
    return lines


def _stored(direction: Direction, form: str, rescored: bool) -> float:
    """The percentage of queries whose first result is an answer."""
    ranks = ranks_stored(form, *direction.asked, direction.positives, direction.exclude, rescored)
    return 100.0 * float(np.mean(ranks <= 1))


def _apart(student: Side, teacher: Side) -> str:
    if student.width == teacher.width:
        return ""
    return (
        f"{student.found.name}'s rows are {student.width} wide and {teacher.found.name}'s {teacher.width}: one model's "
        "queries cannot be compared with the other's gallery."
    )


def _crossings(student: Side, teacher: Side, ranks: Ranks) -> Iterator[Crossing]:
    """Each model's queries over the other's gallery; ``ranks`` are the teacher's over its own."""
    directions = {side.found.name: side.directions() for side in (student, teacher)}
    for way in ("text_to_image", "image_to_image"):
        if way not in ranks:
            continue
        for asks, holds in ((student, teacher), (teacher, student)):
            own, other = directions[asks.found.name][way], directions[holds.found.name][way]
            crossed = Direction(own.queries, other.gallery, own.positives, own.numbers, own.pictures, own.itself)
            units = np.unique(own.pictures)
            mine = recall_statistics(way, crossed, crossed.ranks(), units)
            theirs = recall_statistics(way, other, ranks[way], units)
            found = paired(len(units), {name: (mine[name], theirs[name]) for name in mine})
            recalls = {k: found[f"{way}_R@{k}"] for k in KS}
            yield Crossing(asks.found.name, holds.found.name, way, recalls)


def _cosines(student: Side, teacher: Side) -> dict[str, float]:
    """How near the rows of the two models are, for the pictures of the first task both have, and for captions."""
    result = {}
    for task, gallery in student.found.galleries.items():
        if task in teacher.found.galleries:
            result["pictures"] = centred_cosine(gallery.images, teacher.found.galleries[task].images)
            break
    if student.found.texts is not None and teacher.found.texts is not None:
        result["captions"] = centred_cosine(student.found.texts, teacher.found.texts)
    return result


def _list(metrics: Mapping[str, float]) -> str:
    return ", ".join(metrics) or "none"
