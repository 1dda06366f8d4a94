"""What a run is made of, put together from its configuration: data, teachers, student, graph, optimiser."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clipdistill.algebra.graph import InteractionGraph, Losses
from clipdistill.algebra.nested import NestedGraph
from clipdistill.algebra.nodes import CLASSES, LOGITS, STUDENT, Node
from clipdistill.algebra.recipe import Recipe
from clipdistill.algebra.rows import agreeing
from clipdistill.config import SELF, Plan, RunConfig
from clipdistill.data.batches import Batch, Batches
from clipdistill.data.labels import class_numbers, classes_of
from clipdistill.data.order import Ordering
from clipdistill.data.samples import Source, key64
from clipdistill.data.sources import pairs
from clipdistill.models.device import choose_device, make_autocast
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.masking import masked_images
from clipdistill.teachers.stored import StoredTeacher
from clipdistill.teachers.teacher import LiveTeacher, Retired, Teacher, inlet, text_rows
from clipdistill.training.banks import Banks, make_banks
from clipdistill.training.checks import (
    check_average,
    check_bank,
    check_letters,
    check_micro_batch,
    check_nodes,
    check_stored,
    compared_nodes,
    warn_of_shares,
)
from clipdistill.training.choosing import choose_rows, reference_nodes
from clipdistill.training.opening import make_teachers, open_models, open_student
from clipdistill.training.optimisers import Optimiser
from clipdistill.training.parts import Part, choose_order, open_unpaired
from clipdistill.training.pruning import Pruning
from clipdistill.training.ranks import Ranks
from clipdistill.training.views import choose_views

IMAGE, MASKED, TOLD = Node(STUDENT, "I"), Node(STUDENT, "I", "masked"), Node(STUDENT, "I", LOGITS)


@dataclass
class Setup:
    """Everything a step touches. ``letters`` of teachers and nodes are those of the recipe."""

    config: RunConfig
    recipe: Recipe
    source: Source
    student: DualEncoder
    teachers: list[Teacher]
    graph: InteractionGraph | NestedGraph
    optimiser: Optimiser
    batches: Batches
    order: Ordering
    plan: Plan
    device: torch.device
    autocast: AbstractContextManager[None]
    banks: Banks
    unpaired: list[Part] = field(default_factory=list)
    pruning: Pruning | None = None
    ranks: Ranks = field(default_factory=Ranks)

    def fold(self) -> None:
        """Replace a student under masks by the smaller one that they leave, with a new optimiser."""
        assert self.pruning is not None
        self.student = self.pruning.fold()
        train_mode(self.student, self.config.student.freeze)
        self.optimiser = Optimiser([self.student.module, self.graph], self.config.train)

    @property
    def average(self) -> torch.nn.Module | None:
        """The model that follows the student as its running average, if one of the teachers does."""
        for teacher in self.teachers:
            if self.config.teachers[teacher.letter] == SELF:
                assert isinstance(teacher, LiveTeacher)
                return teacher.encoder.module
        return None

    @property
    def fingerprint(self) -> str:
        """A hash of the data that changes when any part of them does."""
        marks = [self.source.fingerprint, *(part.source.fingerprint for part in self.unpaired)]
        return marks[0] if len(marks) == 1 else f"{key64(*marks):016x}"

    def forget_gradients(self) -> None:
        """Drop the gradients of everything that learns."""
        for parameter in self.optimiser.parameters:
            parameter.grad = None
        if self.pruning is not None:
            self.pruning.forget_gradients()

    def losses(self, batch: Batch, number: int = 0) -> Losses:
        """One forward pass over batch ``number`` of the run: student towers, teachers, banks, graph."""
        positions = [place for places in self.ranks.everyone(batch.positions) for place in places]
        banks, bank_keys = self.banks.rows(batch, number, positions)
        keys = self.banks.keys(batch)
        return self._losses({**self.rows(batch), **banks}, batch, keys, bank_keys=bank_keys)

    def all_losses(self, batches: Sequence[Batch], number: int) -> Losses:
        """The losses of batch ``number`` of the paired data, the first one given, and of each of the unpaired.

        A batch of pictures alone, or of captions alone, adds the terms it affords, at their full weight.
        """
        paired, *others = batches
        if self.config.batches.select:
            paired = self.chosen(paired, number)
        found = self.losses(paired, number)
        for place, batch in enumerate(others, start=1):
            rows = self.rows(batch, self.unpaired[place - 1].nodes)
            more = self._losses(rows, batch, batch.groups, partial=True)
            terms = {f"{name} unpaired {place}": value for name, value in more.terms.items()}
            found = Losses(found.total + more.total, found.terms | terms)
        return found

    def chosen(self, batch: Batch, number: int) -> Batch:
        """The rows of a super-batch to train on, chosen as evaluation sees them: no norm takes note of the others."""
        was_training = [module for module in self.student.module.modules() if module.training]
        self.student.module.eval()
        with torch.no_grad():
            rows = self.rows(batch)
        for module in was_training:
            module.training = True
        keys = self.banks.keys(batch)
        same = agreeing(keys, keys)
        return batch.take(choose_rows(rows, same, self.scales(), self.biases(), self.config, number))

    def rows(self, batch: Batch, wanted: Collection[Node] | None = None) -> dict[str, Tensor]:
        """The embeddings of a batch by node: the student's with gradient, the teachers' without.

        With ``train.micro_batch`` the models see so many samples at once, and the student sees them again for its
        gradient: what lies inside the towers is kept of one part at a time (GradCache, arXiv 2101.06983). The losses
        are those of the whole batch.
        """
        size = self.config.train.micro_batch or len(batch.ids)
        if len(batch.ids) <= size:
            return self.student_rows(batch) | self._teacher_rows(batch, wanted)
        places = range(len(batch.ids))
        parts = [batch.take(places[start : start + size]) for start in range(0, len(places), size)]
        found = [
            checkpoint(self.student_rows, part, use_reentrant=False) | self._teacher_rows(part, wanted)
            for part in parts
        ]
        return {node: torch.cat([rows[node] for rows in found]) for node in found[0]}

    def _teacher_rows(self, batch: Batch, wanted: Collection[Node] | None) -> dict[str, Tensor]:
        return {node: rows for teacher in self.teachers for node, rows in teacher.embed(batch, wanted).items()}

    def scales(self) -> dict[str, float | Tensor]:
        """The logit scales by model letter."""
        scales: dict[str, float | Tensor] = {teacher.letter: teacher.scale for teacher in self.teachers}
        log_scale = self.student.log_scale
        return scales | {STUDENT: self.student.scale if log_scale is None else log_scale.exp()}

    def biases(self) -> dict[str, float | Tensor]:
        """The logit biases of the models that have one, by letter."""
        biases: dict[str, float | Tensor] = {t.letter: t.bias for t in self.teachers if t.bias is not None}
        return biases if self.student.bias is None else biases | {STUDENT: self.student.bias}

    def _losses(self, rows: dict[str, Tensor], batch: Batch, keys: Tensor, **more: Any) -> Losses:
        losses: Losses = self.graph(rows, self.scales(), keys, self.biases(), labels=batch.labels, **more)
        return losses

    def student_rows(self, batch: Batch) -> dict[str, Tensor]:
        """The student's rows of the nodes that the recipe asks for and the batch affords."""
        rows: dict[str, Tensor] = {}
        pixels = batch.pixels.get(STUDENT)
        with self.autocast:
            if pixels is not None and TOLD in self.recipe.nodes:
                rows["SI"], rows[str(TOLD)] = self.student.images_and_logits(pixels)
            elif pixels is not None and IMAGE in self.recipe.nodes:
                rows["SI"] = self.student.images(pixels)
            if pixels is not None and MASKED in self.recipe.nodes:
                rows["SI@masked"] = masked_images(self.student, pixels, self.config.train.mask_ratio)
            rows |= text_rows(STUDENT, self.student, batch)
        return {node: matrix.float() for node, matrix in rows.items()}


