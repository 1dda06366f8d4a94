"""A student beside its teacher: load both, measure what is kept, write the report for who must decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipdistill.errors import ConfigError
from clipdistill.evaluation.evaluate import Tasks, evaluate
from clipdistill.evidence.directions import Side
from clipdistill.evidence.finish import check_out, load_all, short_names
from clipdistill.evidence.report.retention_page import write_retention_report
from clipdistill.evidence.retained import Retention, check_widths, measure


def retention(
    student: str,
    teacher: str,
    out: Path,
    data: str | None = None,
    retrieval: str | None = None,
    image_retrieval: str | None = None,
    zeroshot: str | None = None,
    widths: Sequence[int] | None = None,
) -> Retention:
    """Measure what a student keeps of its teacher and write report.html and report.json into the folder ``out``.

    Models are URIs or run folders, data are as for ``compare_models``. ``widths`` are those that rows are cut to, a
    half, a quarter and an eighth of the student's without it.

    Raises:
        ConfigError: no data are named, ``out`` holds other files, or a width is not below the student's.
        DataError: see :func:`clipdistill.evaluation.evaluate.evaluate`, or the models have no figure in common.
    """
    tasks = Tasks.open(data, retrieval, image_retrieval, zeroshot)
    if tasks == Tasks():
        raise ConfigError("name data to evaluate on: --data URI, or --retrieval, --image-retrieval, --zeroshot.")
    check_out(out)
    models = load_all(dict(zip(short_names([student, teacher]), (student, teacher), strict=True)), ())
    encoders = list(models.values())
    check_widths(encoders[0].width, widths)
    mine, theirs = map(Side.of, encoders, evaluate(models, tasks))
    found = measure(mine, theirs, widths)
    facts = {
        task.replace("_", " "): source.uri
        for task in ("retrieval", "image_retrieval", "zeroshot")
        if (source := getattr(tasks, task))
    }
    write_retention_report(found, out, facts)
    return found
