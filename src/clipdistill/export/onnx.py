"""``clipdistill export``: a model as two ONNX graphs with everything that a runtime without torch needs."""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipdistill.data.sources import pairs
from clipdistill.errors import ModelError
from clipdistill.export.gate import Gate
from clipdistill.export.graphs import OPSET, Side, write_graph
from clipdistill.export.papers import card, licences, measure, own_record
from clipdistill.export.parity import BATCHES, Parity, check, model_images, model_texts
from clipdistill.export.place import check_out
from clipdistill.export.probes import SCENES, Probes, take_probes
from clipdistill.export.quantise import Candidate
from clipdistill.export.reading import PROBES, TOKENIZER, write_tokenizer
from clipdistill.export.shipping import AUTO, MAX_RECALL_LOSS, find_precision, ship
from clipdistill.files import flush
from clipdistill.models.bundle import versions
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.loading import load
from clipdistill.progress import progress
from clipdistill.search.golden import GOLDEN, checksums, write_golden
from clipdistill.search.papers import FILES, LAYOUT
from clipdistill.search.runtime import RECORD, SECTION, VERSION, Runtime
from clipdistill.search.tokens import Reader, TextRules

_FILES: dict[Side, str] = {"image": "onnx/vision_model.onnx", "text": "onnx/text_model.onnx"}
_GOLDEN_SIDE, _GOLDEN_PICTURES, _GOLDEN_CAPTIONS = 128, 4, 6


@dataclass(frozen=True)
class Exported:
    """The worst cosines between float32 graphs and model, and what the gate measured, if it was asked."""

    parity: Parity
    gate: Gate | None


