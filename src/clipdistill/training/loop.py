"""The training loop: read, forward, backward, step, log, checkpoint; the same numbers however often interrupted."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from clipdistill.algebra.graph import Losses
from clipdistill.algebra.term import MAX_SCALE
from clipdistill.config import RunConfig
from clipdistill.data.batches import Batch
from clipdistill.data.block_order import fetch_ahead
from clipdistill.data.samples import key64
from clipdistill.data.secrets import redacted
from clipdistill.data.workers import load
from clipdistill.errors import ConfigError, DataError, InterruptedRunError, TrainingError
from clipdistill.evaluation.evaluate import Tasks, evaluate
from clipdistill.models.device import choose_device, choose_precision
from clipdistill.models.licences import Link, as_card
from clipdistill.progress import console, progress
from clipdistill.training import checkpoint, run_folder, trackers
from clipdistill.training.checks import check_ranks, check_tasks
from clipdistill.training.origins import space_of, tell_licences
from clipdistill.training.preflight import count, preflight, raise_unless_finite
from clipdistill.training.pruning import Pruning
from clipdistill.training.ranks import Ranks, joined
from clipdistill.training.run_folder import Log
from clipdistill.training.schedule import factor
from clipdistill.training.setup import Setup, prepare, train_mode
from clipdistill.training.trackers import Logs


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and the student in it."""

    folder: Path
    student: Path
    steps: int


@dataclass
class State:
    """What changes while training, beside the weights."""

    step: int = 0
    ema: dict[str, Tensor] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    stopping: bool = False


def distill(config: RunConfig, resume: bool = False) -> Run:
    """Train a student as configured, and write it to ``out/student``.

    With ``resume`` the run in ``out`` goes on from its newest whole checkpoint, with the same losses as if it had
    never stopped (to the bit on a CPU). As one of several processes it does its share, see
    :mod:`clipdistill.training.ranks`; a run may go on with another number of them.

    Raises:
        ClipdistillError: anything in the configuration, the data or the models does not fit; before step one
            nothing is written.
    """
    if config.stages:
        raise ConfigError("this run has stages; train it with clipdistill.training.stages.distill.")
    with joined() as ranks:
        return _distill(config, resume, ranks)


def _distill(config: RunConfig, resume: bool, ranks: Ranks) -> Run:
    check_ranks(config, ranks)
    trackers.check(config.track)
    if resume:
        config = run_folder.check_same(config)
    else:
        config = run_folder.resolved(config)
        run_folder.check_new(config)
    precision = ranks.same(choose_precision(choose_device(config.train.device), config.train.precision))
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})
    setup, tasks = prepare(config, ranks), Tasks.open(**config.evaluate.uris())
    check_tasks(setup.student, tasks)
    config, folder = setup.config, Path(config.out)
    marks = {teacher.letter: teacher.fingerprint for teacher in setup.teachers}
    if resume:
        run_folder.check_inputs(folder, setup.fingerprint, marks)
    else:
        findings = preflight(setup, folder)
        console.print(str(findings), markup=False)
        ranks.wait()  # all have seen that the folder was empty
        if ranks.main:
            run_folder.create(config, run_folder.record(config, setup.fingerprint, marks, findings.facts))
    origins = tell_licences(config, quiet=not ranks.main)
    with run_folder.held(folder) if ranks.main else nullcontext():
        state = _start(setup, folder, resume)
        with trackers.logs(config, state.step, ranks.main) as log:
            with _interruptible() as stop:
                _train(setup, log, state, tasks, stop)
            if ranks.main:
                _finish(setup, folder, state, origins)  # before the trackers are closed, which may wait for a network
        ranks.wait()
    return Run(folder, folder / run_folder.STUDENT, setup.plan.steps)


