"""Preflight: one real batch through everything, before the long run, with nothing left behind.

Shapes, widths and nodes are checked by running them; time and memory are measured, not guessed.
"""

from __future__ import annotations

import resource
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from clipdistill.algebra.graph import Losses
from clipdistill.algebra.rows import agreeing
from clipdistill.data.batches import Batch
from clipdistill.data.views import Transform
from clipdistill.errors import ConfigError, DataError, TrainingError
from clipdistill.teachers.stored import StoredTeacher
from clipdistill.training.setup import Setup

#: AdamW keeps two numbers per weight beside the weight, and a checkpoint holds them all.
_NUMBERS_PER_WEIGHT = 3
#: Above this share of rows with a second positive, the caption repeats are worth a word.
_MANY_REPEATS = 0.2
#: Above this momentum a batch norm knows little more than its last batch.
_FORGETFUL = 0.5


@dataclass
class Findings:
    """What the preflight measured (``facts``, for the record) and what the user should know (``warnings``)."""

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"  {name}: {value}" for name, value in self.facts.items()]
        return "\n".join(["preflight", *lines, *(f"  warning: {warning}" for warning in self.warnings)])


def preflight(setup: Setup, out: Path) -> Findings:
    """Check the run and measure one step.

    Raises:
        DataError: the first batch cannot be read, or all its pictures are the same.
        TrainingError: its loss is not finite.
        ConfigError: the disk has no room for the checkpoints.
    """
    findings = Findings()
    _models(setup, findings)
    started = time.perf_counter()
    batch = first_batch(setup)
    findings.facts["seconds to read a batch"] = round(time.perf_counter() - started, 3)
    _batch(batch, setup, findings)
    _one_step(setup, batch.to(setup.device), findings)
    _disk(setup, out, findings)
    return findings


def first_batch(setup: Setup) -> Batch:
    """Assemble the batch that training will begin with."""
    epoch, rows = next(setup.ranks.shares(setup.order.walk(0, 1)))
    batch = setup.batches.assemble(epoch, rows)
    if setup.ranks.added([len(batch.ids)])[0] < 2 or not batch.ids:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in batch.skipped[:3])
        raise DataError(
            f"of the first {len(rows)} samples of {setup.config.data}, fewer than 2 can be read ({reasons})."
        )
    return batch


def raise_unless_finite(losses: Losses, step: int) -> None:
    """Stop at a loss that is not a number, naming the terms to blame."""
    if torch.isfinite(losses.total):
        return
    bad = [name for name, value in losses.terms.items() if not torch.isfinite(value)]
    values = ", ".join(f"{name} = {float(value.detach()):g}" for name, value in losses.terms.items())
    raise TrainingError(
        f"the loss is not finite at step {step}: term {' and '.join(bad) or 'sum'} ({values}). Nothing was updated. "
        "Try a lower train.lr, train.precision=float32, or train.clip_norm=1."
    )


def _models(setup: Setup, findings: Findings) -> None:
    size = count(setup.student.module)
    findings.facts["student"] = (
        f"{_millions(size)} parameters, {setup.student.width} wide, {_sight(setup.student.transform)}"
    )
    for teacher in setup.teachers:
        inlet = setup.batches.inlets[teacher.letter]
        findings.facts[f"teacher {teacher.letter}"] = (
            f"{setup.config.teachers[teacher.letter]}, {teacher.width} wide, logit scale {teacher.scale:.1f}, "
            f"{_stored_sight(teacher) if isinstance(teacher, StoredTeacher) else _sight(inlet.transform)}"
        )
        ours, theirs = setup.student.transform, inlet.transform
        if ours and theirs and (ours.mean, ours.std) != (theirs.mean, theirs.std):
            findings.warnings.append(
                f"the student and teacher {teacher.letter} normalise pictures differently; each gets its own"
            )
    norms = [module for module in setup.student.module.modules() if isinstance(module, _BatchNorm)]
    momentum = max((norm.momentum or 0.0 for norm in norms), default=0.0)
    if momentum > _FORGETFUL:
        findings.warnings.append(
            f"the student's batch norms have momentum {momentum:g}, so that it will be judged by the statistics of its "
            "last batch: transformers' EfficientNet counts as TensorFlow does, torch the other way round. Say "
            "batch_norm_momentum: 0.1 in student.vision"
        )
    added = count(setup.graph)
    if added:
        names = ", ".join(name.removesuffix(".weight") for name, _ in setup.graph.named_parameters())
        findings.facts["added for training"] = f"{_millions(added)} parameters ({names})"


