"""From samples to batches: one draw per row, one decode for all models.

Everything about a batch follows from (seed, step): workers and restarts change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from clipdistill.data.images import content_hash, decode, fetch, full_size
from clipdistill.data.samples import Picture, Sample, Source, caption_key, key64, name_of
from clipdistill.data.views import Transform, View, Views, pick
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

    ``texts`` are the text views it reads: ``""`` the real captions, ``"syn"`` synthetic ones. Without ``tokenize``
    it needs to know the captions alone, as stored embeddings do.
    """

    transform: Transform | None
    tokenize: Tokenize | None
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Towers, sides: str, texts: tuple[str, ...] = ("",)) -> Inlet:
        """The inlet of those ``sides`` (``"IT"``, ``"I"`` or ``"T"``) that are asked for and that the model has."""
        wanted = set(sides) & set(model.sides)
        transform, tokenize = model.transform if "I" in wanted else None, model.tokenize if "T" in wanted else None
        return cls(transform, tokenize, texts if "T" in wanted else ())


@dataclass(frozen=True)
class Batch:
    """``B`` rows ready for every model.

    ``pixels`` maps a model letter to what its image tower takes, ``tokens`` the same for texts: ``"S"`` for the real
    captions, ``"S@syn"`` for synthetic ones. ``groups`` is ``int64 [B, 3]``: keys of the picture's bytes, of the
    caption, and of the sample's group; rows that share one are positives of each other, -1 is no key. ``skipped``
    names the rows that could not be read, with the reason. ``captions`` are the captions drawn, by text view,
    ``positions`` the rows' places in the source, ``labels`` their class numbers, ``int64 [B]``, where they were asked
    for.
    """

    ids: list[str]
    view: int
    pixels: dict[str, dict[str, Tensor]]
    tokens: dict[str, dict[str, Tensor]]
    groups: Tensor
    skipped: list[tuple[str, str]] = field(default_factory=list)
    captions: dict[str, list[str]] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)
    labels: Tensor | None = None

    def take(self, rows: Sequence[int]) -> Batch:
        """The batch of some of its rows, in the order given."""
        places = torch.as_tensor(rows, dtype=torch.int64)

        def chosen(tensor: Tensor) -> Tensor:
            return tensor[places.to(tensor.device)]

        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            pixels=_each(self.pixels, chosen),
            tokens=_each(self.tokens, chosen),
            groups=chosen(self.groups),
            captions={view: [told[row] for row in rows] for view, told in self.captions.items()},
            positions=[self.positions[row] for row in rows],
            labels=None if self.labels is None else chosen(self.labels),
        )

    def pin_memory(self) -> Batch:
        """The same in memory that a GPU can copy from by itself; torch's loader asks for it."""
        return replace(
            self,
            pixels=_each(self.pixels, torch.Tensor.pin_memory),
            tokens=_each(self.tokens, torch.Tensor.pin_memory),
            groups=self.groups.pin_memory(),
        )

    def to(self, device: torch.device) -> Batch:
        """Move the tensors to ``device``; everything else is shared."""
        return replace(
            self,
            pixels=_each(self.pixels, lambda tensor: tensor.to(device, non_blocking=True)),
            tokens=_each(self.tokens, lambda tensor: tensor.to(device, non_blocking=True)),
            groups=self.groups.to(device),
            labels=None if self.labels is None else self.labels.to(device),
        )


class _Row(NamedTuple):
    """One sample as read: its place, the captions drawn, its class number, keys and transformed looks."""

    position: int
    sample: Sample
    told: dict[str, str]
    label: int
    keys: tuple[int, int, int]
    look: dict[Transform, dict[str, np.ndarray]]


