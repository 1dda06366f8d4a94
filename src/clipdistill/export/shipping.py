"""Which precision and engine an exported folder ships with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clipdistill.errors import ConfigError, did_you_mean
from clipdistill.export.gallery import Inputs, open_gallery
from clipdistill.export.gate import Gate, Measured, run_gate
from clipdistill.export.gate_table import as_dict
from clipdistill.export.probes import Probes
from clipdistill.export.quantise import CANDIDATES, FLOAT32, Candidate
from clipdistill.search.engines import ONNXRUNTIME, parts
from clipdistill.search.golden import GOLDEN, LEAST_COSINE, golden_rows
from clipdistill.search.pixels import read_pixels
from clipdistill.search.runtime import SECTION, Runtime

#: Let the gate choose.
AUTO = "auto"
#: Points of recall that a precision may cost.
MAX_RECALL_LOSS = 0.5


def find_precision(name: str) -> Candidate | None:
    """Return the candidate of that name, None for :data:`AUTO`; raises :class:`ConfigError` for any other name."""
    known = {one.name: one for one in CANDIDATES}
    if name not in (AUTO, *known):
        raise ConfigError(f"there is no precision '{name}'.{did_you_mean(name, (AUTO, *known))}")
    return known.get(name)


def ship(
    folder: Path, record: dict[str, Any], probes: Probes, data: str | None, only: Candidate | None, allowed: float
) -> Gate | None:
    """Put candidates of the float32 graphs through the gate, and leave in the folder and its record what ships.

    ``only`` is taken whatever it loses; float32 by name is taken without measuring. The golden rows, which are
    torch's, must be written: how far the graphs may be from them is recorded too.
    """
    section = record[SECTION]
    sides = [side for side in ("image", "text") if side in section]
    if only is not None and only.name == FLOAT32:
        for side in sides:
            section[side] |= {"engine": ONNXRUNTIME, "precision": FLOAT32, "least_cosine": LEAST_COSINE}
        return None
    runtime = Runtime(folder, record)
    files = {side: folder / section[side]["file"] for side in sides}
    with TemporaryDirectory(dir=folder) as scratch:
        gallery = open_gallery(data, runtime, Path(scratch))
        gate = run_gate(files, _inputs(runtime, probes), gallery, allowed, only)
    _delete_others(folder, gate)
    for side in sides:
        chosen = gate.chosen[side]
        others = [_entry(folder, one) for one in gate.kept[side].values() if one is not chosen]
        section[side] |= {**_entry(folder, chosen), "others": others}
    for side in sides:
        for graph in (section[side], *section[side]["others"]):
            graph["least_cosine"] = _least_cosine(folder, record, side, graph)
    section["gate"] = as_dict(gate)
    return gate


def _inputs(runtime: Runtime, probes: Probes) -> dict[str, list[Inputs]]:
    """Probes as the graphs read them, each by itself."""
    found: dict[str, list[Inputs]] = {}
    if "I" in runtime.sides:
        found["image"] = [read_pixels(runtime.transform, [picture]) for picture in probes.pictures]
    if "T" in runtime.sides:
        found["text"] = [runtime.reader([caption]) for caption in probes.captions]
    return found


def _delete_others(folder: Path, gate: Gate) -> None:
    """Delete the files of all candidates that are not kept, half-made ones among them."""
    files = [one.file for several in gate.kept.values() for one in several.values() if one.file is not None]
    kept = {part for file in files for part in parts(file)}
    for part in [*(folder / "onnx").iterdir(), *folder.glob("openvino/*")]:
        if part not in kept:
            part.unlink()
    if (folder / "openvino").is_dir() and not any((folder / "openvino").iterdir()):
        (folder / "openvino").rmdir()


def _entry(folder: Path, one: Measured) -> dict[str, Any]:
    assert one.file is not None
    return {"engine": one.engine, "precision": one.precision, "file": one.file.relative_to(folder).as_posix()}


def _least_cosine(folder: Path, record: Mapping[str, Any], side: str, graph: Mapping[str, Any]) -> float:
    """Return the least cosine with torch's golden rows that a graph may have anywhere.

    In float32 that is the bound of every export. In any other precision it is measured here, and a row may be twice
    as far away as the worst is here (distance: one less the cosine), and 0.0001 more: other processors round
    otherwise, while damage and other preprocessing move rows much further.
    """
    if graph["precision"] == FLOAT32:
        return LEAST_COSINE
    runtime = Runtime(folder, record, engine=graph["engine"])
    worst = min(
        float((fresh * golden).sum(axis=1).min())
        for found, _, fresh, golden in golden_rows(runtime, folder / GOLDEN)
        if found == side
    )
    return min(LEAST_COSINE, 1 - 2 * (1 - worst) - 1e-4)
