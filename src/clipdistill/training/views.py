"""Which views a run shows its student: those of its stored teachers, or its own."""

from __future__ import annotations

from collections.abc import Mapping

from clipdistill.algebra.nodes import Node
from clipdistill.config import AugmentConfig, RunConfig
from clipdistill.data.views import Augmentation, Drawn, Views
from clipdistill.errors import ConfigError
from clipdistill.teachers.manifest import ViewPlan
from clipdistill.teachers.stored import StoredTeacher


def choose_views(
    config: RunConfig, stored: Mapping[str, StoredTeacher], asked: list[Node]
) -> tuple[RunConfig, Views | None]:
    """The views of the run, and the run with ``augment`` spelled out; None shows pictures whole.

    A store whose picture rows are asked for decides, since its rows are those of certain views, unless the run says
    that any views will do (``?views=any``).

    Raises:
        ConfigError: the run asks for other views than a store holds, or two stores differ.
    """
    bound = {
        letter: teacher
        for letter, teacher in stored.items()
        if not teacher.choices.any_views and any(node.model == letter and node.side == "I" for node in asked)
    }
    for letter, teacher in bound.items():
        _check(config, letter, teacher, next(iter(bound.values())))
    if bound:
        teacher = next(iter(bound.values()))
        return config.model_copy(update={"augment": _spelled(teacher.store.manifest.views)}), teacher.store.views
    augment = AugmentConfig() if config.augment is None else config.augment
    if augment == "stored":
        raise ConfigError("augment=stored needs a stored teacher whose picture rows the recipe uses.")
    config = config.model_copy(update={"augment": augment})
    return config, None if augment == "whole" else Drawn(_augmentation(augment), config.seed)


def _check(config: RunConfig, letter: str, teacher: StoredTeacher, first: StoredTeacher) -> None:
    plan = teacher.store.manifest.views
    if plan != first.store.manifest.views:
        raise ConfigError(
            f"teachers.{letter}={config.teachers[letter]} holds {_told(plan)}, teachers.{first.letter} holds "
            f"{_told(first.store.manifest.views)}: a picture can be shown one way only. Embed with the same views, or "
            "add ?views=any to one of them."
        )
    asked = config.augment
    if asked is not None and _spelled(plan) != asked:
        wanted = asked if isinstance(asked, str) else f"views drawn by {_told_drawing(_augmentation(asked))}"
        raise ConfigError(
            f"augment asks for {wanted}, but teachers.{letter}={config.teachers[letter]} holds {_told(plan)}. Leave "
            "augment out to train on the store's views, embed again with these, or write "
            f"teachers.{letter}='{config.teachers[letter]}?views=any' to train on views the teacher did not see."
        )


def _spelled(plan: ViewPlan) -> AugmentConfig | str:
    """A store's views as a run would ask for them."""
    if not plan.count:
        return "whole"
    if plan.explicit or plan.augmentation is None:
        return "stored"
    return AugmentConfig(**vars(plan.augmentation))


def _told(plan: ViewPlan) -> str:
    if not plan.count:
        return "whole pictures"
    if plan.augmentation is None:
        return f"{plan.count} views of each picture that it has written down"
    return f"{plan.count} views of each picture drawn by {_told_drawing(plan.augmentation)}, seed {plan.seed}"


def _told_drawing(augmentation: Augmentation) -> str:
    return ", ".join(f"{name} {value}" for name, value in vars(augmentation).items())


def _augmentation(augment: AugmentConfig | str) -> Augmentation:
    assert isinstance(augment, AugmentConfig)
    return Augmentation(**augment.model_dump())
