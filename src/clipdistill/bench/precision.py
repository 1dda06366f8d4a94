"""Claim: where a CPU has bfloat16 units, a training step in bfloat16 is faster than in float32."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from clipdistill.bench.result import Result, of_verdicts
from clipdistill.bench.versus import versus
from clipdistill.config import make_run
from clipdistill.models.device import make_autocast
from clipdistill.training.preflight import first_batch
from clipdistill.training.setup import prepare


def run() -> Result:
    """Measure forward and backward of the benchmark's teacher on one batch of 128 drawn pictures."""
    with tempfile.TemporaryDirectory() as folder:
        setup = prepare(
            make_run(
                {
                    "recipe": "clip",
                    "data": "scenes:train?n=512",
                    "student": {"preset": "scenes-teacher", "vocab_size": 1024},
                    "train": {"steps": 1, "batch_size": 128, "device": "cpu"},
                    "out": str(Path(folder) / "run"),
                }
            )
        )
        batch = first_batch(setup)

    def step(precision: str) -> None:
        setup.autocast = make_autocast(torch.device("cpu"), precision)
        setup.losses(batch).total.backward()  # type: ignore[no-untyped-call]

    fast, plain = ("bfloat16", lambda: step("bfloat16")), ("float32", lambda: step("float32"))
    return of_verdicts({"bfloat16_step": versus("one training step on this CPU", fast, plain, pairs=5)})
