"""The interaction graph: a recipe made computable, a pure function of ``{node: matrix}``.

Legend: ``B`` rows, ``D`` width of a node, ``K`` kinds of group keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from clipdistill.algebra import objectives
from clipdistill.algebra.nodes import Arrow, Node
from clipdistill.algebra.objectives import Scalar
from clipdistill.algebra.recipe import MAX_SCALE, GradNorm, NewScale, Recipe, Scale, Term
from clipdistill.algebra.rows import Embeddings, by_node, checked, positive_pairs, unit
from clipdistill.errors import RecipeError, did_you_mean

#: SigLIP's initial logit bias (arXiv 2303.15343, section 3.2): most pairs are negatives, so start from "no".
INITIAL_BIAS = -10.0

Numbers = Mapping[str, float | Tensor]


@dataclass(frozen=True)
class Losses:
    """``total`` is the weighted sum, ``terms`` each term's own value before its weight; all scalars ``[]``."""

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class _Given:
    """What one call brings: unit rows by node, logit scales and biases by model letter, who is whose positive."""

    rows: dict[Node, Tensor]
    scales: Numbers
    biases: Mapping[str, Tensor]
    positives: Bool[Tensor, "B B"]


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
        for node, width in self._meetings(term):
            key = _adapter_key(node, width)
            learned = term.adapter == "linear" and self.widths[node.model] != width
            if learned and key not in self.adapters:
                self.adapters[key] = nn.Linear(self.widths[node.model], width, bias=False)
        for name, scale in ((term.name, term.scale), (f"{term.name} like", term.like_scale)):
            if isinstance(scale, NewScale):
                self.scales[name] = nn.Parameter(torch.tensor(scale.initial if scale.raw else math.log(scale.initial)))
        if term.metric == "sigmoid":
            self.biases[term.name] = nn.Parameter(torch.tensor(INITIAL_BIAS))

    def _meetings(self, term: Term) -> Iterator[tuple[Node, int]]:
        """Every end of a term's arrows with the width at which it meets the other end."""
        for index, arrow in enumerate(term.arrows):
            like = term.like[index] if term.like else None
            for meeting in (arrow, *([like] if like else [])):
                width = self._joint_width(term, meeting, like)
                yield from ((meeting.anchor, width), (meeting.other, width))

    def _joint_width(self, term: Term, arrow: Arrow, like: Arrow | None) -> int:
        """The width at which an arrow's ends meet: a teacher's if there is one, since only students are adapted.

        Gradients live where rows do, so those of the student meet those of the teacher at the teacher's width.
        """
        nodes = [arrow.anchor, arrow.other]
        if term.verb == "gradient" and like is not None:
            nodes += [like.anchor, like.other]
        fixed = [node for node in nodes if not node.is_student]
        if len({self.widths[node.model] for node in fixed}) > 1:
            sizes = " with ".join(f"{node} ({self.widths[node.model]} wide)" for node in fixed)
            raise RecipeError(
                f"recipe {self.recipe.name}, term {term} pairs {sizes}: "
                "only a student node can be adapted to another width."
            )
        return self.widths[fixed[0].model if fixed else arrow.anchor.model]

    def forward(
        self,
        embeddings: Embeddings,
        scales: Numbers,
        positives: Tensor | None = None,
        biases: Mapping[str, Tensor] | None = None,
    ) -> Losses:
        """Compute every term.

        Args:
            embeddings: rows by node, ``float [B, D]``; normalised here, so any length will do.
            scales: logit scales by model letter, as multipliers (14.3, not its logarithm).
            positives: group keys, ``int [B]`` or ``[B, K]``. Rows that agree in any column are positives of each
                other, as the diagonal always is; a negative key belongs to no group.
            biases: logit biases by model letter, for models that have their own (SigLIP); a sigmoid term over any
                other model learns one here.

        Raises:
            RecipeError: a needed node or scale is missing (the message names the term), or shapes do not fit.
        """
        device = next(iter(embeddings.values())).device.type
        # Under a caller's autocast the products would be in half precision, and gradients several percent off.
        with torch.autocast(device, enabled=False):
            return self._losses(embeddings, scales, positives, biases)

    def _losses(
        self, embeddings: Embeddings, scales: Numbers, positives: Tensor | None, biases: Mapping[str, Tensor] | None
    ) -> Losses:
        rows = self._rows(embeddings)
        given = _Given(rows, scales, biases or {}, positive_pairs(positives, next(iter(rows.values()))))
        terms = {term.name: self._value(term, given) for term in self.recipe.terms}
        weights = self._weights(terms, rows)
        return Losses(torch.stack([weights[name] * value for name, value in terms.items()]).sum(), terms)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the learnable scales within [1, 100], as CLIP does after every step; raw ones roam free."""
        for term in self.recipe.terms:
            for name, scale in ((term.name, term.scale), (f"{term.name} like", term.like_scale)):
                if isinstance(scale, NewScale) and not scale.raw:
                    self.scales[name].clamp_(0, math.log(MAX_SCALE))

    def _rows(self, embeddings: Embeddings) -> dict[Node, Tensor]:
        """Pick the needed nodes as unit rows, and add the fused ones."""
        given = by_node(embeddings)
        for node in self.recipe.nodes:
            if node not in given:
                raise RecipeError(
                    f"recipe {self.recipe.name}, term {self.recipe.providers(node)} needs node {node}, but only "
                    f"{', '.join(sorted(map(str, given))) or 'nothing'} is given. "
                    "Provide its embeddings, or drop the term."
                )
        rows = checked((node, given[node], self.widths[node.model]) for node in self.recipe.nodes)
        for node in (end for term in self.recipe.terms for end in term.ends if end.fused):
            rows[node] = unit(self.fusions[str(node)](torch.cat([rows[part] for part in node.parts], dim=1)))
        return rows

    def _value(self, term: Term, given: _Given) -> Scalar:
        """One term: the mean over its arrows."""
        compute = {
            "contrast": self._contrast,
            "relation": self._relation,
            "feature": self._feature,
            "gradient": self._gradient,
        }[term.verb]
        return torch.stack([compute(term, index, given) for index in range(len(term.arrows))]).mean()

    def _contrast(self, term: Term, index: int, given: _Given) -> Scalar:
        arrow = term.arrows[index]
        anchor, other = self._pair(term, arrow, None, given)
        logits = self._scale(term, term.name, term.scale, given) * anchor @ other.T
        if term.metric == "sigmoid":
            own: Tensor = self.biases[term.name]
            logits = logits + given.biases.get(arrow.anchor.model, own)
        return objectives.CONTRAST[term.metric](logits, given.positives)

    def _relation(self, term: Term, index: int, given: _Given) -> Scalar:
        anchor, other = self._pair(term, term.arrows[index], None, given)
        left, right = self._pair(term, term.like[index], None, given)
        logits = self._scale(term, term.name, term.scale, given) * anchor @ other.T
        target = self._scale(term, f"{term.name} like", term.like_scale, given) * left @ right.T
        return objectives.RELATION[term.metric](logits, target if term.mutual else target.detach())

    def _feature(self, term: Term, index: int, given: _Given) -> Scalar:
        anchor, other = self._pair(term, term.arrows[index], None, given)
        return objectives.FEATURE[term.metric](anchor, other if term.mutual else other.detach())

    def _gradient(self, term: Term, index: int, given: _Given) -> Scalar:
        """CLIP-KD's GD: both gradients of an arrow's InfoNCE, student against teacher."""
        scale = self._scale(term, term.name, term.scale, given)
        like_scale = self._scale(term, f"{term.name} like", term.like_scale, given)
        if term.reference:  # the published code divides by the scale where it means to multiply
            scale, like_scale = 1 / scale, 1 / like_scale
        student = self._pair(term, term.arrows[index], term.like[index], given)
        teacher = self._pair(term, term.like[index], None, given)
        ours = objectives.contrast_gradients(*student, scale, given.positives)
        theirs = objectives.contrast_gradients(*teacher, like_scale, given.positives)
        pairs = zip(ours, theirs, strict=True)
        return torch.stack([objectives.feature_mse(a, b if term.mutual else b.detach()) for a, b in pairs]).sum()

    def _pair(self, term: Term, arrow: Arrow, like: Arrow | None, given: _Given) -> tuple[Tensor, Tensor]:
        """Both ends of an arrow at one width: a student's end is mapped or stretched where widths differ."""
        width = self._joint_width(term, arrow, like)
        return self._fit(term, arrow.anchor, width, given), self._fit(term, arrow.other, width, given)

    def _fit(self, term: Term, node: Node, width: int, given: _Given) -> Tensor:
        rows = given.rows[node]
        if rows.shape[1] == width:
            return rows
        interpolated = term.adapter == "interpolate"
        return unit(objectives.stretch(rows, width) if interpolated else self.adapters[_adapter_key(node, width)](rows))

    def _scale(self, term: Term, name: str, scale: Scale, given: _Given) -> float | Tensor:
        if isinstance(scale, NewScale):
            stored: Tensor = self.scales[name]
            return stored if scale.raw else stored.exp()
        if not isinstance(scale, str):
            return scale
        if scale not in given.scales:
            raise RecipeError(
                f"recipe {self.recipe.name}, term {term} uses the logit scale of model '{scale}', which is not given."
                + did_you_mean(scale, given.scales)
            )
        return given.scales[scale]

    def _weights(self, values: Mapping[str, Tensor], rows: Mapping[Node, Tensor]) -> dict[str, float | Tensor]:
        """The weight of every term; those to be measured are measured at the first call and then kept."""
        fixed: dict[str, float | Tensor] = {}
        measured = [term for term in self.recipe.terms if isinstance(term.weight, GradNorm)]
        for term in self.recipe.terms:
            if not isinstance(term.weight, GradNorm):
                fixed[term.name] = term.weight
        if measured and bool(self.measured.isnan().any()):
            self._measure(measured, fixed, values, rows)
        found = self.measured.to(next(iter(values.values())).dtype)
        return fixed | {term.name: weight for term, weight in zip(measured, found, strict=True)}

    def _measure(
        self,
        measured: list[Term],
        fixed: Mapping[str, float | Tensor],
        values: Mapping[str, Tensor],
        rows: Mapping[Node, Tensor],
    ) -> None:
        leaves = [
            matrix for node, matrix in rows.items() if node.is_student and not node.fused and matrix.requires_grad
        ]
        if not leaves:
            raise RecipeError(f"recipe {self.recipe.name}: grad_norm weights are found at the first step of training.")
        known = _norm(torch.stack([weight * values[name] for name, weight in fixed.items()]).sum(), leaves)
        for place, term in enumerate(measured):
            own = _norm(values[term.name], leaves)
            if not own > 0:
                raise RecipeError(
                    f"recipe {self.recipe.name}, term {term} has no gradient; give it a number as weight."
                )
            assert isinstance(term.weight, GradNorm)
            self.measured[place] = term.weight.share * known / own


def _norm(value: Tensor, leaves: list[Tensor]) -> float:
    """The joint norm of a value's gradients with respect to ``leaves``."""
    gradients = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients if gradient is not None))


def _adapter_key(node: Node, width: int) -> str:
    """The name of a node's adapter to another width, ``SI_to_768``; views of a node share it."""
    return f"{node if node.fused else node.model + node.side}_to_{width}"
