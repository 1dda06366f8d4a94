"""One call of a graph: its rows, scales and biases, and the similarities that terms take of them.

Legend: ``b`` anchors, ``N`` candidates, ``D`` width at which both meet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from clipdistill.algebra import columns, objectives
from clipdistill.algebra.columns import Columns, Key
from clipdistill.algebra.gather import gather, log_summed, summed
from clipdistill.algebra.nodes import Arrow, Node
from clipdistill.algebra.objectives import PerRow
from clipdistill.algebra.rows import Rows, unit
from clipdistill.algebra.strips import by_strips, cut, is_small
from clipdistill.algebra.term import SOFTMAX, NewScale, Scale, Term
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

    ``met`` are the candidates of every node, at each width at which they are met, ``most`` the largest number of them;
    ``sure`` the confidences by term; ``shared`` what terms have in common of these anchors: logits, and logarithms of
    probabilities. ``down`` reads the strips of the reverse arrows down their ``columns``.
    """

    learned: Learned
    rows: Rows
    given_scales: Numbers
    given_biases: Numbers
    met: dict[tuple[Node, int, str], Tensor] = field(default_factory=dict)
    sure: dict[str, PerRow] = field(default_factory=dict)
    shared: dict[Key, Tensor] = field(default_factory=dict)
    most: int = 1
    columns: Columns = field(default_factory=Columns)
    down: bool = False

    def strip(self, part: slice) -> Call:
        """The same for some of the rows."""
        return replace(self, rows=self.rows.strip(part), shared={})

    def towards(self, term: Term, index: int) -> Call:
        """The call as one of a term's arrows reads it."""
        return replace(self, down=True) if (term.name, index) in self.columns.turned else self

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
        return cut(self.rows.count, self.most)

    @property
    def whole(self) -> bool:
        """Whether every matrix is stored; the same on all ranks, which speak to each other otherwise."""
        return is_small(max(self.rows.split.sizes), self.most)

    def meet(self, terms: list[Term]) -> Call:
        """Bring all candidates together, once for all terms, and see how sure the confident ones are.

        What is returned knows which arrows share the strips of their reverse.
        """
        most = max((self.rows.candidates(node) for term in terms for node in _candidates(term)), default=1)
        call = replace(self, most=most)
        compared = [term for term in terms if term.verb in ("contrast", "relation")]
        turned = columns.turned(compared, call._keys) if not call.whole else frozenset()
        for term, index in _places(compared):
            if (term.name, index) not in turned:
                for arrow in _together(term, index):
                    call.others(term, arrow, self.learned.widths.joint(term, arrow))
        for term in terms:
            if term.confidence is not None:
                call.others(term, term.confidence, self.learned.widths.joint(term, term.confidence))
                call.sure[term.name] = call._confidence(term, term.confidence)
        softmaxes = [(t, index) for t, index in _places(compared) if t.metric in SOFTMAX and (t.name, index) in turned]
        return replace(call, columns=Columns(turned, *call._sums(softmaxes)))

    def _keys(self, term: Term, index: int, reverse: bool) -> list[Key]:
        """What tells apart the matrices that an arrow of a term reads."""
        arrows = [arrow.reverse if reverse else arrow for arrow in _together(term, index)]
        return [self._key(term, arrow, name) for arrow, name in zip(arrows, term.scales, strict=True)]

    @torch.no_grad()
    def _sums(self, places: list[tuple[Term, int]]) -> tuple[dict[Key, Tensor], Tensor | None]:
        """The log-sum-exp of the columns that arrows are read down, and the number of positives of each."""
        sums, counts, split = dict[Key, Tensor](), None, self.rows.split
        for call in map(self.strip, self.strips if places else []):
            for term, index in places:
                for arrow, name in zip(_together(term, index), term.scales, strict=True):
                    key = self._key(term, arrow.reverse, name)
                    if key not in call.shared:
                        more = call.logits(term, arrow.reverse, name).logsumexp(dim=0)
                        sums[key] = torch.logaddexp(sums[key], more) if key in sums else more
            if self.rows.keys is not None:
                found = call.rows.positives(places[0][0].arrows[0].other).sum(dim=0)
                counts = found if counts is None else counts + found
        everywhere = {key: log_summed(columns, split) for key, columns in sums.items()}
        return everywhere, None if counts is None else summed(counts, split)

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
        arrow = self._read(arrow)
        key = self._key(term, arrow, name)
        if key not in self.shared:
            self.shared[key] = self._similarities(term, arrow, self.scale(term, name))
        return self.shared[key]

    def _read(self, arrow: Arrow) -> Arrow:
        """The arrow whose matrix is read for another: its reverse, where matrices are read down their columns."""
        return arrow.reverse if self.down else arrow

    def seen(self, term: Term, arrow: Arrow, name: str) -> Tensor:
        """What a term's metric looks at, ``[b, N]``: probabilities, logits that answer yes or no, or logits."""
        if term.metric in SOFTMAX:
            return self._log_p(term, arrow, name)
        logits = self.logits(term, arrow, name)
        return logits + self.bias(term, arrow) if term.metric == "sigmoid" else logits

    def _log_p(self, term: Term, arrow: Arrow, name: str) -> Tensor:
        """The logarithm of the softmax of an arrow's logits over its candidates, ``[b, N]``."""
        logits, key = self.logits(term, arrow, name), self._key(term, self._read(arrow), name)
        place = ("log P", self.down, key)
        if place not in self.shared:
            self.shared[place] = logits - self.columns.sums[key] if self.down else logits.log_softmax(dim=1)
        return self.shared[place]

    def target(self, arrow: Arrow, like: Tensor) -> Tensor:
        """InfoNCE's target, ``[b, N]``: each anchor's mass, shared equally by its positives."""
        positives = self.rows.positives(arrow.other)
        if self.down and self.columns.counts is not None:
            return positives.to(like.dtype) / self.columns.counts
        return objectives.shared(positives, like)

    def passed(self, term: Term, seen: Tensor) -> PerRow:
        """Zero, with the gradient that a cross entropy down columns has through their sums, ``[b]``.

        The sums were taken without gradient; a target has mass 1 in every column, however strips cut it, so this is
        the column's probabilities.
        """
        if not (self.down and term.metric in SOFTMAX):
            return seen.new_zeros(len(seen))
        p = seen.exp().sum(dim=1)
        return p - p.detach()

    def _key(self, term: Term, arrow: Arrow, name: str) -> Key:
        scale = term.scales[name]
        width = self.learned.widths.joint(term, arrow)
        ways = tuple(self._way(term, node, width) for node in (arrow.anchor, *arrow.other.layers))
        return arrow, width, ways, name if isinstance(scale, NewScale) else scale

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


def _places(terms: list[Term]) -> list[tuple[Term, int]]:
    """Every arrow of some terms, by its term and its place in it."""
    return [(term, index) for term in terms for index in range(len(term.arrows))]


def _together(term: Term, index: int) -> list[Arrow]:
    """One of a term's arrows, and those it is made like."""
    return [term.arrows[index], *term.likes(index)]


def _candidates(term: Term) -> list[Node]:
    """The nodes that a term compares every row with."""
    compares = term.verb in ("contrast", "relation", "gradient")
    arrows = [*term.arrows, *(arrow for target in term.like for arrow in target)] if compares else []
    arrows += [term.confidence] if term.confidence else []
    return [layer for arrow in arrows for layer in arrow.other.layers]


def bias_key(term: Term) -> str:
    """Sigmoid terms under the same model's scale share the bias learned for it, the others have their own."""
    return term.scale if isinstance(term.scale, str) else term.name
