"""The flags of Chinese-CLIP's cn_clip/training/params.py: what each takes, its default, what becomes of it here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipdistill.errors import ConfigError, did_you_mean

#: What follows each flag that is mapped; ``bool`` is a switch.
MAPPED: dict[str, type] = {
    "train-data": str,
    "val-data": str,
    "resume": str,
    "freeze-vision": bool,
    "vision-model": str,
    "text-model": str,
    "context-length": int,
    "batch-size": int,
    "accum-freq": int,
    "max-epochs": int,
    "max-steps": int,
    "valid-epoch-interval": int,
    "valid-step-interval": int,
    "lr": float,
    "beta1": float,
    "beta2": float,
    "eps": float,
    "wd": float,
    "warmup": int,
    "mask-ratio": float,
    "precision": str,
    "seed": int,
    "num-workers": int,
    "logs": str,
    "name": str,
    "log-interval": int,
    "save-epoch-frequency": int,
    "save-step-frequency": int,
    "distillation": bool,
    "teacher-model-name": str,
    "kd-loss-weight": float,
}
#: Flags that change no result here: what follows them, and why.
IDLE: dict[str, tuple[type, str]] = {
    "gather-with-grad": (bool, "gradients are always those of the whole batch here"),
    "skip-aggregate": (bool, "every pair of the whole batch is always compared here"),
    "use-bn-sync": (bool, "those of its models that open here have no batch norms"),
    "local-rank": (int, "torchrun says it in the environment"),
    "reset-optimizer": (bool, "a model folder holds no optimiser; a run starts with a new one"),
    "reset-data-offset": (bool, "a run starts at the beginning of its data"),
    "clip-weight-path": (str, "the weights are those of --resume"),
    "bert-weight-path": (str, "the weights are those of --resume"),
    "grad-checkpointing": (bool, "it saves memory and changes no result; activations are kept here"),
    "use-flash-attention": (bool, "it changes no result; torch takes the fastest attention it has"),
    "valid-batch-size": (int, "evaluation ranks all of --val-data at once"),
    "valid-num-workers": (int, "evaluation reads ahead by itself"),
    "report-training-batch-acc": (bool, "log.jsonl holds the loss of every term, the report holds retrieval"),
    "debug": (bool, "it makes logs longer there; log.jsonl holds every step that train.log_every asks for"),
    "skip-scheduler": (bool, "the training code there does not read it; the rate falls along a cosine, as there"),
}
#: Switches that cannot be honoured, with what to write instead.
REFUSED: dict[str, str] = {
    "use-augment": "AutoAugment is not drawn here. Leave it out and add augment.crop=[0.9,1] augment.ratio=[0.75,1.33] "
    "augment.flip=0.5 augment.colour=1, which crop and mirror as it does and change colours mildly.",
}
ALIASES = {"distllation": "distillation"}
_DEFAULTS = {
    "batch-size": 64,
    "accum-freq": 1,
    "max-epochs": 32,
    "valid-epoch-interval": 1,
    "save-epoch-frequency": 1,
    "wd": 0.2,
    "warmup": 500,
    "seed": 123,
    "precision": "amp",
    "logs": "logs",
    "name": "train_clip",
    "kd-loss-weight": 0.5,
    "vision-model": "ViT-B-16",
}


class Flags:
    """The flags that were given, each with its value, over Chinese-CLIP's defaults."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given

    def __getitem__(self, name: str) -> Any:
        """The value of a flag: the given one, the default, or None."""
        return self.given.get(name, _DEFAULTS.get(name))

    def __contains__(self, name: str) -> bool:
        return name in self.given

    @property
    def rate(self) -> float:
        """The learning rate, whose default hangs on the picture tower."""
        usual = 4e-4 if "ViT-L-14" in self["vision-model"] else 5e-4
        return float(self.given.get("lr", usual))


def read_flags(words: Sequence[str]) -> tuple[Flags, list[str]]:
    """Separate flags, with hyphens or underscores and either spelling of distillation, from overrides.

    Raises:
        ConfigError: a flag is unknown, or what follows it is not what it takes.
    """
    kinds = MAPPED | {name: kind for name, (kind, _) in IDLE.items()} | dict.fromkeys(REFUSED, bool)
    given: dict[str, Any] = {}
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            if "=" not in word:
                raise ConfigError(f"'{word}' is neither a flag such as --train-data=FOLDER nor an override KEY=VALUE.")
            overrides.append(word)
            continue
        flag, equals, text = word.partition("=")
        name = flag.removeprefix("--").replace("_", "-")
        name = ALIASES.get(name, name)
        if name not in kinds:
            raise ConfigError(f"unknown flag '{flag}' of Chinese-CLIP.{did_you_mean(name, kinds)}")
        if kinds[name] is bool and equals:
            raise ConfigError(f"{word}: {flag} is a switch and takes no value.")
        if kinds[name] is not bool and not equals:
            text = rest.pop(0) if rest and not rest[0].startswith("--") else ""
        given[name] = True if kinds[name] is bool else _value(flag, kinds[name], text)
    return Flags(given), overrides


def _value(flag: str, kind: type, text: str) -> Any:
    expected = {int: "a whole number", float: "a number", str: "a value"}[kind]
    try:
        if text.strip():
            return kind(text)
    except ValueError:
        pass
    raise ConfigError(f"{flag}: expected {expected}, found {repr(text) if text else 'nothing'}.")
