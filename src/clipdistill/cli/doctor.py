"""The verb that examines: this machine, an exported model or a student."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipdistill.errors import ConfigError, SearchError
from clipdistill.progress import console

if TYPE_CHECKING:
    from clipdistill.machine import Finding


def doctor(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A folder that clipdistill export wrote, or a student's; without one, this machine."),
    ] = None,
    online: Annotated[bool, typer.Option("--online", help="Also ask the hub whether it answers.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Examine this machine and what is installed; or an exported model, or a student.

    A machine is well (exit status 0) as long as the base install works; what else is missing is listed with what it
    would bring. A model tells what it says of itself: teacher, licence, metrics, calibration. Files of an export are
    compared with their checksums, and its rows, if it is none in the layout of another library, with those that the
    model gave; a student, which needs torch, with its fingerprint.
    """
    if folder is None:
        _machine(online, as_json)
    elif online:
        raise ConfigError(f"--online asks whether the hub answers, which {folder} has no use for. Leave one out.")
    else:
        _model(folder, as_json)


def _machine(online: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from clipdistill import machine

    found = machine.examine(online)
    if as_json:
        listed = {topic: [asdict(finding) for finding in findings] for topic, findings in found.items()}
        print(json.dumps(listed, indent=2, ensure_ascii=False))
    else:
        _tell(found)
    if found["packages"][0].status == "missing":
        raise typer.Exit(1)


def _tell(found: Mapping[str, Sequence[Finding]]) -> None:
    width = max(len(finding.name) for findings in found.values() for finding in findings)
    for topic, findings in found.items():
        print(f"{topic}:")
        for finding in findings:
            print(f"  {finding.status:<7}  {finding.name:<{width}}  {finding.found}")
            if finding.todo:
                print(f"  {'':<7}  {'':<{width}}  -> {finding.todo}")
    base = found["packages"][0]
    count = sum(finding.status == "warning" for findings in found.values() for finding in findings)
    warnings = f"{count} warning{'' if count == 1 else 's'}"
    word = "does not work" if base.status == "missing" else "works"
    console.print(f"the base install {word}; {warnings}", markup=False)


def _model(folder: Path, as_json: bool) -> None:
    from clipdistill.export.examining import examine
    from clipdistill.search.manifest import MANIFEST
    from clipdistill.search.papers import describe, read_papers

    if (folder / "student" / "clipdistill.json").is_file():
        folder = folder / "student"  # a run folder stands for the student in it
    if (folder / MANIFEST).is_file():
        raise SearchError(f"{folder} is an index, which has its own examination: clipdistill index check {folder}")
    about = describe(read_papers(folder))
    if not as_json:
        for line in about:
            console.print(line, markup=False)
    findings = examine(folder)
    if as_json:
        print(json.dumps({"about": about, "findings": list(findings)}, indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            print(finding)
    if findings:
        raise typer.Exit(1)
    console.print(f"{folder}: nothing is wrong", markup=False)
