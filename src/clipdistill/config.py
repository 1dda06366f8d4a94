"""A run: YAML and ``key.sub=value`` overrides become one validated, immutable object.

Durations are written in any unit and turned into steps in one place: ``200``, ``"5%"``, ``"2 epochs"``,
``"100000 samples"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from clipdistill.data.views import Augmentation
from clipdistill.errors import ConfigError, did_you_mean, unreadable_yaml
from clipdistill.models.presets import StudentSpec

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(%|steps?|epochs?|samples?)?")
#: What a teacher is called that is the student's own running average.
SELF = "self"
LENGTHS = ("steps", "epochs", "samples")  # of which a run says one


@dataclass(frozen=True)
class Plan:
    """How long the whole run is: the yardstick that durations are measured with."""

    steps: int
    batch_size: int
    samples: int
    accumulate: int = 1

    @property
    def steps_per_epoch(self) -> float:
        """One pass over the data, which drops the incomplete last batch; a step may go on in the next one."""
        return self.samples // (self.batch_size // self.accumulate) / self.accumulate


@dataclass(frozen=True)
class Duration:
    """A length of time in steps, epochs, samples or percent of the run."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, value: Any) -> Duration:
        """Read ``200``, ``"5%"``, ``"2 epochs"`` or ``"1000 samples"``; a bare number counts steps."""
        if isinstance(value, Duration):
            return value
        match = _DURATION.fullmatch(str(value).strip())
        if match is None or isinstance(value, bool):
            raise ValueError(f"expected a duration such as 200, '5%', '2 epochs' or '1000 samples', found {value!r}")
        amount, unit = float(match[1]), (match[2] or "step").rstrip("s")
        if unit == "step" and not amount.is_integer():
            raise ValueError(f"steps are whole, found {value!r}; for a share of the run write '{amount * 100:g}%'")
        return cls(amount, unit)

    def steps(self, plan: Plan) -> int:
        """The same length in steps of ``plan``, rounded to the nearest."""
        per_unit = {"step": 1.0, "%": plan.steps / 100, "epoch": plan.steps_per_epoch, "sample": 1 / plan.batch_size}
        return round(self.amount * per_unit[self.unit])

    def __str__(self) -> str:
        amount = f"{self.amount:.12f}".rstrip("0").rstrip(".")
        return amount + {"step": "", "%": "%"}.get(self.unit, f" {self.unit}s")


Length = Annotated[Duration, BeforeValidator(Duration.parse), PlainSerializer(str)]


def _duration(text: str) -> Any:
    return Field(default_factory=lambda: Duration.parse(text))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class AugmentConfig(_Section):
    """How views are drawn; see ``clipdistill.data.views.Augmentation`` for the numbers' meaning."""

    crop: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = Field(default=0.0, ge=0, le=1)
    colour: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _ranges(self) -> AugmentConfig:
        if not 0 < self.crop[0] <= self.crop[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"crop is a range within (0, 1], ratio one above 0; found {self.crop} and {self.ratio}")
        return self


class TrainConfig(_Section):
    """The optimisation: how long, how fast, on what."""

    steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    samples: int | None = Field(None, gt=0)
    batch_size: int = Field(256, ge=2)
    micro_batch: int | None = Field(None, ge=1)
    accumulate: int = Field(1, ge=1)

    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = Field(1e-3, gt=0)
    muon_lr: float = Field(0.02, gt=0)
    muon_momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    schedule: Literal["constant-linear", "cosine", "linear"] = "constant-linear"
    warmup: Length = _duration("5%")
    decay: Length = _duration("40%")
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    clip_norm: float | None = Field(1.0, gt=0)
    ema: float | None = Field(None, gt=0, lt=1)

    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    workers: int = Field(1, ge=0)
    max_broken: int = Field(100, ge=0)
    log_every: Length = _duration("10")
    checkpoint_every: Length = _duration("10%")
    keep_checkpoints: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            hint = f"train.{given[0]}=null takes one away" if given else "for instance train.epochs=10"
            raise ValueError(f"give exactly one of steps, epochs and samples, found {found}: {hint}")
        return self

    def plan(self, samples: int) -> Plan:
        """Count the steps of this run on ``samples`` pictures.

        Raises:
            ConfigError: the data do not fill one batch.
        """
        rows = self.batch_size * self.accumulate
        if samples < rows:
            raise ConfigError(
                f"one step takes {rows} samples (train.batch_size x train.accumulate), the data hold {samples}. "
                f"Lower train.batch_size."
            )
        plan = Plan(1, rows, samples, self.accumulate)
        if self.steps is not None:
            steps = self.steps
        elif self.epochs is not None:
            steps = round(self.epochs * plan.steps_per_epoch)
        else:
            steps = round((self.samples or 0) / rows)
        return replace(plan, steps=max(steps, 1))


