"""Models on benchmarks that papers report: evaluate them side by side, write what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipdistill.errors import ConfigError
from clipdistill.evaluation.evaluate import Evaluation, Tasks
from clipdistill.evaluation.suites import Outcome, evaluate_suite, open_suite
from clipdistill.evidence.finish import check_out, load_all, short_names
from clipdistill.evidence.report import as_dict, table, write_report
from clipdistill.evidence.report.results import clip_benchmark
from clipdistill.evidence.report.writing import to_json, write_file
from clipdistill.progress import console

if TYPE_CHECKING:
    from rich.table import Table


def evaluate_suites(
    uris: Sequence[str], suites: Sequence[str], out: Path | None = None, widths: Sequence[int] = ()
) -> dict[str, list[Evaluation]]:
    """Evaluate models on benchmarks given as ``NAME=FOLDER``; returns the figures of all models by benchmark.

    All are opened before the first model is loaded. With ``out``, each benchmark's report is written to a folder of
    its name there as soon as it is measured, and the figures so far to report.json. ``widths`` is as for
    ``compare_models``.

    Raises:
        ConfigError: a word is not ``NAME=FOLDER``, a name comes twice, or ``out`` holds other files.
        DataError: see :func:`clipdistill.evaluation.suites.open_suite` and ``evaluate_suite``.
    """
    folders = parse(suites)
    opened = {name: open_suite(name, folder) for name, folder in folders.items()}
    if out is not None:
        check_out(out)
    models = load_all(dict(zip(short_names(uris), uris, strict=True)), widths)
    found: dict[str, list[Evaluation]] = {}
    for name, parts in opened.items():
        console.print(f"suite {name}: {folders[name]}", markup=False)
        outcome = evaluate_suite(name, parts, models)
        found[name] = [replace(one, galleries={}, texts=None) for one in outcome.evaluations]
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_file(out / "report.json", to_json(suites_as_dict(found)))  # first, by it the folder is known as ours
            _write(name, parts, outcome, out / name)
    return found


def suites_as_dict(found: Mapping[str, Sequence[Evaluation]]) -> dict[str, Any]:
    """Return ``{"suites": {name: {"models": ...}}}``, each as in a report's JSON."""
    return {"suites": {name: as_dict(evaluations) for name, evaluations in found.items()}}


def suite_tables(found: Mapping[str, Sequence[Evaluation]]) -> list[Table]:
    """Return a table per benchmark, headed by its name."""
    tables = []
    for name, evaluations in found.items():
        made = table(evaluations)
        made.title = name
        tables.append(made)
    return tables


def parse(suites: Sequence[str]) -> dict[str, Path]:
    """Return the folder of each benchmark that is named."""
    folders: dict[str, Path] = {}
    for word in suites:
        name, equals, folder = word.partition("=")
        if not equals or not folder:
            raise ConfigError(f"--suite {word}: expected NAME=FOLDER, as flickr30k=photos/flickr30k.")
        if name in folders:
            raise ConfigError(f"--suite {name} is given twice, for {folders[name]} and {folder}; run it once for each.")
        folders[name] = Path(folder).expanduser()
    return folders


def _write(name: str, parts: Mapping[str, Tasks], outcome: Outcome, out: Path) -> None:
    """Write a benchmark's report, and what CLIP_benchmark would call the results of its data sets."""
    facts: dict[str, Any] = {"benchmark": name}
    for dataset, tasks in parts.items():
        facts |= _about(dataset, tasks) if len(parts) == 1 else {dataset: _about(dataset, tasks)}
    write_report(outcome.evaluations, out, name, facts=facts)
    for dataset, evaluations in outcome.parts.items() if len(parts) > 1 else ():
        for file, content in clip_benchmark(evaluations, {"zeroshot": dataset}).items():
            write_file(out / "clip_benchmark" / file, to_json(content))


def _about(dataset: str, tasks: Tasks) -> dict[str, Any]:
    source = tasks.retrieval or tasks.zeroshot
    told = {"classes": len(tasks.classes.names), "sentences": len(tasks.classes.templates)} if tasks.classes else {}
    return {
        "retrieval" if tasks.retrieval else "zeroshot": dataset,
        "data": source.uri if source else None,
        "pictures": len(source) if source else 0,
        **told,
    }
