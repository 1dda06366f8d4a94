"""Which models a student is made from, and the licences that it takes over from them."""

from __future__ import annotations

from collections.abc import Iterator

from clipdistill.config import SELF, RunConfig
from clipdistill.models.licences import UNKNOWN, Link, chain, warnings
from clipdistill.progress import console
from clipdistill.teachers.stored import is_store, open_teacher_store


def tell_licences(config: RunConfig, quiet: bool = False) -> list[Link]:
    """Return the licences of all that a run's student learns or starts from, and warn of those that restrict it.

    One of several processes is ``quiet``.
    """
    links = chain(dict.fromkeys(_models(config)))
    for line in [] if quiet else warnings(links):
        console.print(line, markup=False)
    return links


def _models(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Every model with what it is to the student; of a store, the model that it was made with."""
    for letter, uri in sorted(config.teachers.items()):
        if uri == SELF:
            continue
        if is_store(uri):
            uri = open_teacher_store(uri)[0].manifest.model.uri or f"{UNKNOWN}, as {uri}"
        yield f"teacher {letter}", uri
    if config.student.pretrained:
        yield "started from", config.student.pretrained
    if config.student.inherit_from:
        yield "weights from", config.student.inherit_from