def export(
    student: str | Path,
    out: str | Path,
    data: str | None = None,
    precision: str = AUTO,
    max_recall_loss: float = MAX_RECALL_LOSS,
) -> Exported:
    """Write the model that ``student`` names, a folder or a run's, as ONNX graphs with their tokenizer and rules.

    Every graph is compared with the model before anything is published, on 32 samples of ``data``, or on drawn ones.
    Then ``precision`` "auto" measures candidates on up to 1,000 samples and ships the fastest that loses no more than
    ``max_recall_loss`` points; "float32" skips that, and any other of
    :data:`clipdistill.export.quantise.CANDIDATES` is measured and ships whatever it loses. ``out`` appears whole or
    not at all, and replaces only an earlier export.
    Raises :class:`ModelError` for a model that cannot be exported or whose graphs differ, :class:`ConfigError` for
    a folder that holds something else, :class:`DataError` for data that cannot be read.
    """
    out, only = Path(out).resolve(), find_precision(precision)  # a link stays one
    check_out(out, SECTION, "exported model")
    encoder = load(str(student))
    probes = take_probes(pairs(data or SCENES), encoder.sides)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = _beside(out)
    fresh.mkdir()
    try:
        exported = _write(encoder, str(student), fresh, probes, data, only, max_recall_loss)
        _put_in_place(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return exported


def _write(
    encoder: DualEncoder,
    student: str,
    folder: Path,
    probes: Probes,
    data: str | None,
    only: Candidate | None,
    allowed: float,
) -> Exported:
    """Write everything into a folder, the record last."""
    (folder / "onnx").mkdir()
    sides = [side for side in _FILES if side[0].upper() in encoder.sides]
    with progress("export", len(sides) + 1, "steps") as advance:
        section = _section(encoder)
        for done, side in enumerate(sides):
            advance(done, f"{side} graph")
            section[side] = _image(encoder, folder, probes) if side == "image" else _text(encoder, folder)
        advance(len(sides), "comparing")
        record = _base(encoder, student)
        parity = check(encoder, Runtime(folder, {**record, SECTION: section}), probes.pictures, probes.captions)
        section["parity"] = {"image": parity.image, "text": parity.text, "batches": list(BATCHES)}
        section["golden"] = _golden(encoder, folder, probes)
        advance(len(sides) + 1, "")
    gate = ship(folder, {**record, SECTION: section}, probes, data, only, allowed)
    section["files"] = checksums(folder)
    record |= licences(record, student)
    section |= measure(Runtime(folder, {**record, SECTION: section}), data)
    (folder / "README.md").write_text(card({**record, SECTION: section}), encoding="utf-8")
    text = json.dumps({**record, SECTION: section}, indent=2, ensure_ascii=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")
    for part in ("onnx", "openvino", "."):
        if (folder / part).is_dir():
            flush(folder / part)
    return Exported(parity, gate)


def _base(encoder: DualEncoder, student: str) -> dict[str, Any]:
    """Return the model's own record (teachers, recipe, data, metrics, licences), as of the weights that were loaded."""
    kept = own_record(student)
    described: Any = encoder  # every encoder says so, the interface does not ask for it
    return {
        **{key: value for key, value in kept.items() if key not in (LAYOUT, FILES)},
        "schema": kept.get("schema", 1),
        "fingerprint": encoder.fingerprint,
        "width": encoder.width,
        "inputs": described.input_rules(),
        "packages": versions(),
    }


def _section(encoder: DualEncoder) -> dict[str, Any]:
    bias = None if encoder.bias is None else float(encoder.bias.item())
    return {"version": VERSION, "opset": OPSET, "scale": encoder.scale, "bias": bias, "unit_rows": True}


def _image(encoder: DualEncoder, folder: Path, probes: Probes) -> dict[str, Any]:
    """Write the image graph, and return what the record says about it."""
    assert encoder.transform is not None
    prepared = [encoder.transform(picture) for picture in probes.pictures[:2]]
    pixels = {name: torch.from_numpy(np.stack([one[name] for one in prepared])) for name in prepared[0]}
    write_graph(encoder, "image", pixels, folder / _FILES["image"], own_length=False)
    return {"file": _FILES["image"], "inputs": list(pixels), "transform": encoder.transform.to_dict()}


def _text(encoder: DualEncoder, folder: Path) -> dict[str, Any]:
    """Write tokenizer and text graph, and return what the record says about them."""
    rules: TextRules = write_tokenizer(encoder, folder)
    example = Reader(folder / TOKENIZER, rules)(["a photo of two dogs", "a red circle left of a blue star"])
    tokens = {name: torch.from_numpy(array) for name, array in example.items()}
    write_graph(encoder, "text", tokens, folder / _FILES["text"], own_length=not rules.fixed)
    return {"file": _FILES["text"], "tokenizer": TOKENIZER, "rules": rules.to_dict()}


def _golden(encoder: DualEncoder, folder: Path, probes: Probes) -> dict[str, Any]:
    """Write a few pictures and captions with the rows that the model itself gives them."""
    images = texts = None
    if "I" in encoder.sides:
        small = [picture.resize((_GOLDEN_SIDE, _GOLDEN_SIDE)) for picture in probes.pictures[:_GOLDEN_PICTURES]]
        pixels: list[NDArray[np.uint8]] = [np.asarray(picture) for picture in small]
        images = (pixels, model_images(encoder, small))
    if "T" in encoder.sides:
        captions = list(PROBES[:_GOLDEN_CAPTIONS])
        texts = (captions, model_texts(encoder, captions))
    write_golden(folder / GOLDEN, images, texts)
    return {"file": GOLDEN}


def _put_in_place(fresh: Path, out: Path) -> None:
    """Rename the new folder to its name; an earlier one steps aside first and comes back if that fails."""
    if not out.exists():
        fresh.replace(out)
        return
    aside = _beside(out)
    out.replace(aside)
    try:
        fresh.replace(out)
    except OSError as error:
        aside.replace(out)
        raise ModelError(f"{out} could not be replaced: {error}") from error
    shutil.rmtree(aside, ignore_errors=True)


def _beside(out: Path) -> Path:
    return out.with_name(f".{out.name}.{uuid.uuid4().hex}")
