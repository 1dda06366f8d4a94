"""From samples to batches: the order of an epoch, one draw per row, one decode for all models.

Everything about a batch follows from (seed, step): workers and restarts change nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipdistill.data.images import content_hash, decode, fetch, full_size
from clipdistill.data.samples import Sample, Source, caption_key, key64
from clipdistill.data.views import Augmentation, Transform, draw, pick
from clipdistill.errors import DataError

Tokenize = Callable[[Sequence[str]], dict[str, Tensor]]


class Towers(Protocol):
    """What batches need to know of a model: which sides it has, and how it takes pictures and captions."""

    sides: str
    transform: Transform | None

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Inlet:
    """What one model takes in: ``None`` where it has no such tower, or nobody asks for it.

    ``texts`` are the text views it reads: ``""`` the real captions, ``"syn"`` synthetic ones.
    """

    transform: Transform | None
    tokenize: Tokenize | None
    texts: tuple[str, ...] = ("",)

    @classmethod
    def of(cls, model: Towers, sides: str, texts: tuple[str, ...] = ("",)) -> Inlet:
        """The inlet of those ``sides`` (``"IT"``, ``"I"`` or ``"T"``) that are asked for and that the model has."""
        wanted = set(sides) & set(model.sides)
        return cls(model.transform if "I" in wanted else None, model.tokenize if "T" in wanted else None, texts)


@dataclass(frozen=True)
class Batch:
    """``B`` rows ready for every model.

    ``pixels`` maps a model letter to what its image tower takes, ``tokens`` the same for texts: ``"S"`` for the real
    captions, ``"S@syn"`` for synthetic ones. ``groups`` is ``int64 [B, 3]``: keys of the picture's bytes, of the
    caption, and of the sample's group; rows that share one are positives of each other, -1 is no key. ``skipped``
    names the rows that could not be read, with the reason.
    """

    ids: list[str]
    view: int
    pixels: dict[str, dict[str, Tensor]]
    tokens: dict[str, dict[str, Tensor]]
    groups: Tensor
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def to(self, device: torch.device) -> Batch:
        """Move the tensors to ``device``; everything else is shared."""
        return replace(
            self,
            pixels=_moved(self.pixels, device),
            tokens=_moved(self.tokens, device),
            groups=self.groups.to(device),
        )


@dataclass(frozen=True)
class Order:
    """Which samples make up which batch: a new permutation each epoch, the incomplete last batch left out.

    A position in the data is just a batch number, so a checkpoint needs nothing else.
    """

    samples: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.samples < self.batch_size:
            raise DataError(f"a batch of {self.batch_size} does not fit into {self.samples} samples. Lower batch_size.")

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return self.samples // self.batch_size

    def walk(self, start: int, stop: int) -> Iterator[tuple[int, list[int]]]:
        """Yield ``(epoch, sample positions)`` for the batches ``start`` to ``stop - 1``."""
        current, permutation = -1, np.empty(0, np.int64)
        for batch in range(start, stop):
            epoch, place = divmod(batch, self.batches_per_epoch)
            if epoch != current:
                permutation = np.random.Generator(np.random.Philox([self.seed, epoch])).permutation(self.samples)
                current = epoch
            rows = permutation[place * self.batch_size : (place + 1) * self.batch_size]
            yield epoch, rows.tolist()


class Batches(Dataset[Batch]):
    """Assemble batches for one set of models.

    Args:
        source: the samples.
        inlets: what each model takes, by letter.
        augmentation: how views are drawn; None shows every picture whole, as in evaluation.
        seed: of the draws, together with sample id and epoch.
    """

    def __init__(
        self, source: Source, inlets: Mapping[str, Inlet], augmentation: Augmentation | None, seed: int = 0
    ) -> None:
        self.source, self.inlets, self.augmentation, self.seed = source, dict(inlets), augmentation, seed
        self.sees = any(inlet.transform for inlet in inlets.values())
        self.texts = sorted({view for inlet in inlets.values() if inlet.tokenize for view in inlet.texts})

    def __getitem__(self, item: tuple[int, list[int]]) -> Batch:
        return self.assemble(*item)

    def assemble(self, epoch: int, rows: Sequence[int]) -> Batch:
        """Read, draw, transform and tokenise the samples at ``rows``; those that cannot be read are left out."""
        kept: list[tuple[Sample, dict[str, str]]] = []
        keys: list[tuple[int, int, int]] = []
        looks: list[dict[Transform, dict[str, np.ndarray]]] = []
        skipped: list[tuple[str, str]] = []
        for row in rows:
            sample = self.source[row]
            try:
                told = {view: self._caption(sample, epoch, view) for view in self.texts}
                key, look = self._look(sample, epoch)
                looks.append(look)
                keys.append((key, *_keys(sample, told)))
                kept.append((sample, told))
            except DataError as error:
                skipped.append((sample.id, str(error)))
        captions = {view: [told[view] for _, told in kept] for view in self.texts}
        return Batch(
            ids=[sample.id for sample, _ in kept],
            view=epoch,
            pixels=self._pixels(looks) if kept else {},
            tokens=self._tokens(captions) if kept else {},
            groups=torch.tensor(keys, dtype=torch.int64),
            skipped=skipped,
        )

    def _caption(self, sample: Sample, epoch: int, view: str) -> str:
        captions = sample.captions_of(view)
        if not captions:
            raise DataError(f"it has no {'synthetic ' if view == 'syn' else ''}caption")
        return captions[pick(self.seed, sample.id + (f"@{view}" if view else ""), epoch, len(captions))]

    def _look(self, sample: Sample, epoch: int) -> tuple[int, dict[Transform, dict[str, np.ndarray]]]:
        """Read and decode once, draw once, transform once per distinct transform; with a key of the picture's bytes."""
        transforms = {inlet.transform for inlet in self.inlets.values() if inlet.transform}
        if not transforms:
            return -1, {}
        picture = fetch(sample.image)
        if self.augmentation is None:
            image, view = decode(picture), None
        else:
            image = decode(picture, want=_twice(transforms))
            view = draw(self.seed, sample.id, epoch, self.augmentation, full_size(image))
        return key64(content_hash(picture)), {transform: transform(image, view) for transform in transforms}

    def _pixels(self, looks: Sequence[dict[Transform, dict[str, np.ndarray]]]) -> dict[str, dict[str, Tensor]]:
        """Stack per model; models with equal transforms share the tensors."""
        stacked = {
            transform: {key: torch.from_numpy(np.stack([look[transform][key] for look in looks])) for key in arrays}
            for transform, arrays in looks[0].items()
        }
        return {letter: stacked[inlet.transform] for letter, inlet in self.inlets.items() if inlet.transform}

    def _tokens(self, captions: Mapping[str, list[str]]) -> dict[str, dict[str, Tensor]]:
        return {
            f"{letter}@{view}" if view else letter: inlet.tokenize(captions[view])
            for letter, inlet in self.inlets.items()
            if inlet.tokenize
            for view in inlet.texts
        }


