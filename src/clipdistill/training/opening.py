"""Opening what a run names: its teachers, live, stored or the student's own average, and its student."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipdistill.algebra.nodes import LOGITS, Node
from clipdistill.algebra.recipe import Recipe
from clipdistill.config import SELF, RunConfig
from clipdistill.data.samples import Source, readable
from clipdistill.data.views import Transform
from clipdistill.errors import ConfigError, DataError, ModelError
from clipdistill.evaluation.evaluate import class_prompts, embed_texts
from clipdistill.evaluation.zeroshot import class_embeddings
from clipdistill.models.encoder import DualEncoder
from clipdistill.models.loading import load, tokenizer_of
from clipdistill.models.presets import StudentSpec
from clipdistill.models.starts import start_at_zero
from clipdistill.models.students import build, choose_tokenizer
from clipdistill.progress import console
from clipdistill.teachers.store import EmbeddingStore
from clipdistill.teachers.stored import Choices, StoredTeacher, is_store, model_behind, open_teacher_store
from clipdistill.teachers.teacher import LiveTeacher, Teacher

#: A tokenizer is trained on at most so many captions.
MAX_VOCABULARY_CAPTIONS = 500_000


@dataclass
class Opened:
    """The teachers of a run as they were opened, by letter: models that can run, and stores."""

    encoders: dict[str, DualEncoder] = field(default_factory=dict)
    stores: dict[str, tuple[EmbeddingStore, Choices]] = field(default_factory=dict)


def open_models(config: RunConfig, device: torch.device) -> Opened:
    """Open every teacher but the student's own average.

    Raises:
        ClipdistillError: one cannot be opened.
    """
    opened = Opened()
    for letter, uri in sorted(config.teachers.items()):
        if uri == SELF:
            continue
        if is_store(uri):
            opened.stores[letter] = open_teacher_store(uri)
        else:
            opened.encoders[letter] = load(uri, device.type)
    return opened


def make_teachers(
    opened: Opened,
    recipe: Recipe,
    student: DualEncoder,
    config: RunConfig,
    autocast: AbstractContextManager[None],
    classes: Sequence[str],
    more: Sequence[Node] = (),
) -> dict[str, Teacher]:
    """Every teacher, ready to embed what the recipe asks of it, and ``more``; ``self`` is a copy of the student."""
    teachers: dict[str, Teacher] = {}
    for letter, uri in sorted(config.teachers.items()):
        asked = sorted({node for node in [*recipe.nodes, *more] if node.model == letter})
        if letter in opened.stores:
            store, choices = opened.stores[letter]
            teachers[letter] = StoredTeacher(letter, store, asked, _device(student), choices)
        else:
            encoder = copy.deepcopy(student) if uri == SELF else opened.encoders[letter]
            by_prompts = Node(letter, "I", LOGITS) in asked and not encoder.classes
            rows = class_rows(encoder, classes) if by_prompts else None
            teachers[letter] = LiveTeacher(letter, encoder, asked, autocast, classes, rows)
    return teachers


def class_rows(encoder: DualEncoder, classes: Sequence[str]) -> Tensor:
    """One unit row for each class, ``[C, D]``: the mean of its prompts, as in zero-shot classification.

    Raises:
        ModelError: the model has no text tower.
    """
    if "T" not in encoder.sides:
        raise ModelError(
            f"{encoder.uri} cannot tell the data's classes apart: it has neither a classifier head nor a text tower. "
            "Choose a classifier or a dual encoder as teacher."
        )
    names, prompts = class_prompts(classes)
    rows = embed_texts(encoder, [prompt for per_class in prompts for prompt in per_class])
    found = class_embeddings(rows, [len(per_class) for per_class in prompts])
    order = [names.index(name) for name in classes]
    return torch.from_numpy(found[order]).to(_device(encoder), torch.float32)


def open_student(config: RunConfig, source: Source, opened: Opened, classes: Sequence[str]) -> DualEncoder:
    """Build the student: its tokenizer, joint width and normalisation are those of the model it inherits from, else
    the first teacher's, where it names none. A student to be pruned is a copy of the first teacher. With
    a teacher, the layers of a new image tower start as the identity.
    """
    spec, first = config.student, next(iter(opened.encoders.values()), None)
    if config.prune and not spec.pretrained:
        return load(_to_prune(config))
    like = load(spec.inherit_from) if spec.inherit_from else first
    offered = _Offered(like.tokenizer, like.width, like.transform) if like else _offered_by_store(opened, spec)
    tokenizer = choose_tokenizer(spec, offered.tokenizer, _captions(source))
    student = build(spec, tokenizer, offered.width, config.seed, offered.transform, like, classes)
    if config.teachers:
        start_at_zero(student.module, spec)
    return student


def _to_prune(config: RunConfig) -> str:
    """The model that a student to be pruned is a copy of: the first teacher's."""
    letter = min(config.teachers)
    model = model_behind(config.teachers[letter])
    if model is None:
        raise ConfigError(
            f"prune starts from a copy of teacher {letter}, but the model that {config.teachers[letter]} was made with "
            "is not here. Name a model as student.pretrained."
        )
    return model


class _Offered(NamedTuple):
    """What a student takes over from a teacher where it names nothing of its own."""

    tokenizer: Any | None = None
    width: int | None = None
    transform: Transform | None = None


def _offered_by_store(opened: Opened, spec: StudentSpec) -> _Offered:
    """The first store's width and transform, and its model's tokenizer, if that can be had."""
    for store, _ in opened.stores.values():
        manifest = store.manifest
        transform = Transform.from_dict(manifest.transform) if manifest.transform else None
        wanted = spec.has_text is not False and spec.tokenizer == "auto" and not spec.pretrained
        return _Offered(_tokenizer_of(manifest.model.uri) if wanted else None, store.width, transform)
    return _Offered()


def _tokenizer_of(uri: str) -> Any | None:
    try:
        return tokenizer_of(uri)
    except ModelError as error:
        console.print(
            f"the tokenizer of the stored teacher's model cannot be had, so one is trained: {error}", markup=False
        )
        return None


def _captions(source: Source) -> Iterator[str]:
    """The captions a tokenizer is trained on."""
    told = 0
    for _, sample in readable(source, range(len(source))):
        for caption in sample.captions:
            yield caption
            told += 1
            if told >= MAX_VOCABULARY_CAPTIONS:
                return
    if not told:
        raise DataError(
            f"{source.uri}: a tokenizer cannot be trained, for there are no captions. Name student.tokenizer."
        )


def _device(encoder: DualEncoder) -> torch.device:
    return next(encoder.module.parameters()).device
