"""The retention report: whether a student may replace its teacher, as one page and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipdistill.data.samples import Sample
from clipdistill.evaluation.bootstrap import DRAWS, Kept
from clipdistill.evidence.directions import FIRST
from clipdistill.evidence.report import comparison, plots
from clipdistill.evidence.report import retention_words as words
from clipdistill.evidence.report.page import render
from clipdistill.evidence.report.results import plain
from clipdistill.evidence.report.searches import Search, searches
from clipdistill.evidence.report.strips import Album, Query, Strip, Tile
from clipdistill.evidence.report.writing import to_json, write_file
from clipdistill.evidence.retained import MOST_CORRELATED, MOST_QUERIES, Line, Retention

#: Results shown of each of the worst queries.
_SHOWN = 5


@dataclass(frozen=True)
class Bar:
    """A share in percent of its column's width, the ends of its whisker, and where the whole teacher stands."""

    end: float
    low: float
    high: float
    teacher: float


@dataclass(frozen=True)
class Row:
    """A metric: its name, figures and their intervals, the bar of its share, and whether the difference is clear."""

    label: str
    cells: list[tuple[str, str]]
    bar: Bar | None
    clear: bool


@dataclass(frozen=True)
class Stored:
    """A way to store rows: its number in the charts, its name, bytes, and per metric a value and a change."""

    number: int
    name: str
    size: str
    cells: list[tuple[str, str]]


def write_retention_report(found: Retention, out: Path, facts: Mapping[str, Any]) -> Path:
    """Write report.json and report.html into the folder ``out``; return the page."""
    html = retention_page(found, facts)
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / "report.json", to_json({**words.as_dict(found), "facts": plain(facts)}))
    write_file(out / "report.html", html)
    return out / "report.html"


def retention_page(found: Retention, facts: Mapping[str, Any]) -> str:
    """Return the HTML of a retention report."""
    album = Album()
    sides = [searches(side.found) for side in (found.teacher, found.student)]
    names = [found.teacher.found.name, found.student.found.name]
    ways = list(found.lines[0].figures) if found.lines else []
    return render(
        "retention.html.j2",
        title=f"May {names[1]} replace {names[0]}?",
        verdict=words.verdict(found),
        names=names,
        groups=_groups(found),
        overlaps=list(_overlaps(found)),
        ks=_ks(found),
        choices=found.choices,
        text_queries=_queries(found, sides, "text_to_image", album),
        image_queries=_queries(found, sides, "image_to_image", album),
        stored={name: _stored(found, name) for name in (names[1], names[0])},
        stored_heads=[", ".join(comparison.label(metric)) for metric in ways],
        scatters=list(_scatters(found)),
        crossings=[[words.WAYS[one.way], *words.crossing_cells(one)] for one in found.crossings],
        cosines={what: f"{cosine:.3f}" for what, cosine in found.cosines.items()},
        apart=found.apart,
        costs=words.costs(found),
        draws=DRAWS,
        most=MOST_QUERIES,
        most_correlated=MOST_CORRELATED,
        pictures=album.classes,
        uris={side.found.name: side.found.uri for side in (found.student, found.teacher)},
        skipped=max(side.found.skipped for side in (found.student, found.teacher)),
        facts={str(key): str(value) for key, value in facts.items()},
    )


def _groups(found: Retention) -> dict[str, list[Row]]:
    """Rows by the group their metric is shown in; the widest bar or whisker fills its column."""
    shares = [kept.share for kept in found.kept.values() if kept.share]
    zoom = 100 / max([100.0, *(share.high or share.value for share in shares)])
    groups: dict[str, list[Row]] = {}
    for metric, kept in found.kept.items():
        group, name = comparison.label(metric)
        cells = [
            (value, bounds.rstrip(")"))
            for cell in words.kept_cells(kept)
            for value, _, bounds in [cell.partition(" (")]
        ]
        groups.setdefault(group, []).append(Row(name, cells, _bar(kept, zoom), words.clear(kept.difference) != 0))
    return groups


def _bar(kept: Kept, zoom: float) -> Bar | None:
    share = kept.share
    if share is None:
        return None
    ends = [share.value if end is None else end for end in (share.low, share.high)]
    return Bar(*(round(value * zoom, 2) for value in (share.value, *ends, 100.0)))


def _ks(found: Retention) -> list[int]:
    return sorted({k for agreement in found.agreements.values() for k in agreement.overlap})


def _overlaps(found: Retention) -> Iterator[list[str]]:
    for way, one in found.agreements.items():
        shared = [comparison.points(one.overlap.get(k)) for k in _ks(found)]
        yield [words.WAYS[way], f"{one.queries:,}", *shared, words.correlation(one)]


def _queries(found: Retention, sides: list[dict[str, Search]], way: str, album: Album) -> list[Query]:
    """The worst queries of one direction, answered by the teacher and by the student."""
    task = "image_retrieval" if way == "image_to_image" else "retrieval"
    queries = []
    for query in found.worst.get(way, []):
        gallery = found.teacher.found.galleries[task]
        strips = []
        for number, side in enumerate(sides):
            answer = side[way].answer(query)
            shown = zip(answer.top[:_SHOWN], answer.hits[:_SHOWN], strict=True)
            tiles = [album.tile(gallery.samples[row], hit) for row, hit in shown]
            strips.append(Strip(number, tiles, f"first match at rank {answer.first:,}"))
        if way == "image_to_image":
            queries.append(Query(strips, picture=_asked(gallery.samples[query], album)))
        else:
            queries.append(Query(strips, caption=gallery.questions[0][query]))
    return queries


def _asked(sample: Sample, album: Album) -> Tile:
    """The picture of a query; its name is its label where that is what its matches share."""
    tile = album.tile(sample)
    return tile if sample.group is not None or sample.label is None else Tile(tile.css, sample.label)


def _stored(found: Retention, name: str) -> list[Stored]:
    """The lines of one model; changes are points against its whole rows."""
    lines = [(number, line) for number, line in enumerate(found.lines, 1) if line.model == name]
    whole = lines[0][1].figures if lines else {}
    return [
        Stored(number, words.line_name(line), f"{line.row_bytes:,}", _changes(line, whole if place else {}))
        for place, (number, line) in enumerate(lines)
    ]


def _changes(line: Line, whole: Mapping[str, float]) -> list[tuple[str, str]]:
    return [
        (comparison.points(value), comparison.change(value - whole[metric]) if metric in whole else "")
        for metric, value in line.figures.items()
    ]


def _scatters(found: Retention) -> Iterator[plots.Chart]:
    """Each first figure against the bytes of a row: all of the student's lines, and the teacher's whole rows."""
    teacher = found.teacher.found.name
    whole = next((line for line in found.lines if line.model == teacher), None)
    for way in words.first_of(found):
        dots = {
            number: (float(line.row_bytes), line.figures[FIRST[way]])
            for number, line in enumerate(found.lines, 1)
            if line.model != teacher or line is whole
        }
        yield plots.scatter_chart(", ".join(comparison.label(FIRST[way])), dots, "bytes per row")
