"""One matrix for an arrow and its reverse, whose matrix is the transpose: a strip of rows has a part of every column.

The reverse of an arrow has its softmaxes down the columns of the same strips. A first pass over the strips adds up each
column's log-sum-exp; after it, every strip knows its part of the columns' probabilities.

Legend: ``N`` candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from clipdistill.algebra.term import Term

#: What makes the matrices of two arrows the same.
Key = tuple[Any, ...]
#: The matrices that an arrow of a term reads, its own and its targets'; with ``True``, those of the reverse arrows.
Keys = Callable[[Term, int, bool], list[Key]]


@dataclass(frozen=True)
class Columns:
    """What a strip must know of its columns.

    ``turned`` are the arrows that are read down the columns, by their term's name and their place in it. ``sums`` is
    the log-sum-exp of every column of a matrix, ``counts`` how many positives a column has.
    """

    turned: frozenset[tuple[str, int]] = frozenset()
    sums: Mapping[Key, Float[Tensor, "N"]] = field(default_factory=dict)
    counts: Int[Tensor, "N"] | None = None


def turned(terms: Iterable[Term], keys: Keys) -> frozenset[tuple[str, int]]:
    """The arrows whose matrices are transposes of such as are computed anyway.

    Targets with a gradient (``mutual``) and rows of different weight (``confidence``) keep matrices of their own, and
    so do rows of any length.
    """
    kept, found = set[Key](), set[tuple[str, int]]()
    for term in terms:
        for index in range(len(term.arrows)):
            own = set(keys(term, index, False))
            if _reversible(term) and not own <= kept and kept.issuperset(keys(term, index, True)):
                found.add((term.name, index))
            else:
                kept |= own
    return frozenset(found)


def _reversible(term: Term) -> bool:
    raw = term.reference and term.adapter == "teacher"
    return not (term.mutual or term.confidence or raw or any(node.is_bank or node.stacked for node in term.ends))