class EvaluateConfig(_Section):
    """What the student is tried on, during the run and at its end: data URIs."""

    retrieval: str | None = None
    image_retrieval: str | None = None
    zeroshot: str | None = None
    every: Length | None = None

    @model_validator(mode="after")
    def _data_for_every(self) -> EvaluateConfig:
        if self.every is not None and not any(self.uris().values()):
            raise ValueError("evaluate.every is given, but no data: add evaluate.retrieval=URI, for instance")
        return self

    def uris(self) -> dict[str, str | None]:
        """The data URI of each task."""
        return {"retrieval": self.retrieval, "image_retrieval": self.image_retrieval, "zeroshot": self.zeroshot}


class PruneConfig(_Section):
    """Automatic weight inheritance: how much of each tower's layers goes, and when; see ``models.prune``."""

    sparsity: float = Field(gt=0, lt=1)
    warmup: Length = _duration("20%")
    at: Length = _duration("40%")
    layers: bool = False


class BankConfig(_Section):
    """Stored teacher rows beside the batch's: ``@bank`` and ``@classes``; see ``teachers.bank``."""

    draw: Literal["random", "queue", "mined"] = "mined"
    size: int = Field(default=1024, gt=0)
    neighbours: int = Field(default=16, gt=0)
    per_class: int = Field(default=100, gt=0)


class BatchesConfig(_Section):
    """What makes up a batch: rows chosen from a larger one, groups of neighbours; see ``training.selection``."""

    select: Literal["learnability", "hard"] | None = None
    super_batch: int = Field(default=5, ge=2)
    neighbours: int = Field(default=1, ge=1)
    duplicates: float | None = Field(default=None, gt=0, le=1)


class StageConfig(_Section):
    """One stage of a run: its changes to the run's ``recipe``, ``student``, ``train``, ``prune``, ``bank`` and
    ``batches``; see ``training.stages``.
    """

    recipe: Any = None
    bank: dict[str, Any] = Field(default_factory=dict)
    batches: dict[str, Any] = Field(default_factory=dict)
    student: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    prune: dict[str, Any] = Field(default_factory=dict)


class RunConfig(_Section):
    """Everything one run depends on. Written into the run folder as ``config.yaml``, every default spelled out."""

    recipe: Any = "best"
    data: str
    unpaired: list[str] = Field(default_factory=list)
    teachers: dict[str, str] = Field(default_factory=dict)
    student: StudentSpec = StudentSpec()
    augment: AugmentConfig | Literal["whole", "stored"] | None = None
    bank: BankConfig = BankConfig()
    batches: BatchesConfig = BatchesConfig()
    prune: PruneConfig | None = None
    train: TrainConfig
    stages: list[StageConfig] = Field(default_factory=list)
    evaluate: EvaluateConfig = EvaluateConfig()
    track: Annotated[list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)] = []
    seed: int = Field(0, ge=0)
    out: str

    @model_validator(mode="after")
    def _letters(self) -> RunConfig:
        for letter in self.teachers:
            if not re.fullmatch(r"[A-RT-Z]", letter):
                raise ValueError(f"a teacher is called by one capital letter other than S, found teachers.{letter}")
        return self

    @model_validator(mode="after")
    def _self_teacher(self) -> RunConfig:
        if SELF in self.teachers.values():
            if self.train.ema is None:
                raise ValueError("a teacher called self is the student's running average: add train.ema=0.999")
            if self.prune is not None:
                raise ValueError("a teacher called self cannot follow a student that is pruned: drop one of the two")
        return self

    @model_validator(mode="after")
    def _pruned_student(self) -> RunConfig:
        if self.prune is None:
            return self
        plain = StudentSpec(pretrained=self.student.pretrained)
        if sized := [name for name, value in self.student if value != getattr(plain, name)]:
            raise ValueError(
                "prune finds the student's sizes and starts from a teacher's copy or student.pretrained; "
                f"found also student.{', student.'.join(sized)}"
            )
        if not (self.teachers or self.student.pretrained):
            raise ValueError("prune needs a model to start from: found neither a teacher nor student.pretrained")
        return self

    def to_yaml(self) -> str:
        """Spell the run out so that :func:`load_run` reads it back equal."""
        return yaml.safe_dump(_plain(self.model_dump()), sort_keys=False, allow_unicode=True)