def prepare(config: RunConfig, ranks: Ranks = Ranks()) -> Setup:  # noqa: B008 - frozen
    """Load data, teachers and student, and check that they give the recipe what it needs.

    The setup's ``config`` is the run with its views spelled out.

    Raises:
        ClipdistillError: any part cannot be opened or does not fit; nothing has been written.
    """
    recipe = Recipe.load(config.recipe)
    check_letters(recipe, config)
    source = pairs(config.data)
    device = choose_device(config.train.device)
    autocast = make_autocast(device, config.train.precision)
    labels = classes_of(source) if _labelled(recipe) else ()
    opened = open_models(config, device)
    nodes = [*recipe.nodes, *reference_nodes(config)]
    source = check_stored([*nodes, *compared_nodes(config, opened)], source, opened)
    plan = config.train.plan(len(source))
    check_bank(recipe, config, len(source))
    student = open_student(config, source, opened, labels)
    student.module.to(device)
    # A head that was there before has an order, and perhaps a spelling, of its own.
    classes = student.classes if labels and student.classes else labels
    numbers = class_numbers({label: label for label in labels}, classes, source.uri, student.uri)
    teachers = make_teachers(opened, recipe, student, config, autocast, classes, reference_nodes(config))
    train_mode(student, config.student.freeze)
    check_micro_batch(student, config.train.micro_batch)
    check_average(student, config, ranks)
    warn_of_shares(student, config.train.batch_size, ranks)
    stored = {letter: teacher for letter, teacher in teachers.items() if isinstance(teacher, StoredTeacher)}
    config, views = choose_views(config, stored, nodes)
    check_nodes(recipe, source, student, list(teachers.values()))
    order = choose_order(config, source, stored)
    banks = make_banks(config, recipe, source, teachers, classes, numbers, order.walk)
    working = [_still_needed(nodes, teacher) for teacher in teachers.values()]
    graph = _graph(config, recipe, student, working).to(device)
    inlets = {STUDENT: inlet(student, _asked(recipe, STUDENT)), **{t.letter: t.inlet for t in working}}
    return Setup(
        config=config,
        recipe=recipe,
        source=source,
        student=student,
        teachers=working,
        graph=graph,
        optimiser=Optimiser([student.module, graph], config.train),
        batches=Batches(source, inlets, views, config.seed, numbers),
        order=order,
        plan=plan,
        device=device,
        autocast=autocast,
        banks=banks,
        unpaired=[
            open_unpaired(uri, config, recipe, student, working, views, opened, ranks) for uri in config.unpaired
        ],
        pruning=Pruning(student, config.prune, plan) if config.prune else None,
        ranks=ranks,
    )


