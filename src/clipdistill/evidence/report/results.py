"""Results as JSON: the project's own form, and that of CLIP_benchmark."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipdistill.data.samples import is_chinese

if TYPE_CHECKING:
    from clipdistill.evaluation.evaluate import Evaluation

#: CLIP_benchmark's task -> what we call it, and its metric names for ours. It counts in fractions, we in percent.
_RETRIEVAL = {f"text_to_image_R@{k}": f"image_retrieval_recall@{k}" for k in (1, 5, 10)} | {
    f"image_to_text_R@{k}": f"text_retrieval_recall@{k}" for k in (1, 5, 10)
}
_ZEROSHOT = {f"zeroshot_{name}": name for name in ("acc1", "acc5", "mean_per_class_recall")}
_TASKS = {"zeroshot_retrieval": ("retrieval", _RETRIEVAL), "zeroshot_classification": ("zeroshot", _ZEROSHOT)}

_NAME_LENGTH = 60


def as_dict(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return ``{"models": {name: {"params", "image_params", "text_params", "uri", "metrics", "latency"}}}``.

    Metrics are percentages with four decimals, latencies milliseconds. What is not a finite number becomes None.
    """
    return {"models": {found.name: _model(found) for found in evaluations}}


def clip_benchmark(evaluations: Sequence[Evaluation], datasets: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return file name -> content in CLIP_benchmark's form, one per model and task that it knows.

    ``datasets`` names the data by task ("retrieval", "zeroshot"). Metrics are fractions; ``pretrained`` is the
    model's URI. Names are made safe for every file system, and told apart by a number where they then collide.
    """
    files: dict[str, dict[str, Any]] = {}
    for found in evaluations:
        for task, (ours, names) in _TASKS.items():
            metrics = {new: _fraction(found.metrics[old]) for old, new in names.items() if old in found.metrics}
            if metrics:
                content = {
                    "dataset": str(datasets.get(ours, "data")),
                    "model": found.name,
                    "pretrained": found.uri,
                    "task": task,
                    "metrics": metrics,
                    "language": _language(found, ours),
                }
                files[_file_name(content, files)] = content
    return files


def plain(value: Any) -> Any:
    """Return a value as JSON knows it: containers and numbers as such, not-a-number as None, the rest as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _model(found: Evaluation) -> dict[str, Any]:
    about = {
        "params": found.params,
        "image_params": found.image_params,
        "text_params": found.text_params,
        "uri": found.uri,
        "metrics": {name: round(float(value), 4) for name, value in found.metrics.items()},
        "latency": found.latency,
    }
    return {key: plain(value) for key, value in about.items()} | ({"skipped": found.skipped} if found.skipped else {})


def _fraction(percent: float) -> float | None:
    return round(float(percent) / 100, 6) if math.isfinite(percent) else None


def _language(found: Evaluation, task: str) -> str:
    """CLIP_benchmark's code: Chinese captions are "zh" but Chinese class names "cn"; "en-zh" if captions mix."""
    samples = found.galleries[task].samples if task in found.galleries else []
    if task == "zeroshot":
        return "cn" if any(is_chinese(sample.label or "") for sample in samples) else "en"
    kinds = {is_chinese(caption) for sample in samples for caption in sample.captions}
    return "en-zh" if len(kinds) == 2 else "zh" if True in kinds else "en"


def _file_name(content: Mapping[str, Any], taken: Mapping[str, Any]) -> str:
    """``{dataset}_{pretrained}_{model}_{language}_{task}.json``, other than those taken."""
    stem = "_".join(_safe(content[key]) for key in ("dataset", "pretrained", "model", "language", "task"))
    names = (f"{stem}{f'-{number}' if number else ''}.json" for number in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def _safe(name: str) -> str:
    """Keep letters of any script, digits, dots and dashes; of a long path its end, which tells most."""
    kept = re.sub(r"[^\w.-]+", "-", name).encode("utf-8", "replace")[-_NAME_LENGTH:]
    return kept.decode("utf-8", "ignore").strip("-.") or "unnamed"