def load(batches: Batches, items: Iterable[tuple[int, list[int]]], workers: int) -> Iterator[Batch]:
    """Yield the batches for ``items`` in order, assembled ahead of time by ``workers`` processes (0: in this one)."""
    if workers:
        # A tokenizer that threads cannot be forked; the workers are the parallelism.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = DataLoader(
        batches,
        # Its own generator: drawing a seed from torch's global one would move dropout after a restart.
        generator=torch.Generator(),
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_interrupt,
    )
    yield from loader


def _keys(sample: Sample, told: Mapping[str, str]) -> tuple[int, int]:
    """Keys of the real caption and of the group."""
    words = caption_key(told.get("", ""))
    return key64(words) if "" in told else -1, key64(sample.group) if sample.group is not None else -1


def _moved(inputs: dict[str, dict[str, Tensor]], device: torch.device) -> dict[str, dict[str, Tensor]]:
    return {
        letter: {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        for letter, tensors in inputs.items()
    }


def _ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C to the main process, which finishes its step; workers end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def in_turn(count: int, batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """Yield every position from 0 to ``count - 1`` in order, as evaluation wants them."""
    for start in range(0, count, batch_size):
        yield 0, list(range(start, min(start + batch_size, count)))


def _twice(transforms: Iterable[Transform]) -> tuple[int, int]:
    """The (width, height) a JPEG should at least be decoded at: twice what the largest model sees."""
    sizes = [transform.size for transform in transforms]
    return 2 * max(width for _, width in sizes), 2 * max(height for height, _ in sizes)