def train_mode(student: DualEncoder, frozen: str | None) -> None:
    """Set the student to train, but for a frozen tower, which neither learns nor drops out.

    Keeping one tower as it is and training the other is LiT (arXiv 2111.07991).
    """
    student.module.train()
    if frozen is None:
        return
    prefixes = {"image": ("vision", "visual"), "text": ("text",)}[frozen]
    for name, part in student.module.named_children():
        if name.startswith(prefixes):
            part.eval().requires_grad_(False)


def _labelled(recipe: Recipe) -> bool:
    return any(node.view in (CLASSES, LOGITS) for node in recipe.nodes)


def _graph(
    config: RunConfig, recipe: Recipe, student: DualEncoder, teachers: Sequence[Teacher]
) -> InteractionGraph | NestedGraph:
    """The graph over the models' widths, its parameters drawn from the seed."""
    widths = {STUDENT: student.width, **{teacher.letter: teacher.width for teacher in teachers}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        nested = config.student.matryoshka
        return NestedGraph(recipe, widths, nested) if nested else InteractionGraph(recipe, widths)


def _still_needed(nodes: Sequence[Node], teacher: Teacher) -> Teacher:
    """The teacher, or what is left to know of it where only banks were asked of it."""
    asked = [node for node in nodes if node.model == teacher.letter]
    return teacher if any(not node.is_bank for node in asked) or not asked else Retired.of(teacher)


def _asked(recipe: Recipe, letter: str) -> list[Node]:
    """The nodes of model ``letter`` that a recipe asks for."""
    return [node for node in recipe.nodes if node.model == letter]
