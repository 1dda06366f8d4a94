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
from clipdistill.data.sources import pairs
from clipdistill.errors import ConfigError, found_in
from clipdistill.evaluation.evaluate import Evaluation, Tasks
from clipdistill.evidence.cells import Job, Known, embed_stores, jobs, teacher_jobs
from clipdistill.evidence.finish import compare_models
from clipdistill.evidence.forecast import forecasts, groups
from clipdistill.evidence.grid import METRICS, Grid, evaluate_keys
from clipdistill.evidence.grid_runs import TEACHER, Draw, main_teacher
from clipdistill.evidence.judging import judge
from clipdistill.evidence.measure import Judge, Measured, learning_curve, training_seconds
from clipdistill.evidence.outcome import Line, Outcome, Trial
from clipdistill.evidence.report.claims_page import claims_table
from clipdistill.evidence.report.comparison import change, points, share
from clipdistill.evidence.report.forecast_page import forecast_table
from clipdistill.evidence.report.grid_page import metric_name, write_grid_report
from clipdistill.evidence.report.terminal import ascii_signs
from clipdistill.evidence.running import run_all
from clipdistill.teachers.stored import model_behind
from clipdistill.training.run_folder import CONFIG
from clipdistill.training.stages import stage_runs


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
    tasks.check()
    _check_data(grid)
    families = groups(grid) if forecast else []
    first = teacher_jobs(grid, out, known)
    # A teacher of one seed among several is one run.
    teachers = list({job.folder: job for drawn in first.values() for job in drawn.values()}.values())
    run_all(teachers, at_once)
    trained = {seed: {name: str(job.student) for name, job in drawn.items()} for seed, drawn in first.items()}
    work = jobs(grid, out, known, trained)
    embed_stores(work, known)
    run_all(work, at_once)
    models, taught = _teachers(grid, trained)
    each = {uri: Judge(tasks, known, uri) for drawn in models.values() for uri in drawn.values()}
    judges = {name: {seed: each[uri] for seed, uri in drawn.items()} for name, drawn in models.items()}
    outcome = _outcome(grid, work, judges, taught, out)
    outcome = replace(outcome, forecasts=tuple(forecasts(families, outcome)))
    try:
        outcome = replace(outcome, claims=judge(grid.claims, outcome))
    finally:  # a claim about what turns out not to be measured costs no more than the claims
        page = write_grid_report(outcome, out, f"clipdistill compare: {grid.name}", _facts(grid, work, teachers))
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

    The best mean is bold, an interval that holds zero is dim. Then come tables by the teachers' seeds, if several.
    """
    claims = [claims_table(outcome.claims)] if outcome.claims else []
    found = [[one for one in outcome.forecasts if one.metric == metric] for metric in outcome.headline]
    ahead = [forecast_table(own) for own in found if own]
    apart = [_by_teacher(outcome, metric) for metric in outcome.headline] if outcome.teacher_seeds else []
    return [*(_table(outcome, metric) for metric in outcome.headline), *apart, *ahead, *claims]


def _check_data(grid: Grid) -> None:
    """Open what every run trains on, and count its batches: better now than when the teachers are trained."""
    for name, run in [*((name, runs[0]) for name, runs in grid.teachers.items()), *grid.cells.items()]:
        with found_in(f"{grid.name}, {name}"):
            size = len(pairs(run.data))
            for stage in stage_runs(run) or [run]:
                stage.train.plan(size)


def _outcome(
    grid: Grid,
    work: Sequence[Job],
    judges: Mapping[str, Mapping[int | None, Judge]],
    taught: Mapping[str, str],
    out: Path,
) -> Outcome:
    """Measure every student, and its likeness to its own teacher."""
    trials: dict[str, dict[Draw, Trial]] = {cell: {} for cell in grid.cells}
    for job in work:
        drawn = judges[taught[job.cell]]
        beside = drawn.get(job.draw.teacher) or next(iter(drawn.values()))  # what knows no teacher is set beside one
        found = beside.student(job)
        trials[job.cell][job.draw] = Trial(found, training_seconds(job.folder), learning_curve(job.folder))
    teachers: dict[str, dict[int | None, Measured]] = {}
    for name, drawn in judges.items():
        for seed, one in drawn.items():
            if measured := one.of_teacher(_beside(name, one.teacher, grid, out)):
                teachers.setdefault(name, {})[seed] = measured
    outcome = Outcome(trials, grid.baseline, grid.metrics, teachers, taught)
    known = [metric for metric in grid.metrics if metric in outcome.metrics]
    # Labelled data give a classifier other metrics than a dual encoder.
    return replace(outcome, headline=tuple(known or outcome.metrics[:1]))


def _teachers(
    grid: Grid, trained: Mapping[int | None, Mapping[str, str]]
) -> tuple[dict[str, Mapping[int | None, str | None]], dict[str, str]]:
    """The models that cells are set beside, by name and seed, and the name of each cell's: its own, or else the first.

    None is a model that is not here, of which there are stored rows alone. The only one that is given is called just
    that, several by what was given.
    """
    models: dict[str, Mapping[int | None, str | None]]
    if grid.teachers:
        models = {name: {seed: drawn[name] for seed, drawn in trained.items()} for name in grid.teachers}
        return models, {cell: grid.taught_by(cell) or TEACHER for cell in grid.cells}
    given = {cell: main for cell, run in grid.cells.items() if (main := main_teacher(run.teachers))}
    behind = {uri: model_behind(uri) for uri in given.values()}
    several = len(set(behind.values())) > 1
    names = {uri: f"{TEACHER}: {model or uri}" if several else TEACHER for uri, model in behind.items()}
    models = {names[uri]: {None: model} for uri, model in behind.items()} or {TEACHER: {None: None}}
    return models, {cell: names[given[cell]] if cell in given else next(iter(models)) for cell in grid.cells}


def _beside(name: str, uri: str | None, grid: Grid, out: Path) -> Path:
    """Where it is remembered what a teacher was measured to be: in its run, or in the grid's folder if it was given."""
    if grid.teachers and uri:
        return Path(uri).parent
    return out if name == TEACHER else out / "teachers" / hashlib.blake2b(name.encode(), digest_size=6).hexdigest()


