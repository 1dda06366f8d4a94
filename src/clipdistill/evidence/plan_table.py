"""A plan for the terminal: a table of machines, a table of what a step is made of, and what is known how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from clipdistill.config import RunConfig
from clipdistill.evidence.costs import Measured
from clipdistill.evidence.plan import Column, Costs

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def as_dict(costs: Costs, measured: Measured, bandwidth: float) -> dict[str, Any]:
    """The plan and what it was made from, for JSON."""
    return {
        "plan": {
            "steps": costs.steps,
            "batch_size": costs.batch_size,
            "bandwidth": bandwidth,
            "columns": [_plain(column) for column in costs.columns],
            "with stored teachers": [_plain(column) for column in costs.stored],
            "pass_hours": costs.pass_hours,
            "bytes": costs.bytes,
        },
        "measured": measured.to_dict(),
    }


def _plain(column: Column) -> dict[str, Any]:
    return {**vars(column), "peak": column.peak, "device_hours": column.device_hours}


def tell(config: RunConfig, costs: Costs, measured: Measured, bandwidth: float) -> None:
    """Print the plan; written to a file it needs no particular width."""
    results = Console(width=None if Console().is_terminal else 160, highlight=False)
    for table in tables(costs):
        results.print(table)
    print("\n".join(lines(config, costs, measured, bandwidth)))


def tables(costs: Costs) -> list[Table]:
    """Return the run on each number of processes, and the parts of its step and of its memory."""
    return [_machines(costs), _parts(costs.columns, "seconds of a step"), _parts(costs.columns, "memory of a process")]


def _machines(costs: Costs) -> Table:
    heads = ["processes", "rows each", "step s", "samples/s", "time", "all processes", "memory each"]
    stored = ["pass", "+ run", "all processes", "memory each"] if costs.stored else []
    made = _table([*heads, *stored], "the run" + (", and with its teachers stored first" if stored else ""))
    for place, column in enumerate(costs.columns):
        cells = [str(column.processes), str(column.rows), *_time(column, costs.batch_size), size(column.peak)]
        if costs.stored:
            other = costs.stored[place]
            each = costs.pass_hours / column.processes
            total = costs.pass_hours + other.device_hours
            cells += [span(each), span(other.hours), span(total), size(other.peak)]
        made.add_row(*cells)
    return made


def _time(column: Column, batch_size: int) -> list[str]:
    step = sum(column.seconds.values())
    return [f"{step:.3g}", f"{batch_size / step:,.0f}", span(column.hours), span(column.device_hours)]


def _parts(columns: Sequence[Column], title: str) -> Table:
    """What a step's seconds, or a process's bytes, are of."""
    in_time = title.startswith("seconds")
    parts = list(columns[0].seconds if in_time else columns[0].memory)
    made = _table(["processes", *parts], title)
    for column in columns:
        found = column.seconds if in_time else column.memory
        made.add_row(str(column.processes), *(f"{found[p]:.3g}" if in_time else size(found[p]) for p in parts))
    return made


def _table(heads: Sequence[str], title: str) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for head in heads:
        made.add_column(head, justify="right", overflow="fold")
    return made


def lines(config: RunConfig, costs: Costs, measured: Measured, bandwidth: float) -> list[str]:
    """Return what the tables leave out, and what is measured, computed and assumed."""
    machine, train = measured.machine, config.train
    sizes, rows = ", ".join(map(str, measured.sizes)), ", ".join(f"{count:.0f}" for count, *_ in measured.losses)
    reading = f"{train.workers} workers each, a processor for each of them" if train.workers else "no workers"
    return [
        f"{costs.steps:,} steps of {costs.batch_size} samples; the data hold {measured.samples:,}",
        "; ".join(f"{name} {size(number)}" for name, number in costs.bytes.items() if number),
        f"measured on {machine['device']}, {machine['precision']}: the models at batches of {sizes}, losses of {rows} "
        f"rows, reading ({measured.read_seconds * 1e3:.2g} ms a sample), the update, bytes of tensors",
        "computed: other batches along straight lines, losses by pairs of rows, micro-batches, accumulation, "
        "checkpoints, a store of whole pictures and all captions in float16 (--views N has N times its picture rows)",
        f"assumed: each process has a machine like this to itself; {reading}; {bandwidth / 1e9:g} GB/s between "
        "processes (--bandwidth); evaluations and writing checkpoints take no time"
        + (_ON_GPU if machine["type"] == "cuda" else _ON_CPU),
    ]


_ON_CPU = "; memory is that of tensors and libraries, the allocator keeps up to a fifth more"
_ON_GPU = "; memory is that of tensors, CUDA itself takes about half a GB more"


def size(number: float) -> str:
    """Write bytes in the unit that suits."""
    for unit, name in _UNITS:
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f} B"


def span(hours: float) -> str:
    """Write a time in hours, or shorter ones in minutes or seconds."""
    if hours >= 1:
        return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.3g} h"
    return f"{hours * 60:.3g} min" if hours * 60 >= 1 else f"{hours * 3600:.3g} s"
