"""Embed data with a model into a store: in shards, by any number of processes, stopped and gone on with at any time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clipdistill.data.samples import Source, gives, name_of
from clipdistill.data.secrets import redacted
from clipdistill.data.sources import pairs
from clipdistill.data.views import Augmentation, Drawn
from clipdistill.data.workers import load as load_items
from clipdistill.errors import ConfigError, DataError, InterruptedRunError, did_you_mean
from clipdistill.models.bundle import versions
from clipdistill.models.device import choose_device, choose_precision, make_autocast
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.licences import chain
from clipdistill.models.loading import load
from clipdistill.progress import Advance, console, progress
from clipdistill.teachers.job import Job, begin, done, look_at
from clipdistill.teachers.manifest import FOLDERS, MANIFEST, Data, Manifest, Model, ViewPlan, read_records
from clipdistill.teachers.rows import Pictures, told, unit_rows
from clipdistill.teachers.shards import write_shard
from clipdistill.teachers.store import EmbeddingStore, finish

#: A shard is at most so many bytes, and at most this share of the data: what a stop can cost.
SHARD_BYTES, SHARD_SHARE, SMALLEST_SHARD = 1 << 26, 1 / 32, 256
DTYPES = ("float16", "float32")
PRECISIONS = ("auto", "float32", "bfloat16")


def embed(
    data: str | Path | Source,
    model: str,
    out: str | Path,
    sides: str | None = None,
    views: int = 0,
    seed: int = 0,
    augmentation: Augmentation = Augmentation(),  # noqa: B008 - frozen
    dtype: str = "float16",
    shard: tuple[int, int] | None = None,
    shard_size: int | None = None,
    workers: int = 1,
    batch_size: int = 64,
    device: str = "auto",
    precision: str = "auto",
    max_broken: int = 100,
) -> EmbeddingStore | None:
    """Embed pictures and captions into the store ``out``, or go on with that; None while other processes have to.

    ``sides`` is ``"IT"``, ``"I"`` or ``"T"``; without it, what the model has and the data give. ``views`` 0 embeds
    whole pictures as the model's own preprocessing gives them, otherwise so many views of each, drawn from ``seed``
    and ``augmentation``. ``shard`` (3, 16) does the third sixteenth of the work; under torchrun that follows from the
    rank. A shard holds ``shard_size`` samples, by default at most 64 MB and a 32nd of the data. Pictures that cannot
    be read are left out, up to ``max_broken``.

    Raises:
        ConfigError: an argument is wrong.
        StoreError: ``out`` holds something else, or was begun with another model, data or settings.
        DataError: too many pictures cannot be read.
        InterruptedRunError: Ctrl-C; the same call goes on.
    """
    part, parts = _part(shard)
    _check(views, augmentation, dtype, precision, batch_size, shard_size)
    begun, source = look_at(Path(out)) or {}, pairs(data) if isinstance(data, (str, Path)) else data
    where = choose_device(_device(device))
    encoder = load(model, str(where))
    kind = _precision(where, precision, begun)
    job = Job(
        folder=Path(out),
        source=source,
        encoder=encoder,
        sides=_sides(sides, encoder, source),
        views=ViewPlan(views, seed, augmentation) if views else ViewPlan(),
        dtype=dtype,
        shard_size=shard_size or begun.get("shard_size") or _shard_size(len(source), encoder.width, dtype, views),
        batch_size=batch_size,
        workers=workers,
        precision=kind,
        autocast=make_autocast(where, kind),
        max_broken=max_broken,
    )
    begin(job)
    try:
        _work(job, range(part - 1, job.shards, parts))
        return _finish(job)
    except KeyboardInterrupt:
        ready, total = done(job)
        raise InterruptedRunError(
            f"stopped: {ready} of {total} shards of {out} are done. Run the same command again to go on."
        ) from None


def _check(
    views: int, augmentation: Augmentation, dtype: str, precision: str, batch_size: int, shard_size: int | None
) -> None:
    for name, value, known in (("dtype", dtype, DTYPES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ConfigError(f"unknown {name} '{value}'.{did_you_mean(value, known)}")
    for name, number, least in (("views", views, 0), ("batch_size", batch_size, 1), ("shard_size", shard_size, 1)):
        if number is not None and number < least:
            raise ConfigError(f"{name} is {number}, expected {least} or more.")
    if not views and augmentation != Augmentation():
        raise ConfigError("an augmentation is given, but whole pictures are embedded. Say how many views: --views 8.")


def _part(shard: tuple[int, int] | None) -> tuple[int, int]:
    """Which part of the work is ours, counted from 1, of how many: as given, else by torchrun's rank."""
    if shard is None:
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
            raise ConfigError(
                f"RANK={rank} of WORLD_SIZE={world} in the environment is no part of the work: unset them."
            )
        return int(rank) + 1, int(world)
    if not 1 <= shard[0] <= shard[1]:
        raise ConfigError(f"shard {shard[0]}/{shard[1]} is no part: expected 1/{shard[1]} to {shard[1]}/{shard[1]}.")
    return shard