def _facts(grid: Grid, work: Sequence[Job], teachers: Sequence[Job]) -> dict[str, Any]:
    data = {task: uri for task, uri in grid.evaluate.uris().items() if uri}
    cells = {job.cell: job.folder.parent for job in work}
    return {
        "seeds": ", ".join(map(str, grid.seeds)),
        "baseline": grid.baseline,
        **data,
        **{str(job) if grid.teacher_seeds[1:] else job.cell: job.student for job in teachers},
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
    lines, reached = outcome.lines(metric), outcome.reached(metric)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=metric_name(metric), title_justify="left")
    table.add_column("")
    heads = (
        "mean",
        "sd",
        f"to {outcome.baseline}",
        "95% interval",
        *(("gap closed",) if outcome.teachers else ()),
        "training, s",
    )
    for head in heads:
        table.add_column(Text(head), justify="right")
    for line in lines:
        table.add_row(*_cells(line, bool(outcome.teachers)))
    if reached:
        table.add_section()
    for name, value in reached.items():
        table.add_row(Text(name), points(value))
    return table


def _by_teacher(outcome: Outcome, metric: str) -> Table:
    """A row for each model, a column for each seed of the teachers."""
    title = f"{metric_name(metric)}, by the teacher's seed"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", min_width=len(title))
    table.add_column("")
    for seed in outcome.teacher_seeds:
        table.add_column(str(seed), justify="right")
    for name, values in outcome.by_teacher(metric).items():
        table.add_row(Text(name), *map(points, values))
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
