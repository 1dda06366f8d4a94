"""Compare: train every cell of a grid for every seed, measure all students on the same data, say what is noise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from clipdistill.config import EvaluateConfig, load_run
from clipdistill.errors import ConfigError
from clipdistill.evaluation.evaluate import Evaluation, Tasks
from clipdistill.evidence.cells import Job, Known, embed_stores, jobs, teacher_jobs
from clipdistill.evidence.claims import judge
from clipdistill.evidence.finish import compare_models
from clipdistill.evidence.forecast import forecasts, groups
from clipdistill.evidence.grid import METRICS, Grid, evaluate_keys
from clipdistill.evidence.grid_runs import TEACHER, main_teacher
from clipdistill.evidence.measure import Judge, learning_curve, training_seconds
from clipdistill.evidence.outcome import Line, Outcome, Trial
from clipdistill.evidence.report.claims_page import claims_table
from clipdistill.evidence.report.comparison import change, points, share
from clipdistill.evidence.report.forecast_page import forecast_table
from clipdistill.evidence.report.grid_page import metric_name, write_grid_report
from clipdistill.evidence.report.terminal import ascii_signs
from clipdistill.evidence.running import run_all
from clipdistill.teachers.stored import model_behind
from clipdistill.training.run_folder import CONFIG


def compare(grid: Grid, out: Path, at_once: int | None = 1, forecast: bool = False) -> tuple[Outcome, Path]:
    """Run a grid in the folder ``out``, and write comparison.csv, report.json and report.html there.

    With claims also claims.csv and claims.md.

    Runs that are finished are not run again, and students that are measured are not measured again. ``at_once`` runs
    are trained in parallel, None as many as cores and free memory allow. ``forecast`` says what longer runs or more
    data would bring. Returns what was found, and the page.

    Raises:
        ClipdistillError: anything does not fit, or a run failed; run the same again to go on.
    """
    if at_once is not None and at_once < 1:
        raise ConfigError(f"--jobs is {at_once}; expected 1 or more.")
    tasks, known = Tasks.open(**grid.evaluate.uris()), Known()
    families = groups(grid) if forecast else []
    first = teacher_jobs(grid, out, known)
    run_all(first, at_once)
    trained = {job.cell: str(job.student) for job in first}
    work = jobs(grid, out, known, trained)
    embed_stores(work, known)
    run_all(work, at_once)
    models, taught = _teachers(grid, trained)
    judges = {name: Judge(tasks, known, uri) for name, uri in models.items()}
    outcome = _outcome(grid, work, judges, taught, out)
    outcome = replace(outcome, forecasts=tuple(forecasts(families, outcome)))
    try:
        outcome = replace(outcome, claims=judge(grid.claims, outcome))
    finally:  # a claim about what turns out not to be measured costs no more than the claims
        page = write_grid_report(outcome, out, f"clipdistill compare: {grid.name}", _facts(grid, work, first))
    return outcome, page


def compare_runs(runs: Sequence[str], overrides: Sequence[str], out: Path) -> list[Evaluation]:
    """Put finished runs, or any models, side by side, and write the report into ``out``.

    They are tried on the data that overrides such as ``evaluate.retrieval=URI`` name, or else on what the runs' own
    configurations name.

    Raises:
        ConfigError: there is one model only, no data, or the runs name different data.
    """
    if len(runs) < 2:
        raise ConfigError(
            "name a grid (a YAML file, --grid NAME or --recipes A,B), or two or more finished runs to compare."
        )
    wanted = evaluate_keys(overrides) or _recorded(runs)
    retrieval, image_retrieval, zeroshot = (wanted.get(task) for task in METRICS)
    return compare_models(runs, None, retrieval, image_retrieval, zeroshot, out)


def tables(outcome: Outcome) -> list[Table]:
    """Return one table per headline metric for the terminal, cells as rows, and those of forecasts and claims.

    The best mean is bold, an interval that holds zero is dim.
    """
    claims = [claims_table(outcome.claims)] if outcome.claims else []
    found = [[one for one in outcome.forecasts if one.metric == metric] for metric in outcome.headline]
    ahead = [forecast_table(own) for own in found if own]
    return [*(_table(outcome, metric) for metric in outcome.headline), *ahead, *claims]


def _outcome(
    grid: Grid, work: Sequence[Job], judges: Mapping[str, Judge], taught: Mapping[str, str], out: Path
) -> Outcome:
    """Measure every student, and its likeness to its own teacher."""
    trials: dict[str, dict[int, Trial]] = {cell: {} for cell in grid.cells}
    for job in work:
        measured = judges[taught[job.cell]].student(job)
        trials[job.cell][job.seed] = Trial(measured, training_seconds(job.folder), learning_curve(job.folder))
    folders = {name: out if name == TEACHER else out / "teachers" / _file_name(name) for name in judges}
    teachers = {name: found for name, judge in judges.items() if (found := judge.of_teacher(folders[name]))}
    outcome = Outcome(trials, grid.baseline, grid.metrics, next(iter(teachers.values()), None), teachers, taught)
    known = [metric for metric in grid.metrics if metric in outcome.metrics]
    # Labelled data give a classifier other metrics than a dual encoder.
    return replace(outcome, headline=tuple(known or outcome.metrics[:1]))


def _teachers(grid: Grid, trained: Mapping[str, str]) -> tuple[Mapping[str, str | None], dict[str, str]]:
    """The models that cells are set beside, by name, and the name of each cell's: its own teacher, or else the first.

    None is a model that is not here, of which there are stored rows alone. The only one that is given is called just
    that, several by what was given.
    """
    if trained:
        return trained, {cell: grid.taught_by(cell) or TEACHER for cell in grid.cells}
    given = {cell: main for cell, run in grid.cells.items() if (main := main_teacher(run.teachers))}
    behind = {uri: model_behind(uri) for uri in given.values()}
    several = len(set(behind.values())) > 1
    names = {uri: f"{TEACHER}: {model or uri}" if several else TEACHER for uri, model in behind.items()}
    models = {names[uri]: model for uri, model in behind.items()} or {TEACHER: None}
    return models, {cell: names[given[cell]] if cell in given else next(iter(models)) for cell in grid.cells}


def _file_name(name: str) -> str:
    """The name of a teacher as a folder's; of one that was given, which may be a path, a hash."""
    given = name.startswith(f"{TEACHER}: ")
    return hashlib.blake2b(name.encode(), digest_size=6).hexdigest() if given else name


