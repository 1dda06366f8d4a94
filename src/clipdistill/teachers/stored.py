"""A teacher that was embedded before: its rows come from a store, and no model runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import torch
from torch import Tensor
from torch.nn import functional

from clipdistill.algebra.nodes import Node
from clipdistill.data.batches import Batch, Inlet
from clipdistill.data.samples import Sample
from clipdistill.errors import ConfigError, ModelError, did_you_mean
from clipdistill.models.loading import look_up
from clipdistill.teachers.manifest import MANIFEST
from clipdistill.teachers.store import JOB, EmbeddingStore
from clipdistill.teachers.teacher import TEXT_VIEWS

#: What may follow the question mark of a store, with the values it can have.
CHOICES = {"views": ("any", "mean"), "missing": ("skip",)}


@dataclass(frozen=True)
class Choices:
    """How a run uses a store.

    ``views`` is ``stored``: the student is shown the views that were embedded, each with its row; ``any``: views of the
    run's own; or ``mean``: the same, and a picture's target is the direction of the mean of its unit rows over all
    stored views, from which much of what only one view shows is gone. ``skip_missing`` leaves out samples that have no
    row.
    """

    views: str = "stored"
    skip_missing: bool = False

    @property
    def any_views(self) -> bool:
        """Whether the run draws views of its own."""
        return self.views != "stored"


def open_teacher_store(uri: str) -> tuple[EmbeddingStore, Choices]:
    """Open ``stores/x?views=any&missing=skip``: a store and how to use it.

    Raises:
        ConfigError: a choice is unknown, or the mean is asked for of a store with one row for each picture.
        StoreError: there is no finished store.
    """
    path, mark, query = uri.rpartition("?")
    if not mark or Path(uri).exists():
        return EmbeddingStore.open(uri), Choices()
    given = parse_qsl(query, keep_blank_values=True)
    for key, value in given:
        if key not in CHOICES:
            raise ConfigError(f"{uri}: unknown choice '{key}'.{did_you_mean(key, CHOICES)}")
        if value not in CHOICES[key]:
            expected = " or ".join(map(repr, CHOICES[key]))
            raise ConfigError(f"{uri}: {key} is '{value}', expected {expected}, or leave the choice out.")
    chosen = dict(given)
    store, choices = EmbeddingStore.open(path), Choices(chosen.get("views", "stored"), "missing" in chosen)
    if choices.views == "mean" and store.manifest.views.count < 2:
        raise ConfigError(
            f"{uri}: the store has one row for each picture, and there is nothing to average. Embed several views "
            "(clipdistill embed --views 8), or write views=any."
        )
    return store, choices


def is_store(uri: str) -> bool:
    """Whether a teacher's URI names a folder of stored embeddings, finished or not."""
    folder = Path(uri if Path(uri).exists() else uri.partition("?")[0])
    return any((folder / name).is_file() for name in (MANIFEST, JOB))


def model_behind(uri: str) -> str | None:
    """The model that a teacher's URI names: itself, or of a store the one it was made with; None if that is not here.

    Raises:
        StoreError: there is no finished store.
    """
    if not is_store(uri):
        return uri
    model = open_teacher_store(uri)[0].manifest.model.uri
    if not model:
        return None
    try:
        look_up(model)
    except ModelError:
        return None
    return model


class StoredTeacher:
    """Rows of a store as a :class:`clipdistill.teachers.teacher.Teacher`: pictures by id and view, texts by caption.

    ``asked`` are the nodes a recipe wants of it: only their rows are read. The views a batch was assembled with must
    be those of the store (``store.views``), unless the run says that any will do (``choices``).
    """

    def __init__(
        self,
        letter: str,
        store: EmbeddingStore,
        asked: Sequence[Node],
        device: torch.device,
        choices: Choices = Choices(),
    ) -> None:
        self.letter, self.store, self.device, self.choices = letter, store, device, choices
        self.scale, self.bias, self.width = store.scale, store.bias, store.width
        # A run on any views is another run.
        self.fingerprint = store.fingerprint + (f"?views={choices.views}" if choices.any_views else "")
        #: Whether its texts are found by the sample's id, not by the caption.
        self.by_id = "T" in store.sides and store.manifest.sides["text"].by == "id"
        # Rows found by id are of the one caption that was embedded: nothing tells a synthetic one apart.
        views = ("",) if self.by_id else TEXT_VIEWS
        given = [Node(letter, "I")] if "I" in store.sides else []
        given += [Node(letter, "T", view) for view in views] if "T" in store.sides else []
        self._asked = [node for node in dict.fromkeys(asked) if node in given]
        self.nodes: Sequence[str] = [str(node) for node in given]
        texts = () if self.by_id else tuple(sorted(node.view for node in self._asked if node.side == "T"))
        self.inlet = Inlet(None, None, texts)

    def key(self, side: str, sample: Sample) -> str:
        """What a sample's row is found by: its id, or its first caption."""
        return sample.id if side == "I" or self.by_id else (sample.captions or [""])[0]

    def embed(self, batch: Batch, wanted: Collection[Node] | None = None) -> dict[str, Tensor]:
        """Read the rows the recipe asks for; see :class:`clipdistill.teachers.teacher.Teacher`."""
        asked = [node for node in self._asked if wanted is None or node in wanted]
        return {str(node): self._rows(node, batch) for node in asked}

    def _rows(self, node: Node, batch: Batch) -> Tensor:
        if node.side == "I":
            return self.rows("I", batch.ids, batch.view)
        return self.rows("T", batch.ids if self.by_id else batch.captions[node.view])

    def rows(self, side: str, keys: Sequence[str], view: int = 0) -> Tensor:
        """The rows of ids (or captions), ``float32 [B, D]``; of pictures those of a view, or their mean's direction."""
        if side == "I" and self.choices.views == "mean":
            views = [self._read(side, keys, number) for number in range(self.store.manifest.views.count)]
            return functional.normalize(torch.stack([functional.normalize(rows) for rows in views]).sum(dim=0))
        return self._read(side, keys, view)

    def _read(self, side: str, keys: Sequence[str], view: int) -> Tensor:
        return torch.from_numpy(self.store.rows(side, keys, view)).to(self.device, torch.float32)
