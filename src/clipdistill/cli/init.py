"""The verb that writes a first run file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from clipdistill.cli.completion import presets
from clipdistill.cli.data import SOURCES
from clipdistill.errors import ClipdistillError, ConfigError
from clipdistill.progress import console

Answer = TypeVar("Answer")
_MILLISECONDS = re.compile(r"(\d+(?:\.\d+)?)\s*ms")
_NO_TEACHER = (
    "Without a teacher nothing is distilled: the student learns from the captions alone, as every CLIP once did, which "
    "takes far more pictures and steps."
)


def init(
    file: Annotated[Path, typer.Argument(help="The run file to write.")] = Path("run.yaml"),
    data: Annotated[str | None, typer.Option(help=f"The pictures: {SOURCES}.")] = None,
    teacher: Annotated[str | None, typer.Option(help="A model, a store of embeddings, or none.")] = None,
    student: Annotated[
        str | None, typer.Option(help="A preset, or milliseconds for each tower as 20ms.", autocompletion=presets)
    ] = None,
) -> None:
    """Ask for pictures, teacher and student, and write a run file with comments; options answer without asking.

    For instance: clipdistill init run.yaml --data photos/train --teacher openai/clip-vit-base-patch32
    --student vit-tiny-16
    """
    from clipdistill import run_file

    run_file.refuse_existing(file)
    pictures = _answer(
        data, "--data", "Pictures to train on (a folder, a table, shards, hf:org/name)", None, run_file.look_at
    )
    console.print(pictures.describe(), markup=False)
    chosen = _answer(
        teacher,
        "--teacher",
        "Teacher (a model's folder or hub name, a store, or none)",
        pictures.likely_teacher,
        _teacher,
    )
    preset = _answer(
        student, "--student", "Student (a preset, or the milliseconds it may take, as 20ms)", "vit-tiny-16", _student
    )
    run_file.write_run(file, pictures, chosen, preset)
    console.print(f"written: {file}", markup=False)
    console.print(f"Next, what it will cost: clipdistill plan {file}", markup=False)
    console.print(f"Then train:              clipdistill distill {file}", markup=False)


def _answer(
    given: str | None, option: str, question: str, default: str | None, read: Callable[[str], Answer]
) -> Answer:
    """Read an option, or ask until an answer can be read; raises ConfigError where nobody can be asked."""
    if given is not None:
        return read(given)
    if not sys.stdin.isatty():
        raise ConfigError(f"{option} is missing, and there is no terminal to ask on. {question}: give it as {option}.")
    while True:
        try:
            answer = typer.prompt(question, default=default, err=True)
        except typer.Abort as stopped:  # how the prompt ends after Ctrl-C; no error, as everywhere else
            raise KeyboardInterrupt from stopped
        try:
            return read(answer.strip())
        except ClipdistillError as error:
            console.print(f"{error}", markup=False)


def _teacher(uri: str) -> str | None:
    """The teacher's name; None where there shall be none."""
    if uri.lower() == "none":
        console.print(_NO_TEACHER, markup=False)
        return None
    from clipdistill.run_file import find_teacher

    console.print(find_teacher(uri), markup=False)
    return uri


def _student(answer: str) -> str:
    """The preset that is named, or the largest that is fast enough."""
    from clipdistill.run_file import check_preset, dual_presets

    limit = _MILLISECONDS.fullmatch(answer)
    if limit is None:
        check_preset(answer)
        return answer
    from clipdistill.bench.students import students

    target = float(limit[1])
    measured = students(target) if target else []
    fast = [student for student in measured if student.meets(target) and student.name in dual_presets()]
    if not fast:
        raise ConfigError(
            f"no preset takes {target:g} ms or less for each tower here; clipdistill students --target-ms {target:g} "
            "tells what they take."
        )
    largest = max(fast, key=lambda student: student.image_params + student.text_params)
    console.print(f"{largest.name}: the largest of {len(fast)} that take {target:g} ms or less here", markup=False)
    return largest.name
