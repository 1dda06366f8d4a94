"""The interaction graph: a recipe made computable, a pure function of ``{node: matrix}``.

Legend: ``b`` rows of this rank, ``N`` candidates, ``D`` width of a node.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipdistill.algebra import objectives
from clipdistill.algebra.call import Call, Learned, Numbers, bias_key
from clipdistill.algebra.gather import Split, own_rows, total
from clipdistill.algebra.nodes import Arrow, Node
from clipdistill.algebra.objectives import PerRow
from clipdistill.algebra.recipe import Recipe
from clipdistill.algebra.rows import Embeddings, Rows, as_keys, by_node, checked, unit
from clipdistill.algebra.strips import recomputed
from clipdistill.algebra.term import MAX_SCALE, GradNorm, NewScale, Term
from clipdistill.algebra.weights import measure
from clipdistill.algebra.widths import Widths, adapter_key
from clipdistill.errors import RecipeError

#: SigLIP's initial logit bias (arXiv 2303.15343, section 3.2): most pairs are negatives, so start from "no".
INITIAL_BIAS = -10.0


@dataclass(frozen=True)
class Losses:
    """``total`` is the weighted sum, ``terms`` each term's own value before its weight; all scalars ``[]``."""

    total: Tensor
    terms: dict[str, Tensor]


