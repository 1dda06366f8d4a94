"""At which width rows meet, and which of them a learned map brings there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from clipdistill.algebra.nodes import Arrow, Node
from clipdistill.algebra.term import Term
from clipdistill.errors import RecipeError


@dataclass(frozen=True)
class Widths:
    """The joint width of each model, by letter; ``recipe`` is named in errors."""

    of: Mapping[str, int]
    recipe: str

    def joint(self, term: Term, arrow: Arrow, like: tuple[Arrow, ...] = ()) -> int:
        """The width at which an arrow's ends meet: a teacher's if there is one, since only students are adapted.

        Gradients live where rows do, so those of the student meet those of the teacher (``like``) at the teacher's
        width. CLIP-Embed-KD's ``adapter: teacher`` meets at the student's.

        Raises:
            RecipeError: two teachers of different width meet.
        """
        nodes = [arrow.anchor, *arrow.other.layers]
        if term.adapter == "teacher":
            return self.of[next((node for node in nodes if node.is_student), nodes[0]).model]
        if term.verb == "gradient":
            nodes += [node for target in like for node in (target.anchor, target.other)]
        fixed = [node for node in nodes if not node.is_student]
        if len({self.of[node.model] for node in fixed}) > 1:
            sizes = " with ".join(f"{node} ({self.of[node.model]} wide)" for node in fixed)
            raise RecipeError(
                f"recipe {self.recipe}, term {term} pairs {sizes}: only a student node can be adapted to another width."
            )
        return self.of[fixed[0].model if fixed else arrow.anchor.model]

    def meetings(self, term: Term) -> Iterator[tuple[Node, int]]:
        """Every node that an arrow of a term brings together with another, with the width at which they meet."""
        if term.verb == "classify":
            return
        for index, arrow in enumerate(term.arrows):
            like = term.likes(index)
            for meeting in (arrow, *like):
                width = self.joint(term, meeting, like)
                yield from ((node, width) for node in (meeting.anchor, *meeting.other.layers))

    def is_mapped(self, term: Term, node: Node, width: int) -> bool:
        """Whether a learned map brings a node to a width: a student where widths differ; CLIP-Embed-KD's always."""
        if term.adapter == "teacher":
            return not node.is_student
        return term.adapter == "linear" and self.of[node.model] != width

    def check_confidence(self, term: Term) -> None:
        """A confidence is a measure, not a loss: no map could learn to make it.

        Raises:
            RecipeError: its ends are of different width.
        """
        arrow = term.confidence
        if arrow is None or self.of[arrow.anchor.model] == self.of[arrow.other.model]:
            return
        raise RecipeError(
            f"recipe {self.recipe}, term {term}: confidence {arrow} compares rows {self.of[arrow.anchor.model]} and "
            f"{self.of[arrow.other.model]} wide. Both ends need one width, as TI>TT has."
        )


def adapter_key(node: Node, width: int) -> str:
    """The name of a node's adapter to another width, ``SI_to_768``; views of a node share it."""
    return f"{node if node.fused else node.model + node.side}_to_{width}"
