"""The interaction graph: a recipe made computable, a pure function of ``{node: matrix}``.

Legend: ``B`` rows, ``D`` width of a node, ``K`` kinds of group keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clipdistill.algebra import objectives
from clipdistill.algebra.nodes import Arrow, Node
from clipdistill.algebra.objectives import Scalar
from clipdistill.algebra.recipe import NewScale, Recipe, Scale, Term
from clipdistill.errors import RecipeError, did_you_mean

#: CLIP's limit on the logit scale: exp(log scale) <= 100.
MAX_SCALE = 100.0
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
    created exactly when some term pairs them; fresh logit scales; the bias of sigmoid terms.

    Args:
        recipe: what to compute.
        widths: joint width by model letter, ``{"S": 256, "T": 768}``.

    Raises:
        RecipeError: a term needs a model nobody gave a width for, or pairs two teachers of different width.
    """

    def __init__(self, recipe: Recipe, widths: Mapping[str, int]) -> None:
        super().__init__()
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
        self.log_scales = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        for term in recipe.terms:
            self._furnish(term)

    def _furnish(self, term: Term) -> None:
        """Create the parameters that ``term`` adds."""
        for arrow in (*term.arrows, *term.like):
            key = self._adapter_key(arrow, term)
            if key and key not in self.adapters:
                student, foreign = _ends(arrow)
                self.adapters[key] = nn.Linear(self.widths[student.model], self.widths[foreign.model], bias=False)
        for name, scale in ((term.name, term.scale), (f"{term.name} like", term.like_scale)):
            if isinstance(scale, NewScale):
                self.log_scales[name] = nn.Parameter(torch.tensor(math.log(scale.initial)))
        if term.metric == "sigmoid":
            self.biases[term.name] = nn.Parameter(torch.tensor(INITIAL_BIAS))

    def _adapter_key(self, arrow: Arrow, term: Term) -> str | None:
        """The name of the adapter an arrow needs, ``SI_to_768``, or None where the widths agree."""
        student, foreign = _ends(arrow)
        if self.widths[student.model] == self.widths[foreign.model]:
            return None
        if not student.is_student:
            raise RecipeError(
                f"recipe {self.recipe.name}, term {term} pairs {arrow.anchor} "
                f"({self.widths[arrow.anchor.model]} wide) with {arrow.other} ({self.widths[arrow.other.model]} wide): "
                "only a student node can be adapted to another width."
            )
        return f"{student.model}{student.side}_to_{self.widths[foreign.model]}"

    def forward(
        self,
        embeddings: Mapping[str, Tensor] | Mapping[Node, Tensor],
        scales: Mapping[str, float | Tensor],
        positives: Int[Tensor, "B"] | Int[Tensor, "B K"] | None = None,
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
        rows = self._rows(embeddings)
        same = positive_pairs(positives, next(iter(rows.values())))
        terms = {term.name: self._value(term, rows, scales, same, biases or {}) for term in self.recipe.terms}
        total = torch.stack([term.weight * terms[term.name] for term in self.recipe.terms]).sum()
        return Losses(total, terms)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the learnable scales within [1, 100], as CLIP does after every step."""
        for parameter in self.log_scales.values():
            parameter.clamp_(0, math.log(MAX_SCALE))

    def _rows(self, embeddings: Mapping[str, Tensor] | Mapping[Node, Tensor]) -> dict[Node, Float[Tensor, "B D"]]:
        """Pick the needed nodes, check their shapes, and normalise them in at least float32."""
        given = {node if isinstance(node, Node) else Node.parse(node): rows for node, rows in embeddings.items()}
        rows: dict[Node, Tensor] = {}
        for node in self.recipe.nodes:
            if node not in given:
                raise RecipeError(
                    f"recipe {self.recipe.name}, term {self.recipe.providers(node)} needs node {node}, but only "
                    f"{', '.join(sorted(map(str, given))) or 'nothing'} is given. "
                    "Provide its embeddings, or drop the term."
                )
            _check_rows(node, given[node], self.widths[node.model], next(iter(rows.values()), None))
            rows[node] = _unit(given[node])
        return rows

    def _value(
        self,
        term: Term,
        rows: Mapping[Node, Tensor],
        scales: Mapping[str, float | Tensor],
        same: Bool[Tensor, "B B"],
        biases: Mapping[str, Tensor],
    ) -> Scalar:
        """One term: the mean over its arrows."""
        values = []
        for index, arrow in enumerate(term.arrows):
            anchor, other = self._pair(arrow, rows, term)
            if term.verb == "feature":
                target = other if term.mutual else other.detach()
                values.append(objectives.FEATURE[term.metric](anchor, target))
                continue
            logits = self._scale(term, term.name, term.scale, scales) * anchor @ other.T
            if term.verb == "contrast":
                logits = logits + self._bias(term, arrow, biases)
                values.append(objectives.CONTRAST[term.metric](logits, same))
            else:
                left, right = self._pair(term.like[index], rows, term)
                target = self._scale(term, f"{term.name} like", term.like_scale, scales) * left @ right.T
                values.append(objectives.RELATION[term.metric](logits, target if term.mutual else target.detach()))
        return torch.stack(values).mean()

    def _pair(self, arrow: Arrow, rows: Mapping[Node, Tensor], term: Term) -> tuple[Tensor, Tensor]:
        """Both ends of an arrow at one width: the student's end goes through its adapter where widths differ."""
        anchor, other = rows[arrow.anchor], rows[arrow.other]
        key = self._adapter_key(arrow, term)
        if key is None:
            return anchor, other
        if arrow.anchor.is_student:
            return F.normalize(self.adapters[key](anchor), dim=1), other
        return anchor, F.normalize(self.adapters[key](other), dim=1)

    def _scale(self, term: Term, name: str, scale: Scale, scales: Mapping[str, float | Tensor]) -> float | Tensor:
        if isinstance(scale, NewScale):
            learned: Tensor = self.log_scales[name].exp()
            return learned
        if not isinstance(scale, str):
            return scale
        if scale not in scales:
            raise RecipeError(
                f"recipe {self.recipe.name}, term {term} uses the logit scale of model '{scale}', which is not given."
                + did_you_mean(scale, scales)
            )
        return scales[scale]

    def _bias(self, term: Term, arrow: Arrow, biases: Mapping[str, Tensor]) -> float | Tensor:
        if term.metric != "sigmoid":
            return 0.0
        own: Tensor = self.biases[term.name]
        return biases.get(arrow.anchor.model, own)


def positive_pairs(
    groups: Int[Tensor, "keys"] | Int[Tensor, "keys K"] | None, like: Float[Tensor, "B D"]
) -> Bool[Tensor, "B B"]:
    """Which rows are positives of which: the diagonal, and rows that agree in any column of ``groups``."""
    same = torch.eye(len(like), dtype=torch.bool, device=like.device)
    if groups is None:
        return same
    if len(groups) != len(like):
        raise RecipeError(
            f"positives has {len(groups)} rows, the embeddings have {len(like)}: expected one key per row."
        )
    keys = groups if groups.ndim == 2 else groups[:, None]
    for column in keys.T:
        same = same | ((column[:, None] == column[None, :]) & (column >= 0)[:, None])
    return same


def _ends(arrow: Arrow) -> tuple[Node, Node]:
    """An arrow's ends with the student's first, if it has one."""
    return (arrow.anchor, arrow.other) if arrow.anchor.is_student else (arrow.other, arrow.anchor)


def _check_rows(node: Node, rows: Tensor, width: int, before: Tensor | None) -> None:
    if rows.ndim != 2 or rows.shape[1] != width:
        raise RecipeError(f"node {node}: expected shape [B, {width}], found {list(rows.shape)}.")
    if before is not None and len(rows) != len(before):
        raise RecipeError(
            f"node {node} has {len(rows)} rows, another node has {len(before)}: all need one row per sample."
        )


def _unit(rows: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Unit rows; half precision is lifted to float32 first, double stays double."""
    return F.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=1)