def load_run(path: Path | str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file (optional) and apply ``key.sub=value`` overrides, the last one winning.

    Raises:
        ConfigError: the file is missing or no YAML, a key is unknown, a value does not fit; names file and key.
    """
    data = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        apply_override(data, override)
    return make_run(data, str(path) if path is not None else "the command line")


def make_run(data: Mapping[str, Any], where: str = "the run") -> RunConfig:
    """Validate plain data into a run; see :func:`load_run`."""
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(item, data) for item in error.errors())) from error


def augmentation(overrides: Sequence[str]) -> Augmentation:
    """Read ``augment.crop=[0.5,1]`` and the like, as a run's configuration does; raises ConfigError."""
    data: dict[str, Any] = {}
    for override in overrides:
        apply_override(data, override)
    if unknown := [key for key in data if key != "augment"]:
        raise ConfigError(f"unknown key '{unknown[0]}': here only augment.KEY=VALUE can be set.")
    try:
        section = AugmentConfig.model_validate(data.get("augment", {}))
    except ValidationError as error:
        found = [{**item, "loc": ("augment", *item["loc"])} for item in error.errors()]
        raise ConfigError("; ".join(_explain(item, data) for item in found)) from error
    return Augmentation(**section.model_dump())


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(_no_run_file(path))
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(unreadable_yaml(path, error)) from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys such as recipe, data and train, found {data!r:.60}.")
    return data


def _no_run_file(path: Path) -> str:
    if path.is_dir():
        return f"{path} is a folder, not a run file. Pictures to train on are given as data={path}."
    hint = did_you_mean(path.name, [file.name for file in path.parent.glob("*.y*ml")])
    return f"there is no run file {path}.{hint} clipdistill init writes one; or give every key as key=value."


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key; the value is read as YAML, so numbers, lists and null are what they look like."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"'{override}' is no override. Write key=value, for instance train.epochs=10.")
    try:
        value = yaml.safe_load(text) if text.strip() else None
    except yaml.YAMLError as error:
        raise ConfigError(f"override {key}: the value {text!r} is not readable: {error}") from error
    # A URI such as 'a: b' is text, not a mapping; only braces make a mapping on the command line. Nor has it comments:
    # 'photos #1' is a folder.
    if isinstance(value, dict) and not text.lstrip().startswith("{"):
        value = text
    elif isinstance(value, (str, type(None))) and "#" in text and not text.lstrip().startswith(("'", '"')):
        value = text.strip()
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"override {key}: '{parent}' is a value, it has no keys below it.")
    data[leaf] = value


def _explain(item: Any, data: Mapping[str, Any]) -> str:
    """Turn one of pydantic's findings into: key, what was found, what was expected."""
    path = [str(part) for part in item["loc"]]
    key = ".".join(path)
    if item["type"] == "extra_forbidden":
        return f"unknown key '{key}'." + did_you_mean(path[-1], _known_keys(path[:-1]))
    if item["type"] == "missing":
        return f"the key '{key}' is missing: {_MISSING.get(key, 'it has no default')}"
    if item["type"] in ("model_type", "model_attributes_type", "dict_type"):
        example = _EXAMPLES.get(key, f"{key}.name=value")
        return f"{key} has keys of its own, found {item['input']!r}; write for instance {example}"
    message = _PLAIN.get(item["type"]) or item["msg"].removeprefix("Value error, ")
    return f"{key or 'run'}: {message}" + (f" (found {item['input']!r})" if path and "found" not in message else "")


#: What pydantic says of a text in more words.
_PLAIN = {"int_parsing": "expected a whole number", "float_parsing": "expected a number"}
_EXAMPLES = {
    "student": "student.preset=vit-tiny-16",
    "train": "train.epochs=10",
    "teachers": "teachers.T=MODEL",
    "augment": "augment.flip=0.5",
    "evaluate": "evaluate.retrieval=DATA",
}
_MISSING = {
    "data": "name the pictures to train on, for instance data=FOLDER",
    "train": "say how long to train, for instance train.epochs=10",
    "out": "name the folder to write to, for instance out=runs/first",
}


def _known_keys(path: Sequence[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in path:
        field = model.model_fields.get(part)
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not sections:
            return []
        model = sections[0]
    return list(model.model_fields)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