class InteractionGraph(nn.Module):
    """Evaluate a recipe on embeddings.

    Owns the few parameters a recipe adds: one bias-free linear adapter per student side and foreign width,
    created exactly when some term pairs them; one linear map per fused node; fresh logit scales; the bias of
    sigmoid terms.

    Args:
        recipe: what to compute.
        widths: joint width by model letter, ``{"S": 256, "T": 768}``.

    Raises:
        RecipeError: a term needs a model nobody gave a width for, or pairs two teachers of different width.
    """

    def __init__(self, recipe: Recipe, widths: Mapping[str, int]) -> None:
        super().__init__()
        recipe = Recipe.load(recipe)
        self.recipe = recipe
        self.widths = dict(widths)
        self._widths = Widths(self.widths, recipe.name)
        for node in recipe.nodes:
            if node.model not in widths:
                raise RecipeError(
                    f"recipe {recipe.name}, term {recipe.providers(node)} needs node {node}, but no model "
                    f"'{node.model}' is provided (provided: {', '.join(sorted(widths))}). "
                    f"Add teachers.{node.model}=..., or drop the term."
                )
        self.adapters = nn.ModuleDict()
        self.fusions = nn.ModuleDict()
        self.scales = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        for term in recipe.terms:
            self._furnish(term)
        self._learned = Learned(self._widths, self.adapters, self.scales, self.biases)
        measured = [term.name for term in recipe.terms if isinstance(term.weight, GradNorm)]
        if len(measured) == len(recipe.terms):
            raise RecipeError(f"recipe {recipe.name}: a grad_norm weight is a share of the others; give one a number.")
        self.measured: Tensor
        self.register_buffer("measured", torch.full((len(measured),), math.nan))

    def _furnish(self, term: Term) -> None:
        """Create the parameters that ``term`` adds."""
        for node in term.ends:
            if node.fused and str(node) not in self.fusions:
                joined = sum(self.widths[part.model] for part in node.parts)
                self.fusions[str(node)] = nn.Linear(joined, self.widths[node.model])
        for node, width in self._widths.meetings(term):
            key = adapter_key(node, width)
            if self._widths.is_mapped(term, node, width) and key not in self.adapters:
                self.adapters[key] = nn.Linear(self.widths[node.model], width, bias=term.adapter == "teacher")
        self._widths.check_confidence(term)
        for name, scale in term.scales.items():
            if isinstance(scale, NewScale):
                self.scales[name] = nn.Parameter(torch.tensor(scale.initial if scale.raw else math.log(scale.initial)))
        if term.metric == "sigmoid" and bias_key(term) not in self.biases:
            self.biases[bias_key(term)] = nn.Parameter(torch.tensor(INITIAL_BIAS))

    def forward(
        self,
        embeddings: Embeddings,
        scales: Numbers,
        positives: Tensor | None = None,
        biases: Numbers | None = None,
        labels: Tensor | None = None,
        bank_keys: Tensor | None = None,
        partial: bool = False,
    ) -> Losses:
        """Compute every term; within a process group, over the rows of all ranks.

        Args:
            embeddings: rows by node, ``float [B, D]``; normalised here, so any length will do.
            scales: logit scales by model letter, as multipliers (14.3, not its logarithm).
            positives: group keys, ``int [B]`` or ``[B, K]``. Rows that agree in any column are positives of each
                other, as the diagonal always is; a negative key belongs to no group.
            biases: logit biases by model letter, for models that have their own (SigLIP); a sigmoid term over any
                other model learns one here.
            labels: class numbers, ``int [B]``, for ``classify`` and ``@classes``.
            bank_keys: group keys of the rows of ``@bank``, ``int [N, K]``: those that agree with a row of the batch are
                its positives, all others negatives.
            partial: leave out the terms whose nodes are not all given, instead of refusing.

        Raises:
            RecipeError: a needed node or scale is missing (the message names the term), or shapes do not fit.
        """
        if not embeddings:
            raise RecipeError(f"recipe {self.recipe.name}: no embeddings are given.")
        device = next(iter(embeddings.values())).device
        # Under a caller's autocast the products would be in half precision, and gradients several percent off.
        with torch.autocast(device.type, enabled=False):
            given = by_node(embeddings)
            labelled = labels is not None
            terms = [term for term in self.recipe.terms if not partial or _affordable(term, given, labelled)]
            if not terms:
                raise RecipeError(f"recipe {self.recipe.name}: no term can be computed from {_listed(given)} alone.")
            units = self._units(given, terms)
            count = next(len(matrix) for node, matrix in units.items() if not node.is_bank)
            split = Split.of(count, device)
            keys = None if positives is None else as_keys(positives, count)
            rows = Rows(units, given, split, keys, labels, bank_keys)
            return self._losses(terms, Call(self._learned, rows, scales, biases or {}))

    def _losses(self, terms: list[Term], call: Call) -> Losses:
        split = call.rows.split
        sums = self._sums(terms, call.meet(terms)) / split.total
        values = dict(zip([term.name for term in terms], total(sums, split).unbind(), strict=True))
        weights = self._weights(terms, values, call.rows)
        return Losses(torch.stack([weights[name] * value for name, value in values.items()]).sum(), values)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the learnable scales within [1, 100], as CLIP does after every step; raw ones roam free."""
        for term in self.recipe.terms:
            for name, scale in term.scales.items():
                if isinstance(scale, NewScale) and not scale.raw:
                    self.scales[name].clamp_(0, math.log(MAX_SCALE))

    def _units(self, given: dict[Node, Tensor], terms: list[Term]) -> dict[Node, Tensor]:
        """Pick the needed nodes as unit rows, and add the fused ones."""
        needed = sorted({node for term in terms for node in term.nodes})
        for node in needed:
            if node not in given:
                raise RecipeError(
                    f"recipe {self.recipe.name}, term {self.recipe.providers(node)} needs node {node}, but only "
                    f"{_listed(given) or 'nothing'} is given. Provide its embeddings, or drop the term."
                )
        rows = checked((node, given[node], self.widths[node.model]) for node in needed)
        fused = (layer for term in terms for end in term.ends for layer in end.layers if layer.fused)
        for node in fused:
            rows[node] = unit(self.fusions[str(node)](torch.cat([rows[part] for part in node.parts], dim=1)))
        return rows

    def _sums(self, terms: list[Term], call: Call) -> Tensor:
        """Every term's sum over this rank's rows, ``[terms]``: strip by strip, but for gradients, which cross them."""
        by_row = [term for term in terms if term.verb != "gradient"]
        if call.whole or not by_row:
            return self._by_row(terms, call)
        known = self._known_weights()
        weights = next(iter(call.rows.units.values())).new_tensor([known[term.name] for term in by_row])
        found = call.summed(lambda strip: self._by_row(by_row, strip), weights)
        values = dict(zip([term.name for term in by_row], found.unbind(), strict=True))
        return torch.stack([values[t.name] if t.name in values else self._value(t, call) for t in terms])

    def _by_row(self, terms: list[Term], call: Call) -> Tensor:
        return torch.stack([self._value(term, call) for term in terms])

    def _value(self, term: Term, call: Call) -> Tensor:
        """One term on some rows: the sum over rows of the mean over its arrows."""
        compute = {
            "contrast": self._contrast,
            "relation": self._relation,
            "feature": self._feature,
            "gradient": self._gradient,
            "classify": self._classify,
        }[term.verb]
        places = range(len(term.arrows))
        rows = torch.stack([compute(term, index, call.towards(term, index)) for index in places]).mean(dim=0)
        return (rows if term.confidence is None else rows * call.sure[term.name][call.rows.part]).sum()

    def _contrast(self, term: Term, index: int, call: Call) -> PerRow:
        arrow = term.arrows[index]
        seen = call.seen(term, arrow, term.name)
        if term.metric == "sigmoid":
            return objectives.sigmoid(seen, call.rows.positives(arrow.other))
        return objectives.infonce(seen, call.target(arrow, seen)) + call.passed(term, seen)

    def _relation(self, term: Term, index: int, call: Call) -> PerRow:
        arrow = term.arrows[index]
        seen = call.seen(term, arrow, term.name)
        names = list(term.scales)[1:]
        likes = term.likes(index)
        targets = [call.seen(term, like, name) for like, name in zip(likes, names, strict=True)]
        for like, target in zip(likes, targets, strict=True):
            if target.shape != seen.shape:
                raise RecipeError(
                    f"recipe {self.recipe.name}, term {term}: {arrow} has {seen.shape[1]} candidates, {like} has "
                    f"{target.shape[1]}. Both need the same ones."
                )
        quirk = term.metric == "sigmoid" and term.reference
        compare = objectives.relation_sigmoid_reference if quirk else objectives.RELATION[term.metric]
        values = compare(seen, targets if term.mutual else [target.detach() for target in targets])
        return values + call.passed(term, seen)

    def _feature(self, term: Term, index: int, call: Call) -> PerRow:
        arrow = term.arrows[index]
        width = self._widths.joint(term, arrow)
        anchor, other = (call.fit(term, node, call.rows.anchors(node), width) for node in (arrow.anchor, arrow.other))
        return objectives.FEATURE[term.metric](anchor, other if term.mutual else other.detach())

    def _gradient(self, term: Term, index: int, call: Call) -> PerRow:
        """CLIP-KD's GD: both gradients of an arrow's InfoNCE, student against teacher."""
        arrow, (like, *_) = term.arrows[index], term.likes(index)
        name, like_name = term.scales
        scale, like_scale = call.scale(term, name), call.scale(term, like_name)
        if term.reference:  # the published code divides by the scale where it means to multiply
            scale, like_scale = 1 / scale, 1 / like_scale
        ours = self._contrast_gradients(term, arrow, (like,), scale, call)
        theirs = self._contrast_gradients(term, like, (), like_scale, call)
        pairs = zip(ours, theirs, strict=True)
        parts = [objectives.feature_mse(a, b if term.mutual else b.detach()) for a, b in pairs]
        return torch.stack(parts).sum(dim=0)

    def _contrast_gradients(
        self, term: Term, arrow: Arrow, like: tuple[Arrow, ...], scale: float | Tensor, call: Call
    ) -> tuple[Tensor, Tensor]:
        """The gradients of an arrow's InfoNCE, those of this rank's rows."""
        rows, strips = call.rows, call.strips
        width = self._widths.joint(term, arrow, like)
        other = call.others(term, arrow, width)

        def of(part: slice) -> tuple[Tensor, Tensor]:
            strip = rows.strip(part)
            anchor = call.fit(term, arrow.anchor, strip.anchors(arrow.anchor), width)
            positives = strip.positives(arrow.other)
            return objectives.contrast_gradients(anchor, other, scale, positives, rows.split.total)

        found = [of(part) if len(strips) == 1 else recomputed(of, part) for part in strips]
        mine, others = zip(*found, strict=True)
        return torch.cat(mine), own_rows(torch.stack(others).sum(dim=0), rows.split)

    def _classify(self, term: Term, index: int, call: Call) -> PerRow:
        """A classifier's logits against labels, or against another classifier's."""
        node = term.arrows[index].anchor
        logits = call.scale(term, term.name) * call.rows.anchors(node)
        if term.reference:  # the published code takes the softmax of the softmax
            logits = logits.softmax(dim=1)
        if not term.like:
            if call.rows.labels is None or not _within(call.rows.labels, logits.shape[1]):
                raise RecipeError(
                    f"recipe {self.recipe.name}, term {term} needs the class of every row: expected labels from 0 to "
                    f"{logits.shape[1] - 1}, found {_range(call.rows.labels)}."
                )
            return objectives.classify(logits, call.rows.labels[call.rows.part])
        target_node, (_, name) = term.like[0][index].anchor, list(term.scales)
        target = call.scale(term, name) * call.rows.anchors(target_node)
        if target.shape != logits.shape:
            raise RecipeError(
                f"recipe {self.recipe.name}, term {term}: {node} tells {logits.shape[1]} classes apart, {target_node} "
                f"{target.shape[1]}. Both need the same classes."
            )
        return objectives.classify_like(logits, target if term.mutual else target.detach())

    def _weights(self, terms: list[Term], values: Mapping[str, Tensor], rows: Rows) -> dict[str, float | Tensor]:
        """The weight of every term; those to be measured are measured at the first call and then kept."""
        measured = [term for term in self.recipe.terms if isinstance(term.weight, GradNorm)]
        places = [place for place, term in enumerate(measured) if term in terms]
        if places and bool(self.measured[places].isnan().any()):
            leaves = [
                matrix
                for node, matrix in rows.units.items()
                if node.is_student and not node.fused and matrix.requires_grad
            ]
            try:
                self.measured[places] = self.measured.new_tensor(measure(terms, values, leaves, rows.split))
            except RecipeError as error:
                raise RecipeError(f"recipe {self.recipe.name}: {error}") from error
        known = self._known_weights()
        return {term.name: known[term.name] for term in terms}

    def _known_weights(self) -> dict[str, float | Tensor]:
        """The weight of every term; not a number where it is not measured yet."""
        measured = iter(self.measured)
        return {t.name: next(measured) if isinstance(t.weight, GradNorm) else t.weight for t in self.recipe.terms}


def _affordable(term: Term, given: Mapping[Node, Tensor], labelled: bool) -> bool:
    """Whether all that a term reads is given."""
    return set(term.nodes) <= given.keys() and (labelled or term.verb != "classify" or bool(term.like))


def _listed(given: Mapping[Node, Tensor]) -> str:
    return ", ".join(sorted(map(str, given)))


def _within(labels: Tensor, classes: int) -> bool:
    return bool(((labels >= 0) & (labels < classes)).all())


def _range(labels: Tensor | None) -> str:
    return "none" if labels is None else f"{int(labels.min())} to {int(labels.max())}"
