"""Nodes that hold no rows of the batch: ``@bank``, stored rows as more candidates, and ``@classes``, one row per class.

Legend: ``N`` rows of a bank, ``C`` classes, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clipdistill.algebra.nodes import CLASSES, Node
from clipdistill.algebra.recipe import Recipe
from clipdistill.config import RunConfig
from clipdistill.data.batches import Batch, Batches, Inlet
from clipdistill.data.samples import Source, caption_key, key64, readable
from clipdistill.data.workers import load
from clipdistill.errors import ConfigError, RecipeError
from clipdistill.progress import progress
from clipdistill.teachers.bank import Bank, Walk, centroids
from clipdistill.teachers.neighbours import duplicates, nearest
from clipdistill.teachers.stored import StoredTeacher
from clipdistill.teachers.teacher import LiveTeacher, Teacher
from clipdistill.training.opening import class_rows

_CHUNK = 256


@dataclass(frozen=True)
class Banks:
    """What a step needs beside its batch: ``fixed`` rows by node, and those that ``bank`` picks for each batch."""

    fixed: dict[str, Tensor]
    stored: dict[Node, StoredTeacher]
    bank: Bank | None
    source: Source
    duplicates: NDArray[np.int64] | None = None

    def keys(self, batch: Batch) -> Tensor:
        """The batch's group keys, with one more column where pictures that are near each other count as the same."""
        if self.duplicates is None:
            return batch.groups
        groups = torch.from_numpy(self.duplicates[batch.positions]).to(batch.groups.device)
        return torch.cat([batch.groups, groups[:, None]], dim=1)

    def rows(
        self, batch: Batch, number: int, positions: Sequence[int] | None = None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The rows of every bank for batch ``number`` of the run, and the keys of those of ``@bank``, ``[N, K]``.

        ``positions`` are those of the whole batch, where ``batch`` is one process's share of it.
        """
        if self.bank is None:
            return self.fixed, None
        places = self.bank.pick(number, batch.positions if positions is None else positions)
        told = dict(readable(self.source, places.tolist()))
        if any(node.side == "T" for node in self.stored):  # a picture without a caption has no text row
            told = {place: sample for place, sample in told.items() if sample.captions}
        places, samples = np.array(list(told), np.int64), list(told.values())
        rows = dict(self.fixed)
        for node, teacher in self.stored.items():
            keys = [teacher.key(node.side, sample) for sample in samples]
            rows[str(node)] = teacher.rows(node.side, keys, batch.view)
        # As in a batch: no key for the picture's bytes, which nobody reads, one for the caption, one for the group.
        keys64 = [
            (-1, key64(caption_key(sample.captions[0])) if sample.captions else -1, _group(sample.group))
            for sample in samples
        ]
        found = torch.tensor(keys64)
        if self.duplicates is not None:
            found = torch.cat([found, torch.from_numpy(self.duplicates[places])[:, None]], dim=1)
        return rows, found.to(batch.groups.device)


def _group(group: str | None) -> int:
    return -1 if group is None else key64(group)


def make_banks(
    config: RunConfig,
    recipe: Recipe,
    source: Source,
    teachers: Mapping[str, Teacher],
    classes: Sequence[str],
    numbers: Mapping[str, int],
    walk: Walk,
) -> Banks:
    """Prepare every bank a recipe asks for.

    Raises:
        RecipeError: ``@bank`` or ``@classes`` is asked of the student.
    """
    fixed: dict[str, Tensor] = {}
    stored: dict[Node, StoredTeacher] = {}
    for node in recipe.nodes:
        if not node.is_bank:
            continue
        if node.is_student:
            raise RecipeError(f"recipe {recipe.name}: {node} is no bank: only a teacher's rows can be stored.")
        teacher = teachers[node.model]
        if node.view == CLASSES:
            fixed[str(node)] = _class_rows(node, teacher, source, classes, numbers, config)
        else:
            assert isinstance(teacher, StoredTeacher)  # see checks.check_bank
            stored[node] = teacher
    bank = _bank(config, source, stored, walk) if stored else None
    return Banks(fixed, stored, bank, source, _duplicates(config, source, teachers, bool(stored)))


def _duplicates(
    config: RunConfig, source: Source, teachers: Mapping[str, Teacher], mined: bool
) -> NDArray[np.int64] | None:
    """Group numbers of pictures that are the same to the first stored teacher of pictures.

    Asked for, these are pictures nearer than a threshold; a bank needs to know at least those with equal rows, since
    the nearest of all are a picture's own copies.
    """
    threshold = config.batches.duplicates
    if threshold is None and not mined:
        return None
    for teacher in teachers.values():
        if isinstance(teacher, StoredTeacher) and "I" in teacher.store.sides:
            rows = stored_rows(teacher, source, "I")
            return _equal(rows) if threshold is None else duplicates(rows, threshold)
    if threshold is None:
        return None
    raise ConfigError(
        "batches.duplicates compares stored embeddings of the pictures: make them with clipdistill embed, and give "
        "teachers.T=STORE."
    )


def _equal(rows: NDArray[np.floating]) -> NDArray[np.int64]:
    """Group numbers of rows that are equal to the bit, -1 for those that are alone."""
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, groups, counts = np.unique(whole, return_inverse=True, return_counts=True)
    return np.where(counts[groups] > 1, groups, -1)


def _bank(config: RunConfig, source: Source, stored: Mapping[Node, StoredTeacher], walk: Walk) -> Bank:
    """The bank of a run; near is what is near in the pictures' rows of the first stored teacher that has them."""
    draw, neighbours = config.bank.draw, None
    if draw == "mined":
        node = next((node for node in stored if node.side == "I"), next(iter(stored)))
        rows = stored_rows(stored[node], source, node.side)
        neighbours, _ = nearest(rows, min(config.bank.neighbours, len(source) - 1))
    return Bank(config.bank.size, draw, neighbours, len(source), config.seed, walk)


def stored_rows(teacher: StoredTeacher, source: Source, side: str) -> NDArray[np.floating]:
    """A teacher's stored rows of every sample, ``[samples, D]``; of a text its first caption's.

    A sample that has nothing on that side, which training leaves out, has zeros: it is near to nothing.

    Raises:
        StoreError: samples have no row.
    """
    blocks = []
    for start in range(0, len(source), 65536):
        stop = min(start + 65536, len(source))
        told = {place: one for place, one in readable(source, range(start, stop)) if side == "I" or one.captions}
        rows = teacher.store.rows(side, [teacher.key(side, sample) for sample in told.values()])
        blocks.append(np.zeros((stop - start, rows.shape[1]), rows.dtype))
        blocks[-1][[place - start for place in told]] = rows
    return np.concatenate(blocks)


def _class_rows(
    node: Node,
    teacher: Teacher,
    source: Source,
    classes: Sequence[str],
    numbers: Mapping[str, int],
    config: RunConfig,
) -> Tensor:
    """One row for each class: of pictures the centroid of the first ``per_class``, of texts the prompts' mean.

    CLIP-Embed-KD's code averages rows of any length; here they are unit rows, as stores hold them.
    """
    if node.side == "T":
        if not isinstance(teacher, LiveTeacher):
            raise RecipeError(f"{node} is made from prompts for the classes: give teacher {node.model} as a model.")
        return class_rows(teacher.encoder, classes)
    chosen = _first_of_each(source, numbers, config.bank.per_class)
    labels = np.array([numbers[str(source[place].label)] for place in chosen])
    if isinstance(teacher, StoredTeacher):
        rows = teacher.store.rows("I", [source[place].id for place in chosen]).astype(np.float32)
        device = teacher.device
    else:
        assert isinstance(teacher, LiveTeacher)
        rows, kept = _embed(teacher, source, chosen, config.train.workers)
        labels = labels[np.isin(chosen, kept)]
        device = next(teacher.encoder.module.parameters()).device
    found = centroids(rows, labels, config.bank.per_class, classes)
    return torch.from_numpy(found).to(device, torch.float32)


def _first_of_each(source: Source, numbers: Mapping[str, int], per_class: int) -> list[int]:
    """The places of the first ``per_class`` samples of every class, in order."""
    counts = dict.fromkeys(numbers, 0)
    chosen = []
    for place, sample in readable(source, range(len(source))):
        label = sample.label
        if label in counts and counts[label] < per_class:
            counts[label] += 1
            chosen.append(place)
    return chosen


def _embed(
    teacher: LiveTeacher, source: Source, places: list[int], workers: int
) -> tuple[NDArray[np.float32], list[int]]:
    """Run a teacher once over whole pictures; returns unit rows, and the places of those that could be read."""
    encoder = teacher.encoder
    batches = Batches(source, {teacher.letter: Inlet.of(encoder, "I")}, None)
    walk = ((0, places[start : start + _CHUNK]) for start in range(0, len(places), _CHUNK))
    rows, kept = [], []
    device = next(encoder.module.parameters()).device
    with progress(f"embedding the classes with teacher {teacher.letter}", len(places), "pictures") as advance:
        for batch in load(batches, walk, workers):
            if batch.ids:
                pixels = batch.to(device).pixels[teacher.letter]
                with torch.no_grad(), teacher.autocast:
                    rows.append(F.normalize(encoder.images(pixels).float(), dim=1).cpu().numpy())
            kept += batch.positions
            advance(len(kept), "")
    return np.concatenate(rows), kept
