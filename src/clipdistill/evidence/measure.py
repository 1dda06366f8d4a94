"""What a model of a grid is worth: measured once, remembered beside it, and set beside the teacher's embeddings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clipdistill import __version__
from clipdistill.evaluation.evaluate import Evaluation, Tasks, evaluate
from clipdistill.evaluation.metrics import Rows, unit
from clipdistill.evidence.cells import Job, Known
from clipdistill.evidence.grid import METRICS
from clipdistill.files import write_text
from clipdistill.models.loading import load
from clipdistill.progress import console
from clipdistill.training.run_folder import LOG, read_log

#: What was measured, beside the run or the teacher.
FILE = "measured.json"


@dataclass(frozen=True)
class Measured:
    """One model: its metrics in percent, its size, its latencies, and the mean cosines to the teacher's rows.

    ``cosines`` holds "image", cos(SI, TI), and "text", cos(ST, TT), on the retrieval data; nothing without a teacher
    or where the widths differ.
    """

    uri: str
    params: int
    image_params: int
    text_params: int
    metrics: dict[str, float]
    latency: dict[str, float]
    cosines: dict[str, float] = field(default_factory=dict)


@dataclass
class Judge:
    """Measures models on the same data; ``teacher`` is the one that feature cosines are to."""

    tasks: Tasks
    known: Known
    teacher: str | None

    def student(self, job: Job) -> Measured:
        """Measure a finished run's student, or read what was measured before on the same data."""
        return self._remembered(str(job.student), job.folder / FILE, self._key, beside=self.teacher)

    def of_teacher(self, folder: Path) -> Measured | None:
        """Measure the teacher, if there is one; ``folder`` remembers it."""
        if self.teacher is None:
            return None
        key = f"{self._key}-{self.known.model(self.teacher).fingerprint}"  # another one may have been there before
        return self._remembered(self.teacher, folder / f"teacher-{FILE}", key, beside=None)

    def _remembered(self, uri: str, file: Path, key: str, beside: str | None) -> Measured:
        """What is remembered of a model, its cosines to each teacher that it was set beside among it."""
        known, name = _read(file, key), self.known.model(beside).fingerprint if beside else ""
        if known is None or (beside and name not in known["cosines"]):
            console.print(f"measuring {uri}", markup=False)
            found = self._teacher_evaluation if uri == self.teacher else self._evaluate(uri)
            known = known or _facts(uri, found)
            if beside:
                known["cosines"][name] = cosines(found, self._teacher_evaluation)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps({"key": key, **known}, indent=2, ensure_ascii=False) + "\n")
        return Measured(**{**known, "cosines": known["cosines"].get(name, {})})

    def _evaluate(self, uri: str) -> Evaluation:
        return evaluate({"student": load(uri)}, self.tasks)[0]

    @cached_property
    def _teacher_evaluation(self) -> Any:
        """The teacher's rows stay in memory: every student is compared with them."""
        return self._evaluate(self.teacher) if self.teacher else None

    @cached_property
    def _key(self) -> str:
        """A hash of all that a measurement depends on beside the model."""
        sources = {task: getattr(self.tasks, task) for task in METRICS}
        about: dict[str, Any] = {task: source.fingerprint for task, source in sources.items() if source}
        about |= {"package": __version__}
        return hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=8).hexdigest()


def cosines(student: Evaluation, teacher: Evaluation) -> dict[str, float]:
    """Return the mean cosines between two models' rows of the same pictures ("image") and captions ("text").

    Only those whose shapes agree: rows of other widths are not comparable.
    """
    found = {"image": (_images(student), _images(teacher)), "text": (student.texts, teacher.texts)}
    return {
        side: float(np.mean(np.sum(unit(ours) * unit(theirs), axis=1)))
        for side, (ours, theirs) in found.items()
        if ours is not None and theirs is not None and ours.shape == theirs.shape
    }


def training_seconds(folder: Path) -> float | None:
    """Return how long a run's steps took, from its log: samples by samples per second; None without a log.

    Time spent before an interruption counts at the rate after it. Stages add up.
    """
    logs = [read_log(part / LOG) for part in (folder, *sorted(folder.glob("stage-*")))]
    timed = [[entry for entry in log if entry.get("samples_per_second")] for log in logs]
    seconds = [float(own[-1]["samples"] / own[-1]["samples_per_second"]) for own in timed if own]
    return sum(seconds) if seconds else None


def learning_curve(folder: Path) -> dict[int, dict[str, float]]:
    """Return the metrics that a run logged while it trained, by step."""
    return {int(entry["step"]): entry["metrics"] for entry in read_log(folder / LOG) if "metrics" in entry}


def _facts(uri: str, found: Evaluation) -> dict[str, Any]:
    """What is measured of a model by itself, as :class:`Measured` has it."""
    return {
        "uri": uri,
        "params": found.params,
        "image_params": found.image_params,
        "text_params": found.text_params,
        "metrics": {name: float(value) for name, value in found.metrics.items()},
        "latency": found.latency,
        "cosines": {},
    }


def _read(file: Path, key: str) -> dict[str, Any] | None:
    """What was measured under the same key, if it can be read."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {name: content[name] for name in Measured.__dataclass_fields__} if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _images(found: Evaluation) -> Rows | None:
    return found.galleries["retrieval"].images if "retrieval" in found.galleries else None