def _facts(grid: Grid, work: Sequence[Job], teachers: Sequence[Job]) -> dict[str, Any]:
    data = {task: uri for task, uri in grid.evaluate.uris().items() if uri}
    cells = {job.cell: job.folder.parent for job in work}
    return {
        "seeds": ", ".join(map(str, grid.seeds)),
        "baseline": grid.baseline,
        **data,
        **{job.cell: job.student for job in teachers},
        **cells,
    }


def _recorded(runs: Sequence[str]) -> dict[str, str]:
    """The evaluation data that run folders name; those that name the same task must name the same data."""
    found: dict[str, str] = {}
    for run in runs:
        path = Path(run) / CONFIG
        evaluate = load_run(path).evaluate if path.is_file() else EvaluateConfig()
        for task, uri in evaluate.uris().items():
            if uri and found.setdefault(task, uri) != uri:
                raise ConfigError(
                    f"the runs were evaluated on different data: {found[task]} and {uri}. "
                    f"Say which: evaluate.{task}=URI."
                )
    if not found:
        raise ConfigError("the runs name no data to evaluate on: add evaluate.retrieval=URI, for instance.")
    return found


def _table(outcome: Outcome, metric: str) -> Table:
    lines, top = outcome.lines(metric), outcome.teacher
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=metric_name(metric), title_justify="left")
    table.add_column("")
    heads = ("mean", "sd", f"to {outcome.baseline}", "95% interval", *(("gap closed",) if top else ()), "training, s")
    for head in heads:
        table.add_column(Text(head), justify="right")
    for line in lines:
        table.add_row(*_cells(line, top is not None))
    reached = {name: found.metrics[metric] for name, found in outcome.known_teachers.items() if metric in found.metrics}
    if reached:
        table.add_section()
    for name, value in reached.items():
        table.add_row(Text(name), points(value))
    return table


def _cells(line: Line, with_gap: bool) -> list[Text]:
    found = line.difference
    interval = f"{change(found.low)} to {change(found.high)}" if found and found.low is not None else ""
    texts = [
        points(line.spread.mean),
        points(line.spread.sd),
        change(found.mean) if found else "",
        interval,
        *([share(line.closed)] if with_gap else []),
        "" if line.seconds is None else f"{line.seconds:.3g}",
    ]
    styles = {0: "bold" if line.best else "", 3: "" if found and found.is_clear else "dim"}
    return [Text(line.cell), *(Text(ascii_signs(text), styles.get(n, "")) for n, text in enumerate(texts))]
