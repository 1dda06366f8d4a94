"""Which samples make up which batch: the order of the paired data, and unpaired data beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from clipdistill.algebra.nodes import STUDENT, Node
from clipdistill.algebra.recipe import Recipe
from clipdistill.algebra.term import Term
from clipdistill.config import RunConfig
from clipdistill.data.batches import Batch, Batches, Inlet
from clipdistill.data.block_order import fetch_ahead
from clipdistill.data.mix_order import random_order
from clipdistill.data.order import NeighbourOrder, Ordering
from clipdistill.data.samples import Source, gives, readable
from clipdistill.data.sources import pairs
from clipdistill.data.sources.mix import Mixed
from clipdistill.data.views import Views
from clipdistill.data.workers import load
from clipdistill.errors import ConfigError, DataError
from clipdistill.models.encoder import DualEncoder
from clipdistill.teachers.neighbours import nearest
from clipdistill.teachers.stored import StoredTeacher
from clipdistill.teachers.teacher import Teacher, inlet
from clipdistill.training.banks import stored_rows
from clipdistill.training.checks import check_stored
from clipdistill.training.opening import Opened
from clipdistill.training.ranks import Ranks

SIDES = {"I": "pictures", "T": "captions"}


@dataclass(frozen=True)
class Part:
    """Unpaired data: a source that has one side only, read beside the paired data, a batch of it in every step.

    ``nodes`` are those that the terms it affords read.
    """

    source: Source
    nodes: frozenset[Node]
    batches: Batches
    order: Ordering
    ranks: Ranks

    def stream(self, start: int, stop: int, workers: int) -> Iterator[Batch]:
        """Yield its batches number ``start`` to ``stop - 1``."""
        return load(self.batches, fetch_ahead(self.ranks.shares(self.order.walk(start, stop)), self.source), workers)

    def first(self, device: torch.device) -> Batch:
        """Its first batch; raises DataError if fewer than two of its samples can be read."""
        batch = next(self.stream(0, 1, 0)).to(device)
        if self.ranks.added([len(batch.ids)])[0] < 2 or not batch.ids:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in batch.skipped[:3])
            raise DataError(f"of the first samples of {self.source.uri}, fewer than 2 can be read ({reasons}).")
        return batch


def choose_order(config: RunConfig, source: Source, stored: Mapping[str, StoredTeacher]) -> Ordering:
    """The order of the paired data: random, by weight where it is a mix, or in groups of neighbours in a stored
    teacher's space.

    With ``batches.select`` a batch is what is chosen from: ``batches.super_batch`` times as many rows.

    Raises:
        ConfigError: neighbours are asked for, and no teacher is stored, or the data are a mix.
        DataError: the data do not fill a batch.
    """
    rows = config.train.batch_size * (config.batches.super_batch if config.batches.select else 1)
    _check_fill(source, rows, config)
    group = config.batches.neighbours
    if group == 1:
        return random_order(source, rows, config.seed)
    if isinstance(source, Mixed):
        raise ConfigError(
            f"batches.neighbours={group} groups samples by what they show, and the mix {config.data} draws them by "
            "weight. Drop one of the two."
        )
    teacher = next(iter(stored.values()), None)
    if teacher is None:
        raise ConfigError(
            f"batches.neighbours={group} needs stored embeddings of the data: make them with clipdistill embed, and "
            "give teachers.T=STORE."
        )
    rows_of_all = stored_rows(teacher, source, teacher.store.sides[0])
    near, _ = nearest(rows_of_all, min(max(2 * group, 16), len(source) - 1))
    return NeighbourOrder(near, rows, config.seed, group)


def _check_fill(source: Source, rows: int, config: RunConfig) -> None:
    """Raise :class:`DataError` for data that do not fill a batch, or what it is chosen from."""
    if len(source) >= rows:
        return
    size = f"train.batch_size={config.train.batch_size}"
    made, lower = size, "Lower it"
    if rows > config.train.batch_size:
        made = f"{size} x batches.super_batch={config.batches.super_batch}"
        lower = "Lower batches.super_batch or train.batch_size"
    raise DataError(f"{source.uri}: a batch of {rows} ({made}) does not fit into {len(source)} samples. {lower}.")


def open_unpaired(
    uri: str,
    config: RunConfig,
    recipe: Recipe,
    student: DualEncoder,
    teachers: Sequence[Teacher],
    views_of_run: Views | None,
    opened: Opened,
    ranks: Ranks,
) -> Part:
    """Open a source of pictures alone or captions alone.

    Raises:
        ConfigError: it has both sides, or no term of the recipe can be computed from the side it has.
    """
    source = pairs(uri)
    sides = gives(source)
    if len(sides) != 1:
        raise ConfigError(
            f"unpaired data {uri} have pictures and captions. Name them as data, or open the pictures alone as "
            f"{uri}?caption=none."
        )
    views = {view for _, sample in readable(source, range(min(len(source), 100))) for view in sample.texts}
    terms = [term for term in recipe.terms if _affords(term, sides, views)]
    if not terms:
        raise ConfigError(
            f"unpaired data {uri} have {SIDES[sides]} only, and every term of recipe {recipe.name} needs more. Add one "
            f"that does not, such as {{feature: 'S{sides}>T{sides}'}}, or drop these data."
        )
    nodes = frozenset(node for term in terms for node in term.nodes)
    source = check_stored(list(nodes), source, opened)
    inlets = {STUDENT: inlet(student, [node for node in nodes if node.model == STUDENT])}
    for teacher in teachers:
        texts = tuple(sorted(node.view for node in nodes if node.model == teacher.letter and node.side == "T"))
        mine = teacher.inlet
        inlets[teacher.letter] = Inlet(mine.transform, None) if sides == "I" else Inlet(None, mine.tokenize, texts)
    batches = Batches(source, inlets, views_of_run, config.seed)
    _check_fill(source, config.train.batch_size, config)
    return Part(source, nodes, batches, random_order(source, config.train.batch_size, config.seed), ranks)


def _affords(term: Term, side: str, views: set[str]) -> bool:
    """Whether data of one side, without labels, give all that a term reads."""
    if term.verb == "classify" and not term.like:
        return False
    texts = {node.view for node in term.nodes if node.side == "T"}
    return all(node.side == side and not node.is_bank for node in term.nodes) and texts <= views
