"""What a run is made of, put together from its configuration: data, teachers, student, graph, optimiser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from clipdistill.algebra.graph import InteractionGraph, Losses
from clipdistill.algebra.nodes import STUDENT, Node
from clipdistill.algebra.recipe import Recipe
from clipdistill.config import Plan, RunConfig
from clipdistill.data.batches import Batch, Batches, Order
from clipdistill.data.samples import Source
from clipdistill.data.sources import pairs
from clipdistill.data.views import Augmentation
from clipdistill.errors import ConfigError, RecipeError
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.huggingface import HuggingFaceEncoder, load
from clipdistill.models.masking import masked_images
from clipdistill.models.students import build, choose_tokenizer
from clipdistill.teachers.teacher import LiveTeacher, Teacher, inlet, text_rows
from clipdistill.training.device import choose_device, make_autocast
from clipdistill.training.optimisers import Optimiser
from clipdistill.training.pruning import Pruning

IMAGE, MASKED = Node(STUDENT, "I"), Node(STUDENT, "I", "masked")
#: A tokenizer is trained on at most so many captions.
MAX_VOCABULARY_CAPTIONS = 500_000


@dataclass
class Setup:
    """Everything a step touches. ``letters`` of teachers and nodes are those of the recipe."""

    config: RunConfig
    recipe: Recipe
    source: Source
    student: DualEncoder
    teachers: list[Teacher]
    graph: InteractionGraph
    optimiser: Optimiser
    batches: Batches
    order: Order
    plan: Plan
    device: torch.device
    autocast: AbstractContextManager[None]
    pruning: Pruning | None = None

    def fold(self) -> None:
        """Replace a student under masks by the smaller one that they leave, with a new optimiser."""
        assert self.pruning is not None
        self.student = self.pruning.fold()
        train_mode(self.student, self.config.student.freeze)
        self.optimiser = Optimiser([self.student.module, self.graph], self.config.train)

    def forget_gradients(self) -> None:
        """Drop the gradients of everything that learns."""
        for parameter in self.optimiser.parameters:
            parameter.grad = None
        if self.pruning is not None:
            self.pruning.forget_gradients()

    def losses(self, batch: Batch) -> Losses:
        """One forward pass: student towers, teachers, graph."""
        rows = self._student_rows(batch)
        for teacher in self.teachers:
            rows |= teacher.embed(batch)
        scales: dict[str, float | Tensor] = {teacher.letter: teacher.scale for teacher in self.teachers}
        log_scale, bias = self.student.log_scale, self.student.bias
        scales[STUDENT] = self.student.scale if log_scale is None else log_scale.exp()
        losses: Losses = self.graph(rows, scales, batch.groups, None if bias is None else {STUDENT: bias})
        return losses

    def _student_rows(self, batch: Batch) -> dict[str, Tensor]:
        rows: dict[str, Tensor] = {}
        with self.autocast:
            if IMAGE in self.recipe.nodes:
                rows["SI"] = self.student.images(batch.pixels[STUDENT]).float()
            if MASKED in self.recipe.nodes:
                ratio = self.config.train.mask_ratio
                rows["SI@masked"] = masked_images(self.student, batch.pixels[STUDENT], ratio).float()
            texts = text_rows(STUDENT, self.student, batch)
        return rows | {node: matrix.float() for node, matrix in texts.items()}


def prepare(config: RunConfig) -> Setup:
    """Load data, teachers and student, and check that they give the recipe what it needs.

    Raises:
        ClipdistillError: any part cannot be opened or does not fit; nothing has been written.
    """
    recipe = Recipe.load(config.recipe)
    _check_letters(recipe, config)
    source = pairs(config.data)
    plan = config.train.plan(len(source))
    device = choose_device(config.train.device)
    autocast = make_autocast(device, config.train.precision)
    encoders = {letter: load(uri, device.type) for letter, uri in sorted(config.teachers.items())}
    teachers = [LiveTeacher(letter, model, _asked(recipe, letter), autocast) for letter, model in encoders.items()]
    student = _student(config, source, next(iter(encoders.values()), None))
    student.module.to(device)
    train_mode(student, config.student.freeze)
    _check_nodes(recipe, source, student, teachers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        graph = InteractionGraph(recipe, {STUDENT: student.width, **{t.letter: t.width for t in teachers}}).to(device)
    inlets = {STUDENT: inlet(student, _asked(recipe, STUDENT)), **{t.letter: t.inlet for t in teachers}}
    return Setup(
        config=config,
        recipe=recipe,
        source=source,
        student=student,
        teachers=list(teachers),
        graph=graph,
        optimiser=Optimiser([student.module, graph], config.train),
        batches=Batches(source, inlets, Augmentation(**config.augment.model_dump()), config.seed),
        order=Order(len(source), config.train.batch_size, config.seed),
        plan=plan,
        device=device,
        autocast=autocast,
        pruning=Pruning(student, config.prune, plan) if config.prune else None,
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


def _check_letters(recipe: Recipe, config: RunConfig) -> None:
    """Refuse missing and idle teachers before anything is loaded."""
    for node in recipe.nodes:
        if not node.is_student and node.model not in config.teachers:
            raise RecipeError(
                f"recipe {recipe.name}, term {recipe.providers(node)} needs node {node}, but no teacher "
                f"'{node.model}' is given. Add teachers.{node.model}=MODEL, or choose another recipe."
            )
    for letter in recipe.teachers:
        if letter not in config.teachers:
            raise RecipeError(
                f"recipe {recipe.name} uses the logit scale of teacher '{letter}', which is not given. "
                f"Add teachers.{letter}=MODEL, or write the scale as a number."
            )
    for letter in config.teachers:
        if letter not in recipe.teachers:
            raise ConfigError(
                f"teachers.{letter} is given, but recipe {recipe.name} uses "
                f"{'only ' + ', '.join(recipe.teachers) if recipe.teachers else 'no teacher'}. "
                "Remove it, or choose a recipe that uses it."
            )


def _check_nodes(recipe: Recipe, source: Source, student: DualEncoder, teachers: list[LiveTeacher]) -> None:
    given = {f"{STUDENT}{side}" for side in student.sides} | {node for t in teachers for node in t.nodes}
    given |= {str(MASKED)} if "I" in student.sides else set()
    if "T" in student.sides:
        views = {view for index in range(min(len(source), 100)) for view in source[index].texts}
        given |= {f"{STUDENT}T@{view}" for view in views if view}
    for node in recipe.nodes:
        if str(node) not in given:
            raise RecipeError(
                f"recipe {recipe.name}, term {recipe.providers(node)} needs node {node}, which nobody provides "
                f"(provided: {', '.join(sorted(given))}). Drop the term, or provide the node."
            )


def _asked(recipe: Recipe, letter: str) -> list[Node]:
    """The nodes of model ``letter`` that a recipe asks for."""
    return [node for node in recipe.nodes if node.model == letter]


def _student(config: RunConfig, source: Source, first_teacher: HuggingFaceEncoder | None) -> HuggingFaceEncoder:
    """Build the student: its tokenizer, joint width and normalisation are those of the model it inherits from, else
    the first teacher's, where it names none. A student to be pruned is a copy of the first teacher.
    """
    spec = config.student
    if config.prune and first_teacher and not spec.pretrained:
        return load(first_teacher.uri)
    like = load(spec.inherit_from) if spec.inherit_from else first_teacher
    tokenizer = choose_tokenizer(spec, like and like.tokenizer, _captions(source))
    width, transform = (like.width, like.transform) if like else (None, None)
    return build(spec, tokenizer, width, config.seed, transform, like)


def _captions(source: Source) -> Iterator[str]:
    told = 0
    for index in range(len(source)):
        for caption in source[index].captions:
            yield caption
            told += 1
            if told >= MAX_VOCABULARY_CAPTIONS:
                return