def _start(setup: Setup, folder: Path, resume: bool) -> State:
    """Begin at step zero, or restore the newest whole checkpoint; cut the logs to match."""
    ranks = setup.ranks
    torch.manual_seed(key64(setup.config.seed, ranks.rank) if ranks.rank else setup.config.seed)
    with_ema = setup.config.train.ema is not None
    state = State(ema=_average_of(setup) if with_ema else None)
    path = ranks.same(checkpoint.newest(folder / "checkpoints") if resume and ranks.main else None)
    if path is not None:
        parts = ["student", "graph", *(["ema"] if with_ema else []), *(["pruning"] if setup.pruning else [])]
        state.step, tensors, optimisers, random = checkpoint.load(path, parts, setup.device)
        if ranks.rank < len(random):
            torch.set_rng_state(random[ranks.rank])
        else:  # there were fewer processes
            torch.manual_seed(key64(setup.config.seed, ranks.rank, state.step))
        if setup.pruning is not None and setup.pruning.restore(tensors["pruning"], optimisers["pruning"]):
            setup.fold()
            state.ema = _average_of(setup) if with_ema else None
        setup.student.module.load_state_dict(tensors["student"])
        setup.graph.load_state_dict(tensors["graph"])
        setup.optimiser.load_state_dict(optimisers["student"])
        if state.ema is not None:
            for name, value in tensors["ema"].items():
                state.ema[name].copy_(value)
        console.print(f"resuming after step {state.step} from {path}", markup=False)
    if ranks.main:
        for name in (run_folder.LOG, run_folder.SKIPPED):
            Log(folder / name).cut(state.step)
    ranks.wait()
    state.skipped = {entry["id"]: entry["reason"] for entry in run_folder.read_log(folder / run_folder.SKIPPED)}
    return state


def _train(setup: Setup, log: Logs, state: State, tasks: Tasks, stop: list[bool]) -> None:
    folder, train, plan = Path(setup.config.out), setup.config.train, setup.plan
    log_every = max(1, train.log_every.steps(plan))
    save_every = max(1, train.checkpoint_every.steps(plan))
    every = max(1, config_every.steps(plan)) if (config_every := setup.config.evaluate.every) else 0
    streams = _streams(setup, state.step)
    spent, first = 0.0, state.step  # seconds in steps alone: evaluations and checkpoints are not training
    with progress("training", plan.steps, "steps", done=state.step) as advance:
        while state.step < plan.steps:
            started = time.monotonic()
            losses, norm = _step(setup, state, streams, folder, stop)
            spent += time.monotonic() - started
            state.step += 1
            if setup.pruning is not None and state.step == setup.pruning.at:
                _fold(setup, setup.pruning, state)
            last = state.step == plan.steps
            if setup.ranks.main and (state.step % log_every == 0 or last or state.step == 1):
                rate = (state.step - first) * plan.batch_size / spent
                log.write(_entry(setup, state.step, losses, norm, rate))
            advance(state.step, f"loss {float(losses.total.detach()):.4f}")
            if setup.ranks.main and every and state.step % every == 0:
                log.write({"step": state.step, "metrics": _metrics(setup, state, tasks)})
            if state.step % save_every == 0 or last or state.stopping:
                _save(setup, folder, state)
            if state.stopping and not last:
                raise InterruptedRunError(
                    f"stopped after step {state.step} of {plan.steps}; a checkpoint is in {folder / 'checkpoints'}. "
                    "Go on with the same command and --resume."
                )


def _step(
    setup: Setup, state: State, streams: list[Iterator[Batch]], folder: Path, stop: list[bool]
) -> tuple[Losses, Tensor]:
    """One optimiser step on ``accumulate`` batches; returns the last batch's losses and the gradient norm."""
    train, plan = setup.config.train, setup.plan
    for turn in range(train.accumulate):
        batches = [next(stream) for stream in streams]
        for batch in batches:
            _agree(setup, state, batch, folder, stop)
        losses = setup.all_losses([batch.to(setup.device) for batch in batches], state.step * train.accumulate + turn)
        raise_unless_finite(losses, state.step + 1)
        (losses.total / train.accumulate).backward()  # type: ignore[no-untyped-call]
    setup.ranks.average(setup.optimiser.parameters)
    norm = setup.optimiser.clip(train.clip_norm)
    if not torch.isfinite(norm):
        raise TrainingError(
            f"the gradient is not finite at step {state.step + 1} although the loss is. Nothing was updated. "
            "Try train.precision=float32 or a lower train.lr."
        )
    warmup, decay = train.warmup.steps(plan), train.decay.steps(plan)
    setup.optimiser.step(factor(state.step, plan.steps, warmup, train.schedule, decay))
    if setup.pruning is not None and not setup.pruning.folded:
        setup.ranks.average(setup.pruning.parameters)
        setup.pruning.step(state.step)
    _clamp(setup)
    if state.ema is not None and train.ema is not None:
        _average(state.ema, setup.student.module, min(train.ema, (1 + state.step) / (10 + state.step)))
    return losses, norm


