"""What a recipe needs against what a run gives, before anything is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch.nn.modules.batchnorm import _BatchNorm

from clipdistill.algebra.nodes import BANK, LOGITS, STUDENT, Node
from clipdistill.algebra.recipe import Recipe
from clipdistill.config import SELF, RunConfig
from clipdistill.data.labels import class_numbers, labels_of
from clipdistill.data.samples import Source, readable
from clipdistill.data.sources.listed import Kept
from clipdistill.data.sources.mix import Mixed
from clipdistill.errors import ConfigError, RecipeError, StoreError
from clipdistill.evaluation.evaluate import Tasks
from clipdistill.models.encoder import DualEncoder
from clipdistill.progress import console
from clipdistill.teachers.manifest import read_records
from clipdistill.teachers.store import EmbeddingStore
from clipdistill.teachers.stored import is_store
from clipdistill.teachers.teacher import Teacher
from clipdistill.training.opening import Opened
from clipdistill.training.ranks import Ranks


def check_ranks(config: RunConfig, ranks: Ranks) -> None:
    """Refuse what several processes cannot do together.

    Raises:
        ConfigError: a batch has fewer rows than there are processes, or its rows are chosen by comparing all of them.
    """
    if ranks.world == 1:
        return
    if config.train.batch_size < ranks.world:
        raise ConfigError(
            f"train.batch_size={config.train.batch_size} is the whole batch, and {ranks.world} processes are to share "
            "it. Raise it, or start fewer."
        )
    if config.batches.select:
        raise ConfigError(
            f"batches.select={config.batches.select} compares all rows of a super-batch, which {ranks.world} processes "
            "have in parts. Start it in one process, without torchrun or accelerate launch (train.micro_batch makes "
            "room for a large batch there), or drop batches.select."
        )


def check_tasks(student: DualEncoder, tasks: Tasks) -> None:
    """Refuse evaluation data that the student cannot be tried on, before it is trained.

    Raises:
        ConfigError: no task is left for a student without a text tower.
        DataError: labels are not among a classifier's classes.
    """
    if tasks == Tasks() or "T" in student.sides:
        return
    if not (tasks.image_retrieval or (tasks.zeroshot and student.classes)):
        raise ConfigError(
            f"the student {student.uri} has no text tower, so evaluate.retrieval and zero-shot classification cannot "
            "be measured. Give labelled data as evaluate.image_retrieval, or, for a classifier, as evaluate.zeroshot."
        )
    if tasks.zeroshot and student.classes:
        class_numbers(labels_of(tasks.zeroshot), student.classes, tasks.zeroshot.uri, student.uri)


def check_bank(recipe: Recipe, config: RunConfig, samples: int) -> None:
    """Refuse stored candidates where a teacher is not stored, or where there are too few samples to choose from."""
    for node in recipe.nodes:
        if node.view == BANK and not node.is_student and not is_store(config.teachers[node.model]):
            raise RecipeError(
                f"recipe {recipe.name}, term {recipe.providers(node)} needs stored rows for {node}: embed the data "
                f"with 'clipdistill embed {config.data} --model {config.teachers[node.model]} --out STORE' and give "
                f"teachers.{node.model}=STORE."
            )
    needed = config.bank.size + config.train.batch_size
    if any(node.view == BANK for node in recipe.nodes) and needed > samples:
        raise ConfigError(
            f"bank.size={config.bank.size} beside a batch of {config.train.batch_size} needs {needed} samples, "
            f"{config.data} has {samples}. Lower bank.size."
        )


def check_letters(recipe: Recipe, config: RunConfig) -> None:
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
    used = used_teachers(recipe, config.teachers, config.batches.model_dump())
    for letter in config.teachers:
        if letter not in used:
            raise ConfigError(
                f"teachers.{letter} is given, but recipe {recipe.name} uses "
                f"{'only ' + ', '.join(recipe.teachers) if recipe.teachers else 'no teacher'}. "
                "Remove it, or choose a recipe that uses it."
            )


def used_teachers(recipe: Recipe, given: Collection[str], batches: Mapping[str, Any]) -> set[str]:
    """The letters of the teachers that a run uses: its recipe's, and the first where batches are made by comparing."""
    compares = (
        batches["select"] == "learnability"
        or batches["neighbours"] not in (None, 1)
        or batches["duplicates"] is not None
    )
    return {*recipe.teachers, *(sorted(given)[:1] if compares else [])}


