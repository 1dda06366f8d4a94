"""The verb that lists students."""

from __future__ import annotations

from typing import Annotated

import typer


def students(
    target_ms: Annotated[
        float | None, typer.Option(min=0.001, help="Measure, and list those whose towers take so many milliseconds.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to measure: cpu, cuda, mps or auto.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the CPU; torch's own choice without.")] = None,
) -> None:
    """List the presets for student.preset: their size, their speed on this machine, their quality where it is known.

    For instance: clipdistill students --target-ms 20 --threads 1
    """
    from clipdistill.bench import students as job

    print(job.table(job.students(target_ms, device, threads), target_ms))