def _device(name: str) -> str:
    """Give each of torchrun's processes on a machine a GPU of its own."""
    local = os.environ.get("LOCAL_RANK")
    if name == "auto" and local and torch.cuda.is_available():
        return f"cuda:{int(local) % torch.cuda.device_count()}"
    return name


def _precision(device: torch.device, precision: str, begun: dict[str, Any]) -> str:
    """``auto`` is what the job was begun with, else float32 on a CPU: rows are stored once and used often."""
    if precision == "auto" and "precision" in begun:
        return str(begun["precision"])
    return "float32" if precision == "auto" and device.type == "cpu" else choose_precision(device, precision)


def _sides(sides: str | None, encoder: DualEncoder, source: Source) -> str:
    """The sides to embed, checked against what model and data have; raises ConfigError."""
    given = gives(source)
    both = set(encoder.sides) & set(given)
    if sides is None and given and not both:
        made, there = ("captions", "pictures") if given == "I" else ("pictures", "captions")
        raise ConfigError(
            f"the model {encoder.uri} embeds {made}, the data {source.uri} have {there} alone: "
            "there is nothing to embed."
        )
    wanted = both if sides is None else set(sides)
    if not wanted or not wanted <= set("IT"):
        raise ConfigError(f"sides are {sides!r}, expected 'IT', 'I' or 'T'; model and data have {sorted(both)}.")
    for side in sorted(wanted - both):
        who = f"the model {encoder.uri}" if side not in encoder.sides else f"the data {source.uri}"
        raise ConfigError(f"{FOLDERS[side]} embeddings are asked for, but {who} has no {FOLDERS[side]} side.")
    return "".join(sorted(wanted))


def _shard_size(samples: int, width: int, dtype: str, views: int) -> int:
    most = SHARD_BYTES // (width * np.dtype(dtype).itemsize * max(views, 1))
    return max(1, min(most, max(SMALLEST_SHARD, round(samples * SHARD_SHARE))))


def _work(job: Job, mine: Sequence[int]) -> None:
    """Do those of our shards that are not done yet, and tell how quickly."""
    job.broken += [entry for record in read_records(job.folder, "image").values() for entry in record.skipped]
    started, rows_ = time.monotonic(), 0
    for side, steps in (("I", _pictures), ("T", _captions)):
        if side not in job.sides:
            continue
        ready = read_records(job.folder, FOLDERS[side])
        todo = [number for number in mine if number not in ready]
        counts = [sum(len(job.samples(number)) for number in numbers) for numbers in (mine, todo)]
        unit = "pictures" if side == "I" else "captioned samples"
        label = f"embedding {unit} of {job.source.uri}"
        with progress(label, counts[0], unit, counts[0] - counts[1]) as advance:
            now = counts[0] - counts[1]
            for number, keys, rows, skipped in steps(job, todo, now, advance):
                write_shard(job.folder, FOLDERS[side], number, keys, rows.astype(job.dtype), skipped)
                rows_ += len(rows)
    seconds = max(time.monotonic() - started, 1e-9)
    size = rows_ * job.encoder.width * np.dtype(job.dtype).itemsize
    console.print(
        f"{job.folder}: {rows_:,} rows ({size / 1e6:,.1f} MB) in {seconds:,.1f} s, {rows_ / seconds:,.1f} rows/s",
        markup=False,
    )


