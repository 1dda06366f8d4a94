"""What the gate measured, for people and for the record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clipdistill.export.gate import Gate, Measured, machine
from clipdistill.export.quantise import FLOAT32
from clipdistill.models.bundle import versions

if TYPE_CHECKING:
    from rich.table import Table

#: With fewer pairs recall is coarse, which is said.
_COARSE = 200


def as_dict(gate: Gate) -> dict[str, Any]:
    """Return everything in plain values for JSON."""
    return {
        "max_recall_loss": gate.allowed,
        "loss": gate.loss,
        "judged_by": gate.judged,
        "data": gate.uri,
        "pairs": gate.pairs,
        "rows": gate.sizes,
        "skipped": gate.skipped,
        "machine": machine(),
        "packages": {**versions(), **_engine_versions()},
        "candidates": {side: [_row(gate, side, one) for one in found] for side, found in gate.towers.items()},
    }


def _row(gate: Gate, side: str, one: Measured) -> dict[str, Any]:
    found: dict[str, Any] = {"name": one.name, "engine": one.engine, "precision": one.precision}
    if one.timing is not None:
        found |= {
            "ms": one.timing.ms,
            "float32_ms": one.timing.float32_ms,
            "noise_ms": one.timing.noise,
            "bytes": one.bytes,
            "centred_cosine": one.cosine,
            **one.quality,
            "loss": one.loss,
        }
    return {**found, "verdict": verdict(gate, side, one)}


def verdict(gate: Gate, side: str, one: Measured) -> str:
    """Say in a few words what became of a candidate, and why."""
    if one.timing is None:
        return one.reason
    if gate.chosen[side] is one:
        return "ships"
    words = "kept for this engine" if gate.kept[side].get(one.engine) is one else ""
    if one.loss > gate.allowed:
        return words or "loses too much"
    if not one.timing.faster and one.name != FLOAT32:
        return words or "not faster than float32"
    return words or "passes; another is faster or loses less beside the other tower"


def table(gate: Gate) -> Table:
    """Return the table that the command prints."""
    from rich.table import Table
    from rich.text import Text

    found = Table(title="candidates: latency of one input, the median, on this machine")
    for name in ("tower", "candidate"):
        found.add_column(name)
    for name in ("ms", "x float32", "MB", "centred cosine", "loss, points"):
        found.add_column(name, justify="right")
    found.add_column("")
    for side, several in gate.towers.items():
        for one in several:
            found.add_row(side, one.name, *_numbers(one), Text(verdict(gate, side, one)))
    return found


def _numbers(one: Measured) -> tuple[str, ...]:
    if one.timing is None:
        return ("-",) * 5
    faster = "1" if one.name == FLOAT32 else f"{1 / one.timing.share:.2f}"
    return (f"{one.timing.ms:.2f}", faster, f"{one.bytes / 1e6:.1f}", f"{one.cosine:.4f}", f"{one.loss:.2f}")


def foot(gate: Gate) -> list[str]:
    """Return what has to be known to read the table."""
    what = {"image": "pictures", "text": "captions"}
    rows = " and ".join(f"{size} {what[side]}" for side, size in gate.sizes.items())
    if gate.judged == "recall":
        lines = [
            f"Loss: the worst drop of R@1 and R@10, both ways, on {gate.pairs} pairs of {gate.uri}; "
            f"one picture is {100 / gate.pairs:.2g} points."
        ]
        if gate.pairs < _COARSE:
            lines.append(f"{gate.pairs} pairs are few: with {_COARSE} or more, losses are told apart better.")
    else:
        why = "float32 itself finds too few of the pairs to lose any" if gate.pairs else "there are no pairs"
        lines = [f"Loss: how many of a row's nearest are others than in float32 ({why}), on {rows} of {gate.uri}."]
    if gate.skipped:
        lines.append(f"{gate.skipped} pictures could not be read and were left out.")
    chosen = ", ".join(f"{side} {one.name}" for side, one in gate.chosen.items())
    return [*lines, f"Ships: {chosen}; together they lose {gate.loss:.2f} points, {gate.allowed:g} are allowed."]


def _engine_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("onnx", "onnxruntime", "openvino", "nncf"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
