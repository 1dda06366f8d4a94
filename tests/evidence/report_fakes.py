"""Evaluations without models: real pictures, made-up embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from clipdistill.data.samples import Sample
from clipdistill.evaluation import retrieval
from clipdistill.evaluation.evaluate import Evaluation, Gallery

NASTY = "<script>alert('x')</script> & \"quotes\""


def fake(name: str, samples: list[Sample], noise: float, params: int = 3_000_000, **changes: Any) -> Evaluation:
    """A model whose captions and pictures, and pictures of one label, are alike up to noise."""
    rng = np.random.default_rng(0)
    owners = [owner for owner, sample in enumerate(samples) for _ in sample.captions]
    points = rng.normal(size=(len(samples), 16)).astype(np.float32)
    points += 2 * rng.normal(size=(3, 16)).astype(np.float32)[np.arange(len(samples)) % 3]
    images = points + noise * rng.normal(size=points.shape).astype(np.float32)
    texts = points[owners] + noise * rng.normal(size=(len(owners), 16)).astype(np.float32)
    captions = [caption for sample in samples for caption in sample.captions]
    gallery = Gallery(samples, images, list(range(len(samples))))
    metrics = retrieval.text_image(images, texts, owners, gallery.same, captions)
    metrics |= retrieval.image_image(images, gallery.alike)
    metrics.pop("image_to_image_left_out")
    metrics |= {"zeroshot_acc1": 61.23456789, "zeroshot_acc5": 100.0, "zeroshot_mean_per_class_recall": 60.0}
    return replace(
        Evaluation(name, f"models/{name}", params, params - 1000, 1000, metrics, {"image_ms": 3.14159, "text_ms": 1.0}),
        galleries=dict.fromkeys(("retrieval", "image_retrieval", "zeroshot"), gallery),
        texts=texts,
        **changes,
    )