Step = tuple[int, list[str], NDArray[np.float32], list[tuple[str, str]]]


def _pictures(job: Job, todo: Sequence[int], now: int, advance: Advance) -> Iterator[Step]:
    """Embed the pictures of every shard: its number, ids, rows, and the pictures left out."""
    assert job.encoder.transform is not None
    plan = job.views
    views = Drawn(plan.augmentation, plan.seed, plan.count) if plan.augmentation else None
    size = max(1, job.batch_size // max(plan.count, 1))
    items = (
        (number, list(job.samples(number)[start : start + size]))
        for number in todo
        for start in range(0, len(job.samples(number)), size)
    )
    looks = load_items(Pictures(job.source, job.encoder.transform, views, plan.count), items, job.workers)
    for number, parts in groupby(looks, key=lambda part: part.number):
        ids: list[str] = []
        rows = [np.empty((0, job.encoder.width), np.float32)]
        skipped: list[tuple[str, str]] = []
        for part in parts:
            if part.ids:
                rows.append(unit_rows(job.encoder, job.encoder.images, part.pixels, part.ids, job.autocast))
            ids += part.ids
            skipped += part.skipped
            _note_broken(job, part.skipped)
            now += len(part.ids) + len(part.skipped)
            advance(now, "")
        yield number, ids, np.concatenate(rows), skipped


def _captions(job: Job, todo: Sequence[int], now: int, advance: Advance) -> Iterator[Step]:
    """Embed every caption of every shard once: its number, captions, rows, and nothing left out."""
    for number in todo:
        captions, skipped = _told(job, number)
        if "I" not in job.sides:  # else the pictures have told of them
            _note_broken(job, skipped)
        rows = [np.empty((0, job.encoder.width), np.float32)]
        for start in range(0, len(captions), job.batch_size):
            batch = captions[start : start + job.batch_size]
            tokens = job.encoder.tokenize(batch)
            rows.append(unit_rows(job.encoder, job.encoder.texts, tokens, batch, job.autocast))
            share = (start + len(batch)) / len(captions)
            advance(now + int(share * len(job.samples(number))), "")
        now += len(job.samples(number))
        yield number, captions, np.concatenate(rows), []


def _told(job: Job, number: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Every caption of a shard once, and the samples whose captions cannot be read, with the reason."""
    captions: dict[str, None] = {}
    skipped = []
    for row in job.samples(number):
        try:
            captions |= dict.fromkeys(told(job.source[row]))
        except DataError as error:
            skipped.append((name_of(job.source, row), str(error)))
    return list(captions), skipped


def _note_broken(job: Job, skipped: Sequence[tuple[str, str]]) -> None:
    """Name the pictures that are left out; raise DataError when there are more of them than allowed."""
    for name, reason in skipped:
        job.broken.append((name, reason))
        if len(job.broken) <= 20:
            console.print(f"skipped {name}: {reason}", markup=False)
    if skipped and len(job.broken) > job.max_broken:
        raise DataError(
            f"{len(job.broken)} pictures of {job.source.uri} cannot be read so far, {job.max_broken} are allowed. "
            f"Run 'clipdistill data check {job.source.uri}', and repair or remove them, or raise --max-broken."
        )


def _finish(job: Job) -> EmbeddingStore | None:
    """Write the manifest once every shard is there, whoever made it."""
    ready, total = done(job)
    if ready < total:
        console.print(f"{job.folder}: {ready} of {total} shards are done; the others are for other processes to do.")
        return None
    if (job.folder / MANIFEST).exists():  # written again, it could name newer packages, which embedded nothing
        return EmbeddingStore.open(job.folder)
    encoder, settings = job.encoder, job.settings
    manifest = Manifest(
        model=Model(**settings["model"]),
        source=Data(**redacted(settings["source"])),
        width=encoder.width,
        scale=encoder.scale,
        bias=None if encoder.bias is None else encoder.bias.item(),
        dtype="float16" if job.dtype == "float16" else "float32",
        transform=encoder.transform.to_dict() if encoder.transform and "I" in job.sides else None,
        views=job.views,
        precision=job.precision,
        packages=dict(versions()),
        licences=tuple(chain([("teacher", settings["model"]["uri"])])),
    )
    return finish(job.folder, manifest)