class Batches(Dataset[Batch]):
    """Assemble batches for one set of models.

    Args:
        source: the samples.
        inlets: what each model takes, by letter.
        views: what each epoch shows of a picture; None shows every picture whole, as in evaluation.
        seed: of the choice of captions, together with sample id and epoch.
        numbers: the class number of each label; without any, labels are not read.
    """

    def __init__(
        self,
        source: Source,
        inlets: Mapping[str, Inlet],
        views: Views | None,
        seed: int = 0,
        numbers: Mapping[str, int] | None = None,
    ) -> None:
        self.source, self.inlets, self.views, self.seed = source, dict(inlets), views, seed
        self.numbers = dict(numbers or {})
        self.sees = any(inlet.transform for inlet in inlets.values())
        self.texts = sorted({view for inlet in inlets.values() for view in inlet.texts})

    def __getitem__(self, item: tuple[int, list[int]]) -> Batch:
        return self.assemble(*item)

    def assemble(self, epoch: int, rows: Sequence[int]) -> Batch:
        """Read, draw, transform and tokenise the samples at ``rows``; those that cannot be read are left out."""
        kept: list[_Row] = []
        skipped: list[tuple[str, str]] = []
        for position in rows:
            try:
                kept.append(self._read(position, self.source[position], epoch))
            except DataError as error:
                skipped.append((name_of(self.source, position), str(error)))
        captions = {view: [row.told[view] for row in kept] for view in self.texts}
        return Batch(
            ids=[row.sample.id for row in kept],
            view=epoch,
            pixels=self._pixels([row.look for row in kept]) if kept else {},
            tokens=self._tokens(captions) if kept else {},
            groups=torch.tensor([row.keys for row in kept], dtype=torch.int64),
            skipped=skipped,
            captions=captions,
            positions=[row.position for row in kept],
            labels=torch.tensor([row.label for row in kept], dtype=torch.int64) if self.numbers else None,
        )

    def _read(self, position: int, sample: Sample, epoch: int) -> _Row:
        told = {view: self._caption(sample, epoch, view) for view in self.texts}
        label = self._label(sample)
        key, look = self._look(sample, epoch)
        return _Row(position, sample, told, label, (key, *_keys(sample, told)), look)

    def _label(self, sample: Sample) -> int:
        """The class number; -1 where nobody asks for it."""
        if not self.numbers:
            return -1
        if sample.label is None or sample.label not in self.numbers:
            raise DataError("it has no label" if sample.label is None else f"its label '{sample.label}' is no class")
        return self.numbers[sample.label]

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
        picture = fetch(sample.picture)
        image, view = self._view(sample.id, picture, epoch, twice(transforms))
        return key64(content_hash(picture)), {transform: transform(image, view) for transform in transforms}

    def _view(self, name: str, picture: Picture, epoch: int, want: tuple[int, int]) -> tuple[Image.Image, View | None]:
        """Decode a picture for the view that is due: at full size where it is shown whole, as evaluation sees it."""
        if self.views is None:
            return decode(picture), None
        image = decode(picture, want)
        view = self.views.view(name, epoch, full_size(image))
        return (decode(picture), None) if view is None else (image, view)

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


def _keys(sample: Sample, told: Mapping[str, str]) -> tuple[int, int]:
    """Keys of the real caption and of the group."""
    words = caption_key(told.get("", ""))
    return key64(words) if "" in told else -1, key64(sample.group) if sample.group is not None else -1


def _each(inputs: dict[str, dict[str, Tensor]], change: Callable[[Tensor], Tensor]) -> dict[str, dict[str, Tensor]]:
    return {letter: {name: change(value) for name, value in tensors.items()} for letter, tensors in inputs.items()}


def in_turn(count: int, batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """Yield every position from 0 to ``count - 1`` in order, as evaluation wants them."""
    for start in range(0, count, batch_size):
        yield 0, list(range(start, min(start + batch_size, count)))


def twice(transforms: Iterable[Transform]) -> tuple[int, int]:
    """The (width, height) a JPEG should at least be decoded at: twice what the largest model sees."""
    sizes = [transform.size for transform in transforms]
    return 2 * max(width for _, width in sizes), 2 * max(height for height, _ in sizes)