def check_nodes(recipe: Recipe, source: Source, student: DualEncoder, teachers: Sequence[Teacher]) -> None:
    """Refuse a recipe that needs a node which nobody provides; banks are checked where they are made."""
    given = {f"{STUDENT}{side}" for side in student.sides} | {node for t in teachers for node in t.nodes}
    given |= {f"{STUDENT}I@masked"} if "I" in student.sides else set()
    given |= {f"{STUDENT}I@{LOGITS}"} if student.classes else set()
    if "T" in student.sides:
        views = {view for _, sample in readable(source, range(min(len(source), 100))) for view in sample.texts}
        given |= {f"{STUDENT}T@{view}" for view in views if view}
    for node in recipe.nodes:
        if not node.is_bank and str(node) not in given:
            raise RecipeError(
                f"recipe {recipe.name}, term {recipe.providers(node)} needs node {node}, which nobody provides "
                f"(provided: {', '.join(sorted(given))}). {_advice(node)}"
            )


def _advice(node: Node) -> str:
    if node.view == LOGITS and node.is_student:
        return "Choose a student with a classifier head, such as student.preset=vit-tiny-cifar."
    if node.view == LOGITS:
        return "Give a teacher that tells the classes apart as a model, not as a store."
    return "Drop the term, or provide the node."


def compared_nodes(config: RunConfig, opened: Opened) -> list[Node]:
    """The stored rows that neighbours and duplicates are found by: the first store's pictures, if it has any."""
    if config.batches.neighbours == 1 and config.batches.duplicates is None:
        return []
    return [Node(letter, store.sides[0]) for letter, (store, _) in list(opened.stores.items())[:1]]


def check_stored(nodes: Sequence[Node], source: Source, opened: Opened) -> Source:
    """Look up every sample in every store that gives some of ``nodes``, and return the samples that have all rows.

    Raises:
        StoreError: samples have no row, and the run does not say ``?missing=skip``.
    """
    wanting: dict[int, None] = {}
    for letter, (store, choices) in opened.stores.items():
        asked = [node for node in nodes if node.model == letter]
        found = _wanting(store, source, asked)
        broken = _broken(store, source, found)  # read again, they would be skipped again
        lost = [place for place in found if place not in broken]
        made_from = store.manifest.source
        if asked and made_from.fingerprint not in ("", source.fingerprint):
            console.print(
                f"warning: the store {store.path} was made from {made_from.uri}, and {source.uri} is not the same: "
                f"ids, captions or sizes of files differ. Equal ids must be equal pictures; 'clipdistill store check "
                f"{store.path} --data {source.uri}' compares some.",
                markup=False,
            )
        if lost and not choices.skip_missing:
            raise StoreError(
                f"the store {store.path} (teachers.{letter}) has no row for {len(lost)} of the {len(source)} samples "
                f"of {source.uri}, first {', '.join(source[place].id for place in lost[:5])}: it was made from "
                f"{store.manifest.source.uri}. Embed these data, or write teachers.{letter}={store.path}?missing=skip "
                "to leave these samples out."
            )
        wanting |= found
    if not wanting:
        return source
    if len(wanting) == len(source):
        raise StoreError(f"none of the {len(source)} samples of {source.uri} has a row in every store.")
    console.print(f"{len(wanting)} of {len(source)} samples have no stored row and are left out", markup=False)
    kept = np.delete(np.arange(len(source)), list(wanting))
    return source.keep(kept) if isinstance(source, Mixed) else Kept(source.uri, source, kept)


