"""The students there are by name: how large, how fast on this machine, how good where that is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

import torch
import yaml

from clipdistill.bench import towers
from clipdistill.bench.clock import in_turn
from clipdistill.bench.result import columns
from clipdistill.errors import ClipdistillError
from clipdistill.models.device import choose_device
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.presets import PRESETS
from clipdistill.progress import progress

#: Entries of CLIP's vocabulary, with which text towers are counted.
VOCABULARY = 49_408

Times = Mapping[str, Mapping[str, float]]
Measure = Callable[[str, torch.device], Times]


@dataclass(frozen=True)
class Student:
    """A preset: parameters of its towers, ``times`` by tower in milliseconds, or why it is not here.

    ``text_params`` is 0 for a classifier; ``published`` its quality in a paper, if there is one.
    """

    name: str
    image_params: int = 0
    text_params: int = 0
    published: str = ""
    times: Times = field(default_factory=dict)
    left_out: str = ""

    def meets(self, milliseconds: float) -> bool:
        """Whether the median of each tower is within so many milliseconds."""
        return bool(self.times) and all(found["p50"] <= milliseconds for found in self.times.values())


def students(
    target: float | None = None, device: str = "cpu", threads: int | None = None, measure: Measure | None = None
) -> list[Student]:
    """Return the presets; with a ``target`` in milliseconds, measured on ``device`` with so many ``threads``.

    Raises :class:`ConfigError` for a device that is not there.
    """
    chosen, before = choose_device(device), torch.get_num_threads()
    known = published()
    found = [_count(name, known.get(name, "")) for name in PRESETS]
    if target is None:
        return found
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        with progress("measuring", len(found), "presets") as advance:
            for place, student in enumerate(found):
                advance(place, student.name)
                found[place] = _timed(student, measure or measure_eager, chosen)
            advance(len(found), "")
    finally:
        torch.set_num_threads(before)
    return found


def table(found: Sequence[Student], target: float | None = None) -> str:
    """Lay out the students; with a target, those that meet it first, the fastest of them first."""
    if target is None:
        return "\n".join([_aligned(found), *_notes(found)])
    meeting = sorted((s for s in found if s.meets(target)), key=_slowest)
    others = sorted((s for s in found if s.times and not s.meets(target)), key=_slowest)
    lines = [f"{len(meeting)} of {len(found)} presets have both medians within {target:g} ms:"]
    lines += [_aligned(meeting)] if meeting else []
    lines += ["slower:", _aligned(others)] if others else []
    return "\n".join([*lines, *_notes(found)])


def published() -> dict[str, str]:
    """Return the quality of presets in papers, by name, as ``published.yaml`` beside this file has it."""
    text = files("clipdistill.bench").joinpath("published.yaml").read_text(encoding="utf-8")
    return {
        name: f"{figures['distilled']:.1f} ({figures['alone']:.1f} alone)"
        for paper in yaml.safe_load(text)
        for name, figures in paper["presets"].items()
    }


def measure_eager(name: str, device: torch.device) -> dict[str, dict[str, float]]:
    """Time a preset's towers in turn, one picture and one caption of full length, in torch as it is, float32."""
    encoder = towers.make(name)
    encoder.module.to(device)
    works: dict[str, Callable[[], Any]] = {}
    pixels = {key: value.to(device) for key, value in towers.picture(encoder).items()}
    works["image"] = lambda: _awaited(encoder.images(pixels))
    if "T" in encoder.sides:
        tokens = {key: ids.to(device) for key, ids in towers.caption(encoder, towers.longest(encoder)).items()}
        works["text"] = lambda: _awaited(encoder.texts(tokens))
    with torch.inference_mode():
        return in_turn(works)


def _awaited(rows: torch.Tensor) -> None:
    """Wait until a device has really computed something."""
    rows.sum().item()


def _count(name: str, quality: str) -> Student:
    """Count a preset's parameters without making them."""
    try:
        with torch.device("meta"):
            encoder = towers.make(name)
    except ClipdistillError as error:
        return Student(name, published=quality, left_out=str(error))
    image, text = _sizes(encoder)
    return Student(name, image, text, quality)


def _sizes(encoder: DualEncoder) -> tuple[int, int]:
    """Parameters of both towers, their projections among them; that of text with CLIP's vocabulary."""
    parts = list(encoder.module.named_parameters())
    text = sum(part.numel() for name, part in parts if name.startswith("text_"))
    whole = sum(part.numel() for _, part in parts if part.dim())
    for name, part in parts:
        if name.startswith("text_") and "token_embedding" in name:
            text += (VOCABULARY - part.shape[0]) * part.shape[1]
            whole += (VOCABULARY - part.shape[0]) * part.shape[1]
    return whole - text, text


def _timed(student: Student, measure: Measure, device: torch.device) -> Student:
    if student.left_out:
        return student
    return replace(student, times=measure(student.name, device))


def _slowest(student: Student) -> float:
    return max(found["p50"] for found in student.times.values())


def _aligned(found: Sequence[Student]) -> str:
    timed = any(student.times for student in found)
    heads = ["preset", "image M", "text M", *(_HEADS if timed else []), "published"]
    return columns([heads, *(_line(student, timed) for student in found)])


_HEADS = ("image p50", "p99 ms", "text p50", "p99 ms")


def _line(student: Student, timed: bool) -> list[str]:
    sizes = [f"{size / 1e6:.1f}" if size else "-" for size in (student.image_params, student.text_params)]
    times = [
        f"{student.times[tower][rank]:.2f}" if tower in student.times else "-"
        for tower in ("image", "text")
        for rank in ("p50", "p99")
    ]
    return [student.name, *sizes, *(times if timed else []), student.published or "-"]


def _notes(found: Sequence[Student]) -> list[str]:
    notes = [
        f"Parameters in millions, of text with CLIP's vocabulary of {VOCABULARY:,}. Published: ImageNet zero-shot "
        "top-1 after distillation, in CLIP-KD (arXiv 2307.12732).",
    ]
    if any(student.times for student in found):
        notes.append(
            "Times are of one picture and one caption of full length, in torch as it is (eager, float32), random "
            "weights; exported graphs are faster: clipdistill bench latency."
        )
    return notes + [f"{student.name} is left out: {student.left_out}" for student in found if student.left_out]