def _batch(batch: Batch, setup: Setup, findings: Findings) -> None:
    if setup.batches.sees and _all_equal(next(iter(batch.pixels.values()))["pixel_values"]):
        raise DataError(
            f"all pictures of the first batch of {setup.config.data} are identical: nothing can be learned."
        )
    same = agreeing(batch.groups, batch.groups).fill_diagonal_(False)
    share = float(same.any(dim=1).float().mean())
    findings.facts["rows with a second positive in the batch"] = f"{share:.1%}"
    if share > _MANY_REPEATS:
        findings.warnings.append(
            f"{share:.0%} of a batch's rows share a caption or a picture with another row; they count as positives "
            "of each other, but teach less than distinct ones"
        )
    if batch.skipped:
        name, reason = batch.skipped[0]
        findings.warnings.append(f"{len(batch.skipped)} samples of the first batch are skipped, first {name}: {reason}")


def _one_step(setup: Setup, batch: Batch, findings: Findings) -> None:
    """Run forward and backward, then put back the random state, the buffers and the gradients."""
    modules = (setup.student.module, setup.graph)
    before = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    started = time.perf_counter()
    with torch.random.fork_rng():
        losses = setup.all_losses([batch, *(part.first(setup.device) for part in setup.unpaired)], 0)
        raise_unless_finite(losses, 0)
        if not losses.total.requires_grad:
            raise ConfigError(
                f"nothing can learn: every term of recipe {setup.recipe.name} reads rows that are frozen. Drop "
                "student.freeze, or choose another recipe."
            )
        losses.total.backward()  # type: ignore[no-untyped-call]
        _wait(setup)
    seconds = (time.perf_counter() - started) * setup.config.train.accumulate
    setup.forget_gradients()
    for buffer, value in before:
        buffer.copy_(value)
    findings.facts["steps"] = (
        f"{setup.plan.steps} of {setup.plan.batch_size} samples, {setup.plan.steps_per_epoch:.10g} an epoch"
    )
    findings.facts["estimated time"] = (
        f"{_clock(seconds * setup.plan.steps)} (first step, without warm-up: an upper guess)"
    )
    state = (count(setup.student.module) + count(setup.graph)) * 4 * (_NUMBERS_PER_WEIGHT - 1)
    findings.facts["estimated memory"] = f"{(peak_memory(setup.device) + state) / 1e9:.2f} GB on {setup.device.type}"


def _wait(setup: Setup) -> None:
    """Let a GPU finish what it was given, so that time can be taken."""
    if setup.device.type == "cuda":
        torch.cuda.synchronize(setup.device)


def _disk(setup: Setup, out: Path, findings: Findings) -> None:
    bytes_each = (count(setup.student.module) + count(setup.graph)) * 4 * _NUMBERS_PER_WEIGHT
    needed = bytes_each * (setup.config.train.keep_checkpoints + 2)
    existing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    findings.facts["disk"] = f"{needed / 1e9:.2f} GB needed, {free / 1e9:.1f} GB free"
    if needed > free:
        raise ConfigError(
            f"out={out} needs about {needed / 1e9:.2f} GB for checkpoints, {free / 1e9:.2f} GB are free there. "
            "Free some space, choose another out, or lower train.keep_checkpoints."
        )


def count(module: torch.nn.Module) -> int:
    """Parameters of a module, each counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def peak_memory(device: torch.device) -> int:
    """The most memory used so far, in bytes: by tensors on a GPU, by this process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _all_equal(rows: Tensor) -> bool:
    return bool((rows == rows[:1]).all())


def _sight(transform: Transform | None) -> str:
    if transform is None:
        return "no pictures"
    height, width = transform.size
    return f"{height} x {width} pixels"


def _stored_sight(teacher: StoredTeacher) -> str:
    count = teacher.store.manifest.views.count
    seen = f"{count} views of each picture" if count else "whole pictures"
    seen = f"the mean of {seen}" if teacher.choices.views == "mean" else seen
    return f"stored, {seen}" if "I" in teacher.store.sides else "stored, captions alone"


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f}M"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