def _broken(store: EmbeddingStore, source: Source, places: Collection[int]) -> set[int]:
    """Those samples that could not be read when the store was made."""
    if not places:
        return set()
    records = read_records(store.path, "image").values()
    skipped = {name for record in records for name, _ in record.skipped}
    return {place for place in places if source[place].id in skipped}


def _wanting(store: EmbeddingStore, source: Source, asked: Sequence[Node]) -> dict[int, None]:
    """The places of samples without a row for some node; of a text node every caption must have one."""
    wanting: dict[int, None] = {}
    images = any(node.side == "I" for node in asked)
    views = {node.view if node.view != "bank" else "" for node in asked if node.side == "T" and node.view != "classes"}
    by_id = "T" in store.sides and store.manifest.sides["text"].by == "id"
    for start in range(0, len(source), 65536):
        samples = list(readable(source, range(start, min(start + 65536, len(source)))))
        if images:
            wanting |= _without(store, "I", [(place, sample.id) for place, sample in samples])
        if views and by_id:
            wanting |= _without(store, "T", [(place, sample.id) for place, sample in samples])
        elif views:
            told = [(p, caption) for p, sample in samples for view in views for caption in sample.captions_of(view)]
            wanting |= _without(store, "T", told)
    return wanting


def _without(store: EmbeddingStore, side: str, keys: Sequence[tuple[int, str]]) -> dict[int, None]:
    positions = store.find(side, [key for _, key in keys])
    return {place: None for (place, _), position in zip(keys, positions, strict=True) if position < 0}


def check_micro_batch(student: DualEncoder, size: int | None) -> None:
    """Refuse to cut batches for a student whose layers look at all of a batch at once.

    Raises:
        ConfigError: it has batch normalisation that learns.
    """
    if size is None:
        return
    if layers := _over_the_batch(student):
        raise ConfigError(
            f"train.micro_batch={size}: the student normalises over the batch in {len(layers)} layers ({layers[0]}, "
            "...), so in parts it would compute something else. Drop train.micro_batch and take train.accumulate, or "
            "freeze that tower (student.freeze), or choose a student without batch normalisation."
        )


def warn_of_shares(student: DualEncoder, batch_size: int, ranks: Ranks) -> None:
    """Tell that layers which normalise over the batch see this process's share of it alone."""
    if ranks.world > 1 and (layers := _over_the_batch(student)):
        console.print(
            f"warning: the student normalises over the batch in {len(layers)} layers ({layers[0]}, ...), each of "
            f"{ranks.world} processes over its own share: {batch_size // ranks.world} of {batch_size} samples "
            "(torch.nn.SyncBatchNorm is not used). If these are too few, raise train.batch_size, start fewer "
            "processes, or choose a student without batch normalisation.",
            markup=False,
        )


def check_average(student: DualEncoder, config: RunConfig, ranks: Ranks) -> None:
    """Refuse a teacher that is the student's average where each process has an average of its own.

    A checkpoint keeps those of one process, and the others would go on with them.

    Raises:
        ConfigError: the student normalises over the batch, and there are several processes.
    """
    if ranks.world > 1 and SELF in config.teachers.values() and (layers := _over_the_batch(student)):
        raise ConfigError(
            f"a teacher called {SELF}, {ranks.world} processes and a student that normalises over the batch in "
            f"{len(layers)} layers ({layers[0]}, ...) do not go together: these layers of the teacher would be others "
            "in each process. Start one process, freeze that tower (student.freeze), or choose another teacher or a "
            "student without batch normalisation."
        )


def _over_the_batch(student: DualEncoder) -> list[str]:
    """The names of the layers that normalise over the batch, and learn."""
    return [name for name, part in student.module.named_modules() if isinstance(part, _BatchNorm) and part.training]
