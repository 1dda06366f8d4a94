"""Exported models of random weights: what ``bench search`` asks a process of its own for.

``python -m clipdistill.bench.search_models '{"tower": ..., "folder": ..., "captions": ...}'``
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipdistill.bench.search_towers import SPECS
from clipdistill.bench.towers import picture
from clipdistill.export.onnx import export
from clipdistill.export.quantise import CANDIDATES, Candidate
from clipdistill.export.quantise import make as make_candidate
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.presets import StudentSpec
from clipdistill.models.students import build
from clipdistill.models.vocabulary import train_tokenizer
from clipdistill.search.runtime import RECORD, SECTION

#: What is served, and what it is compared with; a folder each, of one model.
INT8, FLOAT32 = "int8-channel", "float32"
#: Compared with the model before they are used: so few pictures, for this takes as long as all the rest.
_DATA = "scenes:test?n=24"


def write(tower: str, folder: str, captions: str) -> dict[str, Any]:
    """Export a model in float32, and again with the weights of products in int8; return its width and sides."""
    spec, place = StudentSpec(**SPECS[tower]), Path(folder)
    texts = json.loads(Path(captions).read_text())
    shape = spec.shape()
    tokenizer = train_tokenizer(texts, spec.vocab_size, shape.context_length) if shape.has_text else None
    encoder = build(spec, tokenizer, classes=() if shape.has_text else ("a", "b"))
    centre(encoder, texts)
    encoder.save(place / "model")
    export(place / "model", place / FLOAT32, data=_DATA, precision=FLOAT32)
    shutil.rmtree(place / "model")
    to_int8(place / FLOAT32, place / INT8)
    return {"width": encoder.width, "sides": encoder.sides}


def to_int8(exact: Path, out: Path) -> None:
    """Copy an exported folder with its graphs in int8, by channel: onnxruntime's dynamic kind."""
    shutil.copytree(exact, out)
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    (candidate,) = (one for one in CANDIDATES if one.name == INT8)
    for side in ("image", "text"):
        if part := record[SECTION].get(side):
            part |= _entry(out, candidate, part["file"])
    (out / RECORD).write_text(json.dumps(record), encoding="utf-8")


def _entry(folder: Path, candidate: Candidate, exact: str) -> dict[str, Any]:
    file = make_candidate(candidate, folder / exact, [])
    (folder / exact).unlink()
    return {"file": file.relative_to(folder).as_posix(), "engine": candidate.engine, "precision": candidate.precision}


@torch.inference_mode()
def centre(encoder: DualEncoder, texts: Sequence[str]) -> None:
    """Make the projections blind to what all inputs have in common.

    With random weights it is nearly all there is: every query would be nearly the same, and find the same pictures.
    """
    inputs = {"visual_projection": lambda: encoder.images(_pictures(encoder))}
    if "T" in encoder.sides:
        inputs["text_projection"] = lambda: encoder.texts(encoder.tokenize(list(texts[:32])))
    for name, embed in inputs.items():
        if (projection := getattr(encoder.module, name, None)) is not None:
            _blind(projection, embed)


def _pictures(encoder: DualEncoder) -> dict[str, Tensor]:
    """Pictures of plain colours, for what these have in common any pictures have."""
    drawn = picture(encoder, 8)["pixel_values"]
    return {"pixel_values": drawn.mean(dim=(2, 3), keepdim=True).expand_as(drawn) + 0.2 * drawn}


def _blind(projection: nn.Linear, embed: Any) -> None:
    seen: list[Tensor] = []
    hook = projection.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    embed()
    hook.remove()
    common = nn.functional.normalize(seen[0].mean(dim=0), dim=0)
    projection.weight -= torch.outer(projection.weight @ common, common)


if __name__ == "__main__":
    print(json.dumps(write(**json.loads(sys.argv[1]))))
