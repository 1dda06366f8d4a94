"""From finished models to a report: load them, evaluate them side by side, write what was found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

from clipdistill.config import SELF, RunConfig
from clipdistill.errors import ConfigError
from clipdistill.evaluation.evaluate import Evaluation, Tasks, evaluate
from clipdistill.evidence.report import write_report
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.hub import OPEN_CLIP
from clipdistill.models.loading import load
from clipdistill.models.narrow import narrow
from clipdistill.progress import console
from clipdistill.teachers.stored import model_behind
from clipdistill.training.run_folder import LOG, RECORD, STUDENT, read_log


def evaluate_run(config: RunConfig) -> Path | None:
    """Evaluate a finished run's student beside its teachers on the data its configuration names.

    Returns the report written into the run folder, or None if the configuration names no data to evaluate on.
    """
    tasks = Tasks.open(**config.evaluate.uris())
    if tasks == Tasks():
        return None
    out = Path(config.out)
    several = len(config.teachers) > 1
    models = {
        f"teacher {letter}" if several else "teacher": model
        for letter, uri in sorted(config.teachers.items())
        if (model := _teacher_model(letter, uri))
    }
    return report_on({**models, "student": str(out)}, tasks, out, out.name)[1]


def _teacher_model(letter: str, uri: str) -> str | None:
    """The model to evaluate for a teacher, if there is one apart from the student."""
    model = None if uri == SELF else model_behind(uri)
    if model is None and uri != SELF:
        console.print(
            f"teacher {letter} is not evaluated: the model that {uri} was made with is not here", markup=False
        )
    return model


def compare_models(
    uris: Sequence[str],
    data: str | None,
    retrieval: str | None,
    image_retrieval: str | None,
    zeroshot: str | None,
    out: Path | None,
    widths: Sequence[int] = (),
) -> list[Evaluation]:
    """Evaluate models by URI or run folder; with ``out``, write the report there.

    ``widths`` adds the first model with its rows cut to so many channels, as Matryoshka students allow.
    """
    tasks = Tasks.open(data, retrieval, image_retrieval, zeroshot)
    if tasks == Tasks():
        raise ConfigError("name data to evaluate on: --data URI, or --retrieval, --image-retrieval, --zeroshot.")
    if out is not None:
        check_out(out)
    named = dict(zip(short_names(uris), uris, strict=True))
    if out is None:
        return evaluate(load_all(named, widths), tasks)
    return report_on(named, tasks, out, " / ".join(named), widths)[0]


def load_all(models: Mapping[str, str], widths: Sequence[int]) -> dict[str, DualEncoder]:
    """Load every model, and after the first one its narrower selves."""
    loaded: dict[str, DualEncoder] = {}
    for name, uri in models.items():
        loaded[name] = load(uri)
        if len(loaded) == 1:
            loaded |= {f"{name} @{width}": narrow(loaded[name], width) for width in widths}
    return loaded


def check_out(out: Path) -> None:
    """Refuse to write a report over a file, or into a folder that holds something else."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file. Name a folder.")
    ours = (out / "report.json").is_file() or (out / RECORD).is_file()
    if out.is_dir() and any(out.iterdir()) and not ours:
        raise ConfigError(f"--out {out} holds other files. Name a new folder, or that of an earlier report.")


def report_on(
    models: Mapping[str, str], tasks: Tasks, out: Path, title: str, widths: Sequence[int] = ()
) -> tuple[list[Evaluation], Path]:
    """Evaluate ``models`` (name to URI or run folder) and write report.html and report.json into ``out``."""
    evaluations = evaluate(load_all(models, widths), tasks)
    curves = {name: steps for name, uri in models.items() if (steps := list(read_log(Path(uri) / LOG)))}
    facts: dict[str, Any] = {
        task: source.uri for task in ("retrieval", "image_retrieval", "zeroshot") if (source := getattr(tasks, task))
    }
    for name, uri in models.items():
        facts |= {f"{name}: {key}": value for key, value in _facts(Path(uri)).items()}
    return evaluations, write_report(evaluations, out, title, curves, facts)


def short_names(uris: Sequence[str]) -> list[str]:
    """A short name each, numbered where they repeat."""
    names: list[str] = []
    for own in map(_short_name, uris):
        numbered = (f"{own} {number}" for number in count(2))
        names.append(next(name for name in chain([own], numbered) if name not in names))
    return names


def _short_name(uri: str) -> str:
    """The folder's own name, its parent's for a run's student, with open_clip's architecture before its weights."""
    path = Path(uri.rstrip("/"))
    path = path if path.name not in ("", "..") else path.resolve()
    if uri.startswith(OPEN_CLIP[0]):
        return f"{uri.removeprefix(OPEN_CLIP[0]).partition('/')[0]} {path.name}"
    inside_run = path.name == STUDENT and (path.parent / RECORD).is_file()
    return path.parent.name if inside_run else path.name


def _facts(folder: Path) -> dict[str, Any]:
    """What a run folder tells of itself."""
    if not (folder / RECORD).is_file():
        return {}
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return {"seed": record["seed"], "data": record["data"]["uri"], "steps": record["preflight"]["steps"]}
