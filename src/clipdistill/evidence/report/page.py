"""The page: everything a report shows, put into one HTML file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from clipdistill.data.samples import is_chinese
from clipdistill.errors import need
from clipdistill.evidence.report import comparison, plots
from clipdistill.evidence.report.results import plain
from clipdistill.evidence.report.searches import Search, searches
from clipdistill.evidence.report.strips import Album, strips

if TYPE_CHECKING:
    from clipdistill.evaluation.evaluate import Evaluation

#: The entries of a run's log, by model name.
Curves = Mapping[str, Sequence[Mapping[str, Any]]]

_WAYS = {"text_to_image": "Text to image", "image_to_text": "Image to text", "image_to_image": "Image to image"}


def page(evaluations: Sequence[Evaluation], title: str, curves: Curves, facts: Mapping[str, Any]) -> str:
    """Return the HTML of a report: see ``write_report``."""
    found = [searches(evaluation) for evaluation in evaluations]
    names = list(dict.fromkeys([*(evaluation.name for evaluation in evaluations), *curves]))
    album = Album()
    rows = comparison.rows(evaluations)
    return render(
        "page.html.j2",
        title=title,
        headline=_headline(evaluations, rows),
        evaluations=evaluations,
        names=names,
        dashes=plots.DASHES,
        colours=plots.COLOURS,
        sizes=comparison.sizes(evaluations),
        groups={group: [row for row in rows if row.group == group] for group in dict.fromkeys(r.group for r in rows)},
        trio=comparison.has_trio(evaluations),
        recall_charts=list(_recall_charts(found)),
        loss_charts=list(_loss_charts(curves, names)),
        loss_models=[names.index(name) for name in curves],
        image_queries=strips(evaluations, found, "image_to_image", album),
        text_queries=strips(evaluations, found, "text_to_image", album),
        pictures=album.classes,
        facts={str(key): _fact(value) for key, value in facts.items()},
    )


def render(template: str, **content: Any) -> str:
    """Fill in one of the templates beside this file."""
    jinja2 = need("jinja2", "train")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files(__package__).joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    for write in (comparison.points, comparison.change, comparison.share):
        environment.filters[write.__name__] = write
    environment.tests["chinese"] = is_chinese
    return str(environment.get_template(template).render(content))


def _headline(evaluations: Sequence[Evaluation], rows: Sequence[comparison.Row]) -> comparison.Row | None:
    """Return the first row that tells a distillation experiment in one sentence, if the models are one."""
    complete = [row for row in rows if None not in row.values]
    return complete[0] if complete and comparison.has_trio(evaluations) else None


def _recall_charts(found: Sequence[Mapping[str, Search]]) -> Iterator[plots.Chart]:
    for way, title in _WAYS.items():
        curves = {number: search[way].curve() for number, search in enumerate(found) if way in search}
        if curves:
            yield plots.recall_chart(title, curves)


def _loss_charts(curves: Curves, names: Sequence[str]) -> Iterator[plots.Chart]:
    """The total, then every term, all runs overlaid."""
    terms = dict.fromkeys(term for log in curves.values() for entry in log for term in entry.get("terms", ()))
    for term in [None, *terms]:
        series = {names.index(name): _points(log, term) for name, log in curves.items()}
        chart = plots.loss_chart(term or "total", series)
        if chart:
            yield chart


def _points(log: Sequence[Mapping[str, Any]], term: str | None) -> tuple[list[float], list[float]]:
    """Steps and values of a term, or of the total."""
    told = [(entry["step"], entry.get("loss") if term is None else entry.get("terms", {}).get(term)) for entry in log]
    kept = [(float(step), float(value)) for step, value in told if value is not None]
    return [step for step, _ in kept], [value for _, value in kept]


def _fact(value: Any) -> str:
    clean = plain(value)
    return clean if isinstance(clean, str) else json.dumps(clean, ensure_ascii=False)
