"""One call of a graph: its rows, scales and biases, and the similarities that terms take of them.

Legend: ``b`` anchors, ``N`` candidates, ``D`` width at which both meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from clipdistill.algebra import objectives
from clipdistill.algebra.gather import gather, summed
from clipdistill.algebra.nodes import Arrow, Node
from clipdistill.algebra.objectives import PerRow
from clipdistill.algebra.rows import Rows, unit
from clipdistill.algebra.strips import by_strips, cut
from clipdistill.algebra.term import NewScale, Scale, Term
from clipdistill.algebra.widths import Widths, adapter_key
from clipdistill.errors import RecipeError, did_you_mean

Numbers = Mapping[str, float | Tensor]


@dataclass(frozen=True)
class Learned:
    """What a graph has learned: maps between widths, scales and biases of its own."""

    widths: Widths
    adapters: nn.ModuleDict
    scales: nn.ParameterDict
    biases: nn.ParameterDict


@dataclass(frozen=True)
class Call:
    """Rows and who is whose positive, logit scales and biases by model letter, beside what was learned.

    ``met`` are the candidates of every node, at each width at which they are met; ``sure`` the confidences by
    term; ``shared`` the logits of these anchors that terms have in common.
    """

    learned: Learned
    rows: Rows
    given_scales: Numbers
    given_biases: Numbers
    met: dict[tuple[Node, int, str], Tensor] = field(default_factory=dict)
    sure: dict[str, PerRow] = field(default_factory=dict)
    shared: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    def strip(self, part: slice) -> Call:
        """The same for some of the rows."""
        return replace(self, rows=self.rows.strip(part), shared={})

    def summed(self, values: Callable[[Call], Tensor], weights: Tensor) -> Tensor:
        """The sum over all rows of values that are a sum over rows, ``[terms]``, strip by strip.

        ``weights`` are those that its gradient will most likely be asked for.
        """
        nodes = [node for node in self.rows.units if not node.is_bank]

        def strip(part: slice, anchors: list[Tensor], candidates: list[Tensor]) -> Tensor:
            rows = self.rows.strip(part, dict(zip(nodes, anchors, strict=True)))
            met = dict(zip(self.met, candidates, strict=True))
            return values(replace(self, rows=rows, met=met, shared={}))

        own = (self.learned.adapters, self.learned.scales, self.learned.biases)
        given = (*self.given_scales.values(), *self.given_biases.values())
        numbers: list[Tensor] = [parameter for part in own for parameter in part.parameters()]
        numbers += [number for number in given if isinstance(number, Tensor)]
        anchors = [self.rows.units[node] for node in nodes]
        return by_strips(strip, self.strips, weights, anchors, list(self.met.values()), numbers)

    @property
    def strips(self) -> list[slice]:
        """How the rows are cut, so that no matrix of them all has to be stored."""
        return cut(self.rows.count, max(map(len, self.met.values()), default=1))

    def meet(self, terms: list[Term]) -> None:
        """Bring all candidates together, once for all terms, and see how sure the confident ones are."""
        for term in terms:
            for arrow in _compared(term):
                self.others(term, arrow, self.learned.widths.joint(term, arrow))
        for term in terms:
            if term.confidence is not None:
                self.sure[term.name] = self._confidence(term, term.confidence)

    @torch.no_grad()
    def _confidence(self, term: Term, arrow: Arrow) -> PerRow:
        """The weight of every row: the probability that an arrow gives to its positives; their mean is 1."""
        scale, parts = self._number(term, arrow.anchor.model), []
        for rows in map(self.rows.strip, self.strips):
            p = self.strip(rows.part)._similarities(term, arrow, scale).softmax(dim=1)
            parts.append((p * rows.positives(arrow.other)).sum(dim=1))
        sure, split = torch.cat(parts), self.rows.split
        return sure * split.total / summed(sure.sum(), split).clamp(min=1e-30)

    def logits(self, term: Term, arrow: Arrow, name: str) -> Tensor:
        """An arrow's logits under one of the term's scales, ``[b, N]``; terms that ask for the same share them."""
        scale = term.scales[name]
        width = self.learned.widths.joint(term, arrow)
        ways = tuple(self._way(term, node, width) for node in (arrow.anchor, *arrow.other.layers))
        key = (arrow, width, ways, name if isinstance(scale, NewScale) else scale)
        if key not in self.shared:
            self.shared[key] = self._similarities(term, arrow, self.scale(term, name))
        return self.shared[key]

    def _similarities(self, term: Term, arrow: Arrow, scale: float | Tensor) -> Tensor:
        width = self.learned.widths.joint(term, arrow)
        anchor = self.fit(term, arrow.anchor, self.rows.anchors(arrow.anchor), width)
        return scale * anchor @ self.others(term, arrow, width).T

    def others(self, term: Term, arrow: Arrow, width: int) -> Tensor:
        """All candidates of an arrow at a width, ``[N, D]``."""
        layers = []
        for layer in arrow.other.layers:
            key = layer, width, self._way(term, layer, width)
            if key not in self.met:
                self.met[key] = self.fit(term, layer, self._candidates(term, layer), width)
            layers.append(self.met[key])
        return layers[0] if len(layers) == 1 else torch.cat(layers)

    def _way(self, term: Term, node: Node, width: int) -> str:
        """How a node's rows come to a width: what :meth:`_candidates` and :meth:`_fit` make of them."""
        mapped = adapter_key(node, width) if self.learned.widths.is_mapped(term, node, width) else ""
        return mapped + (" raw" if self._is_raw(term, node) else "")

    def _candidates(self, term: Term, layer: Node) -> Tensor:
        if not self._is_raw(term, layer):
            return self.rows.everywhere(layer)
        rows = self.rows.raw[layer]
        return rows if layer.is_bank else gather(rows, self.rows.split)

    @staticmethod
    def _is_raw(term: Term, node: Node) -> bool:
        """CLIP-Embed-KD's code maps rows of any length."""
        return term.reference and term.adapter == "teacher" and not node.is_student

    def fit(self, term: Term, node: Node, rows: Tensor, width: int) -> Tensor:
        """Rows of a node at a width: mapped or stretched where it is another than theirs."""
        if self.learned.widths.is_mapped(term, node, width):
            return unit(self.learned.adapters[adapter_key(node, width)](rows))
        return rows if rows.shape[1] == width else unit(objectives.stretch(rows, width))

    def bias(self, term: Term, arrow: Arrow) -> float | Tensor:
        """The logit bias of an arrow: the anchor model's own, else for a student the one learned here."""
        letter = arrow.anchor.model
        if letter in self.given_biases:
            return self.given_biases[letter]
        if not arrow.anchor.is_student:
            raise RecipeError(
                f"recipe {self.learned.widths.recipe}, term {term}: sigmoid targets need a teacher with a logit bias, "
                f"as SigLIP has one, and teacher '{letter}' has none. Choose another teacher, or metric: kl."
            )
        learned: Tensor = self.learned.biases[bias_key(term)]
        return learned

    def scale(self, term: Term, name: str) -> float | Tensor:
        return self._number(term, term.scales[name], name)

    def _number(self, term: Term, scale: Scale, name: str = "") -> float | Tensor:
        if isinstance(scale, NewScale):
            stored: Tensor = self.learned.scales[name]
            return stored if scale.raw else stored.exp()
        if not isinstance(scale, str):
            return scale
        if scale not in self.given_scales:
            raise RecipeError(
                f"recipe {self.learned.widths.recipe}, term {term} uses the logit scale of model '{scale}', which is "
                "not given." + did_you_mean(scale, self.given_scales)
            )
        return self.given_scales[scale]


def _compared(term: Term) -> list[Arrow]:
    """The arrows of a term that compare every row with all candidates."""
    arrows = [*term.arrows, *(arrow for target in term.like for arrow in target)]
    compares = term.verb in ("contrast", "relation")
    return [*(arrows if compares else ()), *([term.confidence] if term.confidence else ())]


def bias_key(term: Term) -> str:
    """Sigmoid terms under the same model's scale share the bias learned for it, the others have their own."""
    return term.scale if isinstance(term.scale, str) else term.name
