"""Which models a student is made from: the licences that it takes over from them, and whose rows it learns to give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from clipdistill.algebra.nodes import CLASSES, LOGITS, Node
from clipdistill.algebra.recipe import Recipe
from clipdistill.algebra.term import Term
from clipdistill.config import SELF, RunConfig
from clipdistill.models.licences import UNKNOWN, Link, chain, warnings
from clipdistill.progress import console
from clipdistill.teachers.stored import StoredTeacher, is_store, open_teacher_store
from clipdistill.teachers.teacher import Teacher


def tell_licences(config: RunConfig, quiet: bool = False) -> list[Link]:
    """Return the licences of all that a run's student learns or starts from, and warn of those that restrict it.

    One of several processes is ``quiet``.
    """
    links = list(dict.fromkeys(_links(config)))
    for line in [] if quiet else warnings(links):
        console.print(line, markup=False)
    return links


def _links(config: RunConfig) -> Iterator[Link]:
    """The licences of every model that the student learns or starts from."""
    for letter, uri in sorted(config.teachers.items()):
        if is_store(uri):
            yield from _of_store(uri, letter)
        elif uri != SELF:
            yield from chain([(f"teacher {letter}", uri)])
    if config.student.pretrained:
        yield from chain([("started from", config.student.pretrained)])
    if config.student.inherit_from:
        yield from chain([("weights from", config.student.inherit_from)])


def _of_store(uri: str, letter: str) -> list[Link]:
    """The licences of the model that a store was made with: as it says, or else as the model says today."""
    manifest = open_teacher_store(uri)[0].manifest
    if manifest.licences and manifest.licences[0].licence != UNKNOWN:
        return [replace(link, role=link.role.replace("teacher", f"teacher {letter}", 1)) for link in manifest.licences]
    return chain([(f"teacher {letter}", manifest.model.uri or f"{UNKNOWN}, as {uri}")])


def space_of(recipe: Recipe, width: int, teachers: Sequence[Teacher], uris: Mapping[str, str]) -> dict[str, str] | None:
    """Return whose rows the student's can be compared with, for its record: ``fingerprint`` and ``sides``; or None.

    They are of a teacher's space where terms hold them against its rows as they are, which takes the same ``width`` and
    no adapter. Rows that two teachers pull at are of neither's space; a teacher that is the student's own average, and
    one of whom nothing but rows is known, have none to tell.
    """
    held: dict[str, set[str]] = {}
    for term in recipe.terms:
        for side, letter in _held(term):
            held.setdefault(letter, set()).add(side)
    if len(held) != 1:
        return None
    ((letter, sides),) = held.items()
    for teacher in teachers:
        if (
            teacher.letter == letter
            and teacher.width == width
            and uris[letter] != SELF
            and (mark := _model_of(teacher))
        ):
            return {"fingerprint": mark, "sides": "".join(sorted(sides))}
    return None


def _held(term: Term) -> Iterator[tuple[str, str]]:
    """Sides of the student, each with the letter of a teacher whose rows a term holds it against."""
    if term.verb in ("classify", "gradient") or term.adapter == "teacher":
        return
    for arrow in term.arrows:
        met = [node for node in (arrow.anchor, *arrow.other.layers) if _plain(node)]
        others = {node.model for node in met if not node.is_student}
        yield from ((node.side, letter) for node in met if node.is_student for letter in others)


def _plain(node: Node) -> bool:
    """Whether a node's rows are a model's own: no map of them, no logits, no means of classes."""
    return not node.fused and node.view not in (CLASSES, LOGITS)


def _model_of(teacher: Teacher) -> str:
    """The fingerprint of the model whose rows a teacher gives."""
    return teacher.store.manifest.model.fingerprint if isinstance(teacher, StoredTeacher) else teacher.fingerprint
