"""Verbs that train: demo, distill, and distill with Chinese-CLIP's own flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
        typer.Argument(metavar="[RUN.yaml] [KEY=VALUE]...", help="A run file (optional), then overrides."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in 'out'.")] = False,
) -> None:
    """Train a student as a run file and KEY=VALUE overrides say, evaluate it, and write a report.

    For instance: clipdistill distill recipe=clip-kd teachers.T=openai/clip-vit-base-patch32 data=FOLDER
    student.preset=vit-tiny-16 train.epochs=10 out=runs/first
    """
    _distill(*_split(words or []), resume)


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

    translation = translate(words or [])
    for remark in translation.remarks:
        console.print(remark, markup=False)
    print(translation.command, flush=True)
    _distill(None, translation.overrides, resume=False)


def _distill(file: str | None, overrides: list[str], resume: bool) -> None:
    from clipdistill.config import load_run
    from clipdistill.evidence.finish import evaluate_run
    from clipdistill.training.ranks import is_main
    from clipdistill.training.stages import distill as train

    config = load_run(file, overrides)
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
