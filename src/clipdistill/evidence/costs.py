"""What a run was measured to cost on some machine, as plain data that another machine can plan with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipdistill.config import RunConfig
from clipdistill.errors import ConfigError


@dataclass(frozen=True)
class Pass:
    """What embedding the data once with a live teacher costs for one sample: seconds, and bytes of the store."""

    seconds: float
    bytes: float


@dataclass(frozen=True)
class Measured:
    """One run on one machine.

    ``about`` is what was measured, ``machine`` where. ``seconds`` and ``peaks`` (bytes) hold a list for each part, one
    value for each of ``sizes``: ``student`` and ``teacher T`` are forward passes, ``backward`` goes from the student's
    rows to its gradients. Bytes alone: ``kept`` is what the student's forward pass leaves for the backward one, which
    is ``again`` where there are gradients already. ``losses`` are ``[rows, seconds, peak bytes]`` of both ways.

    ``held`` are the bytes that a process holds throughout, by what they are of, and those of a ``checkpoint``.
    ``sample`` are the bytes of one sample: of its ``inputs`` to the models, of their copies where micro-batches are
    ``cut``, of its ``picture`` and its ``stored`` rows as they are read, and of what processes exchange of it
    (``exchanged``). ``passes`` are those of live teachers that a store could replace.
    """

    about: dict[str, Any]
    machine: dict[str, Any]
    samples: int
    sizes: list[int]
    seconds: dict[str, list[float]]
    peaks: dict[str, list[int]]
    losses: list[list[float]]
    read_seconds: float
    update_seconds: float
    held: dict[str, int]
    sample: dict[str, float]
    passes: dict[str, Pass]

    @classmethod
    def read(cls, file: Path) -> Measured:
        """Read what ``plan --json`` printed.

        Raises:
            ConfigError: it cannot be read, or is something else.
        """
        try:
            found = dict(json.loads(file.read_text(encoding="utf-8"))["measured"])
            passes = {letter: Pass(**cost) for letter, cost in found.pop("passes").items()}
            return cls(**found, passes=passes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"--speed-of {file}: expected what 'clipdistill plan RUN.yaml --json' of this version printed, found "
                f"{type(error).__name__}: {error}."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def check_about(self, config: RunConfig) -> None:
        """Refuse to plan another run than the one that was measured; lengths and batches may differ.

        Raises:
            ConfigError: recipe, student, teachers or optimiser differ; names them.
        """
        wanted = about(config)
        if other := [key for key, value in wanted.items() if self.about.get(key) != value]:
            raise ConfigError(
                f"--speed-of is of a run with another {' and '.join(other)}: {other[0]} was {self.about.get(other[0])} "
                f"and is {wanted[other[0]]} here. Measure this run on that machine: clipdistill plan RUN.yaml --json"
            )


def about(config: RunConfig) -> dict[str, Any]:
    """What of a run the costs of a sample depend on."""
    run: dict[str, Any] = json.loads(config.model_dump_json())
    return {key: run[key] for key in ("recipe", "student", "teachers")} | {
        key: run["train"][key] for key in ("optimizer", "ema")
    }


def check_plannable(config: RunConfig) -> None:
    """Refuse what the model of costs does not know.

    Raises:
        ConfigError: the run has stages, masks, unpaired data or chosen batches.
    """
    found = {
        "stages": (config.stages, "plan each stage as a run of its own"),
        "prune": (config.prune, "plan with prune=null; masks add a little to a student of the teacher's size"),
        "unpaired": (config.unpaired, "plan without it, and with it in the paired data's place"),
        "batches.select": (config.batches.select, "its super-batches go through the student, too"),
    }
    for key, (value, advice) in found.items():
        if value:
            raise ConfigError(f"a run with {key} cannot be planned: {advice}.")
