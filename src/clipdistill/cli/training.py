"""Verbs that train: demo, plan, distill, and distill with Chinese-CLIP's own flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from clipdistill.cli import completion
from clipdistill.errors import ConfigError
from clipdistill.progress import console


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the three runs and the report.")] = Path("demo"),
) -> None:
    """Draw pictures, train a teacher, distil a student, and compare; no download, a few minutes on two cores."""
    from clipdistill.evidence.demo import run

    run(out)


def distill(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN.yaml] [KEY=VALUE]...",
            help="A run file (optional), then overrides.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in 'out'.")] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(help="Log to tensorboard, wandb, trackio or mlflow as well, beside log.jsonl; repeatable."),
    ] = None,
) -> None:
    """Train a student as a run file and KEY=VALUE overrides say, evaluate it, and write a report.

    For instance: clipdistill distill recipe=clip-kd teachers.T=openai/clip-vit-base-patch32 data=FOLDER
    student.preset=vit-tiny-16 train.epochs=10 out=runs/first
    """
    _distill(*_split(words or []), resume, track or [])


def plan(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN.yaml] [KEY=VALUE]...",
            help="A run file (optional), then overrides.",
            autocompletion=completion.overrides,
        ),
    ] = None,
    gpus: Annotated[str, typer.Option(help="Numbers of processes, one GPU each.")] = "1,2,4,8,16,32,64",
    bandwidth: Annotated[float, typer.Option(min=1e-3, help="GB/s between processes.")] = 10.0,
    speed_of: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Plan for the machine where plan --json wrote this.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Measure a few steps of a run, write nothing, and tell its hours, memory and bytes on 1 to 64 processes.

    For instance: clipdistill plan runs/tiny.yaml train.batch_size=4096 --gpus 1,8
    """
    from clipdistill.config import load_run
    from clipdistill.evidence import plan as job
    from clipdistill.evidence import plan_table

    config, counts = load_run(*_split(words or [])), _counts(gpus)
    measured = job.known(config, speed_of)
    costs = job.plan(config, measured, counts, bandwidth * 1e9)
    if as_json:
        print(json.dumps(plan_table.as_dict(costs, measured, bandwidth * 1e9), indent=2, ensure_ascii=False))
    else:
        plan_table.tell(config, costs, measured, bandwidth * 1e9)


def _counts(text: str) -> list[int]:
    """Read ``1,2,4``."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise ConfigError(f"--gpus {text}: expected numbers of processes, as 1,2,4,8.")
    return [int(word) for word in words]


def chinese_clip(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[--FLAG VALUE]... [KEY=VALUE]...", help="Their flags, then overrides of the run."),
    ] = None,
) -> None:
    """Take the command line of Chinese-CLIP's cn_clip/training/main.py: print the native command, and run it.

    For instance: clipdistill chinese-clip --train-data=photos/lmdb/train --resume=models/student --distllation
    --teacher-model-name=models/teacher --kd_loss_weight=0.5 --lr=5e-5 --max-epochs=3 --name=tuned
    """
    from clipdistill.coming_from.chinese_clip import translate
    from clipdistill.training.ranks import is_main, processes

    translation = translate(words or [], processes())
    if is_main():
        for remark in translation.remarks:
            console.print(remark, markup=False)
        print(translation.command, flush=True)
    _distill(None, translation.overrides, resume=False, track=[])


def _distill(file: str | None, overrides: list[str], resume: bool, track: list[str]) -> None:
    from clipdistill.config import load_run
    from clipdistill.evidence.finish import evaluate_run
    from clipdistill.training.ranks import is_main
    from clipdistill.training.stages import distill as train

    config = load_run(file, overrides)
    config = config.model_copy(update={"track": list(dict.fromkeys([*config.track, *track]))})
    run = train(config, resume)
    if not is_main():
        return
    console.print(f"student: {run.student}", markup=False)
    report = evaluate_run(config)
    if report is not None:
        console.print(f"report: {report}", markup=False)


def _split(words: list[str]) -> tuple[str | None, list[str]]:
    """The run file, if the first word is one, and the overrides."""
    file = words[0] if words and "=" not in words[0] else None
    overrides = words[1:] if file else words
    for word in overrides:
        if "=" not in word:
            raise ConfigError(f"'{word}' is no override. Write KEY=VALUE, with the run file, if any, first.")
    return file, overrides