def _fold(setup: Setup, pruning: Pruning, state: State) -> None:
    """Go on with the pruned student; its averaged weights begin anew."""
    before, reached = count(setup.student.module), pruning.sparsity()
    setup.fold()
    state.ema = None if state.ema is None else _copy(setup.student.module)
    masks = ", ".join(f"{tower} {share:.0%}" for tower, share in reached.items())
    console.print(
        f"pruned at step {state.step}: {before / 1e6:.2f}M parameters became "
        f"{count(setup.student.module) / 1e6:.2f}M (the masks had reached: {masks})"
    )


def _metrics(setup: Setup, state: State, tasks: Tasks) -> dict[str, float]:
    """Evaluate the student as it would be saved now, in percent, and go on training."""
    module = setup.student.module
    own = _copy(module) if state.ema is not None else None
    if state.ema is not None:
        module.load_state_dict(state.ema)
    with torch.random.fork_rng(devices=[]):
        (found,) = evaluate({"student": setup.student}, tasks, setup.config.train.workers)
    if own is not None:
        module.load_state_dict(own)
    train_mode(setup.student, setup.config.student.freeze)
    return found.metrics


def _streams(setup: Setup, step: int) -> list[Iterator[Batch]]:
    """The batches still to come: of the paired data, and of each of the unpaired."""
    accumulate, workers = setup.config.train.accumulate, setup.config.train.workers
    start, stop = step * accumulate, setup.plan.steps * accumulate
    parts = [part.stream(start, stop, workers) for part in setup.unpaired]
    walk = setup.ranks.shares(setup.order.walk(start, stop))
    pin = setup.device.type == "cuda"
    return [load(setup.batches, fetch_ahead(walk, setup.source), workers, pin), *parts]


@torch.no_grad()
def _clamp(setup: Setup) -> None:
    """Keep logit scales within [1, 100], as CLIP does after every step; SigLIP's, which has a bias, is free."""
    setup.graph.clamp_()
    if setup.student.log_scale is not None and setup.student.bias is None:
        setup.student.log_scale.clamp_(0, math.log(MAX_SCALE))


def _agree(setup: Setup, state: State, batch: Batch, folder: Path, stop: list[bool]) -> None:
    """Tell the other processes what was read, and whether to stop: all go on, or none."""
    ranks = setup.ranks
    skipped, read, empty, stopping = ranks.added([len(batch.skipped), len(batch.ids), not batch.ids, stop[0]])
    state.stopping = state.stopping or bool(stopping)
    if skipped:
        _note_skipped(setup, state, [entry for found in ranks.everyone(batch.skipped) for entry in found], folder)
    if read < 2 or empty:
        who = "fewer than two samples" if read < 2 else f"no sample in the share of {empty} processes"
        raise DataError(
            f"{who} of the batch at step {state.step + 1} can be read; see "
            f"{folder / run_folder.SKIPPED}. Repair or remove them, or raise train.batch_size."
        )


def _note_skipped(setup: Setup, state: State, skipped: list[tuple[str, str]], folder: Path) -> None:
    """Record samples that could not be read; stop when there are more of them than allowed."""
    for name, reason in skipped:
        if name not in state.skipped:
            state.skipped[name] = reason
            if setup.ranks.main:
                Log(folder / run_folder.SKIPPED).write({"step": state.step, "id": name, "reason": reason})
            console.print(f"skipped {name}: {reason}", markup=False)
    limit = setup.config.train.max_broken
    if len(state.skipped) > limit:
        raise DataError(
            f"{len(state.skipped)} samples of {setup.config.data} cannot be read, train.max_broken allows {limit}; "
            f"they are listed in {folder / run_folder.SKIPPED}. Run 'clipdistill data check {setup.config.data}', "
            "repair or remove them, or raise the limit."
        )


def _entry(setup: Setup, step: int, losses: Losses, norm: Tensor, rate: float) -> dict[str, Any]:
    plan = setup.plan
    warmup, decay = setup.config.train.warmup.steps(plan), setup.config.train.decay.steps(plan)
    share = factor(step - 1, plan.steps, warmup, setup.config.train.schedule, decay)
    entry = {
        "step": step,
        "epoch": round(step / plan.steps_per_epoch, 4),
        "samples": step * plan.batch_size,
        "loss": float(losses.total.detach()),
        "terms": {name: float(value.detach()) for name, value in losses.terms.items()},
        "scale": setup.student.scale,
        "grad_norm": float(norm),
        "lr": setup.config.train.lr * share,
        "samples_per_second": round(rate, 1),
    }
    if setup.pruning is not None and not setup.pruning.folded:
        entry["sparsity"] = setup.pruning.sparsity()
    return entry


def _save(setup: Setup, folder: Path, state: State) -> None:
    tensors = {"student": setup.student.module.state_dict(), "graph": setup.graph.state_dict()}
    if state.ema is not None:
        tensors["ema"] = state.ema
    optimisers: dict[str, Any] = {"student": setup.optimiser.state_dict()}
    if setup.pruning is not None:
        tensors["pruning"], optimisers["pruning"] = setup.pruning.tensors(), setup.pruning.optimisers()
    random = setup.ranks.everyone(torch.get_rng_state())
    if setup.ranks.main:
        keep = setup.config.train.keep_checkpoints
        checkpoint.save(folder / "checkpoints", state.step, tensors, optimisers, random, keep)


def _finish(setup: Setup, folder: Path, state: State, origins: list[Link]) -> None:
    """Write the student, with the averaged weights if there are any."""
    if state.ema is not None:
        setup.student.module.load_state_dict(state.ema)
    setup.student.module.eval()
    config = setup.config
    card = {
        "name": folder.name,
        "teachers": config.teachers,
        "space": space_of(setup.recipe, setup.student.width, setup.teachers, config.teachers),
        "recipe": setup.recipe.to_dict(),
        "data": {"uri": config.data, "unpaired": config.unpaired, "fingerprint": setup.fingerprint},
        "training": {
            "steps": setup.plan.steps,
            "batch_size": setup.plan.batch_size,
            "seed": config.seed,
            "weights inherited": config.student.inherit,
            "tower kept": config.student.keep,
            "pruned by": config.prune and config.prune.sparsity,
        },
        "pretrained": config.student.pretrained,
        **as_card(origins),
    }
    setup.student.save(folder / run_folder.STUDENT, redacted(card))  # it may be published


def _average_of(setup: Setup) -> dict[str, Tensor]:
    """The averaged weights: those of the teacher that is the average, if there is one, else a copy of their own."""
    follower = setup.average
    return _copy(setup.student.module) if follower is None else dict(follower.state_dict())


def _copy(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def _average(ema: dict[str, Tensor], module: torch.nn.Module, keep: float) -> None:
    """Move the averaged weights towards the current ones; counters are copied."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            ema[name].lerp_(value, 1 - keep)
        else:
            ema[name].copy_(value)


@contextmanager
def _interruptible() -> Iterator[list[bool]]:
    """Turn the first Ctrl-C, or a scheduler's SIGTERM, into a wish to stop after the step; the second stops at once."""
    stop = [False]

    def ask(number: int, frame: FrameType | None) -> None:
        if stop[0]:
            raise KeyboardInterrupt
        stop[0] = True
        console.print("stopping after this step; press Ctrl-C again to stop at once")

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may listen to signals
        yield stop
        return
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
