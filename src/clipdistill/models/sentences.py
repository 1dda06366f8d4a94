"""Folders of sentence-transformers, read and written without that package: what comes around the transformer.

``modules.json`` lists the parts in order: Transformer, Pooling, then any of Dense and Normalize.

Shapes: ``B`` rows, ``L`` tokens, ``W`` width of the transformer, ``D`` width of a row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clipdistill.errors import ModelError, did_you_mean
from clipdistill.models.torch_files import read_tensors

_MODULES, _PROMPTS, _LENGTH = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
#: What older folders call the last, in the order in which they are looked for.
_LENGTHS = (
    _LENGTH,
    *(
        f"sentence_{kind}_config.json"
        for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    ),
)
_TYPE = "sentence_transformers.models."
#: By the names of their settings, in the order in which their rows are joined.
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
}
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
_EXPECTED = "Expected Transformer, Pooling, then Dense or Normalize"


@dataclass(frozen=True)
class Sentences:
    """What a folder says about its model: the transformer's ``folder`` and what is done before and after it.

    ``pooling`` are names of :data:`POOLINGS`; empty for a transformer that pools for itself. ``steps`` follow it:
    (``Dense`` or ``Normalize``, folder).
    """

    folder: Path
    pooling: tuple[str, ...] = ("mean",)
    steps: tuple[tuple[str, Path], ...] = ()
    longest: int | None = None
    lower_case: bool = False
    prompt: str = ""


class SentenceModel(nn.Module):
    """A transformer, the pooling of its last hidden states, and what follows."""

    def __init__(self, transformer: Any, pooling: Sequence[str], steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.transformer = transformer
        self.pooling = tuple(pooling)
        self.steps = nn.ModuleList(steps)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Embed captions: ``{"input_ids": [B, L], "attention_mask": [B, L], ...} -> [B, D]``."""
        output = self.transformer(**tokens)
        if self.pooling:
            rows = pool(output.last_hidden_state, tokens["attention_mask"], self.pooling)
        else:
            rows = output.text_embeds if "text_embeds" in output else output.pooler_output
        for step in self.steps:
            rows = step(rows)
        return rows


def pool(states: Tensor, mask: Tensor, pooling: Sequence[str]) -> Tensor:
    """Turn hidden states into rows: ``[B, L, W]`` and ``[B, L]`` to ``[B, W]``, joined where there are several.

    ``cls`` is the first token's state; the others are over the tokens that are no padding: their greatest value, their
    mean, and their sum by the root of their number.
    """
    weights = mask[:, :, None].to(states.dtype)
    total, number = (states * weights).sum(dim=1), weights.sum(dim=1).clamp(min=1e-9)
    hidden = weights == 0
    found = {
        "cls": lambda: states[torch.arange(len(mask), device=mask.device), mask.long().argmax(dim=1)],
        "max": lambda: states.masked_fill(hidden, -torch.inf).amax(dim=1),
        "mean": lambda: total / number,
        "mean_sqrt_len_tokens": lambda: total / number.sqrt(),
    }
    return torch.cat([found[name]() for name in pooling], dim=1)


class Dense(nn.Module):
    """A linear layer with an activation."""

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, rows: Tensor) -> Tensor:
        """``[B, D]`` to the layer's own width."""
        out: Tensor = self.activation(self.linear(rows))
        return out


class Normalize(nn.Module):
    """Rows of unit length."""

    def forward(self, rows: Tensor) -> Tensor:
        """``[B, D] -> [B, D]``."""
        return F.normalize(rows, dim=1)


def is_layout(folder: Path) -> bool:
    """Tell whether a folder has the layout of sentence-transformers."""
    return (folder / _MODULES).is_file()


def pooled_by_itself(layout: Sentences) -> Sentences:
    """Return the layout of a transformer that gives one row for a caption; raises :class:`ModelError` for more."""
    if layout.steps:
        raise ModelError(f"{layout.folder}: its transformer gives rows of its own, which are not pooled again.")
    return replace(layout, pooling=())


def read(folder: Path) -> Sentences:
    """Read what a folder does around its transformer; raises :class:`ModelError` for a part that is not known."""
    parts = [(str(part["type"]).rpartition(".")[2], folder / str(part["path"])) for part in _parts(folder)]
    kinds = [kind for kind, _ in parts]
    unknown = [kind for kind in kinds[2:] if kind not in ("Dense", "Normalize")]
    if kinds[:2] != ["Transformer", "Pooling"] or unknown:
        raise ModelError(
            f"{folder / _MODULES} lists {', '.join(kinds) or 'nothing'}. {_EXPECTED}. "
            f"{'Give the folder of the CLIP model in it. ' if 'CLIPModel' in kinds else ''}"
            "Models with other parts are embedded with their own package, and their rows imported."
        )
    lengths = next((path for name in _LENGTHS if (path := parts[0][1] / name).is_file()), parts[0][1] / _LENGTH)
    settings, prompt = _object(lengths, missing={}), _prompt(folder)
    longest = settings.get("max_seq_length")
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int) or longest < 1):
        raise ModelError(f"{lengths}: max_seq_length is {longest!r}; expected a whole number above 0.")
    pooling, skips_prompt = _pooling(parts[1][1] / "config.json")
    if prompt and skips_prompt:
        raise ModelError(f"{folder} pools without the tokens of its prompt {prompt!r}, which is not done here.")
    return Sentences(
        folder=parts[0][1],
        pooling=pooling,
        steps=tuple(parts[2:]),
        longest=longest,
        lower_case=bool(settings.get("do_lower_case")),
        prompt=prompt,
    )


def _parts(folder: Path) -> list[dict[str, Any]]:
    path = folder / _MODULES
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        return [{"type": part["type"], "path": part["path"]} for part in parts]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is not a list of modules with type and path: {error!r}. Copy it again.") from error


def _object(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the object in a JSON file, ``missing`` if there is no file; raises :class:`ModelError` without one."""
    if missing is not None and not path.is_file():
        return missing
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return dict(found)
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing, which {_MODULES} names. Copy the whole folder of the model, with the folders in it."
        ) from None
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} is not a JSON object: {error}. Copy it again from where it came.") from error


def _prompt(folder: Path) -> str:
    """Return what is put before every caption where nothing else is asked for."""
    found = _object(folder / _PROMPTS, missing={})
    name, prompts = found.get("default_prompt_name"), found.get("prompts") or {}
    if name is None:
        return ""
    if name not in prompts:
        raise ModelError(f"{folder / _PROMPTS}: the default prompt '{name}' is none.{did_you_mean(name, prompts)}")
    return str(prompts[name])


def _pooling(path: Path) -> tuple[tuple[str, ...], bool]:
    """Read the poolings, and whether the prompt's tokens are left out of them."""
    values = _object(path)
    given = values.get("pooling_mode")
    if given is None:
        names = {setting: name for name, setting in POOLINGS.items()}
        asked = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
        chosen = [names.get(key, key) for key in asked]
    else:
        chosen = [given] if isinstance(given, str) else list(given)
    if not chosen or any(name not in POOLINGS for name in chosen):
        raise ModelError(
            f"{path} pools by {', '.join(map(str, chosen)) or 'nothing'}; "
            f"expected one or more of {', '.join(POOLINGS)}."
        )
    return tuple(name for name in POOLINGS if name in chosen), values.get("include_prompt") is False


def read_steps(layout: Sentences) -> list[nn.Module]:
    """Build what follows the pooling, with its weights; raises :class:`ModelError`."""
    return [_read_dense(folder) if kind == "Dense" else Normalize() for kind, folder in layout.steps]


def _read_dense(folder: Path) -> Dense:
    values = _object(folder / "config.json")
    name = str(values.get("activation_function", "torch.nn.modules.activation.Tanh"))
    kind = name.rpartition(".")[2]
    odd = values.get("module_input_name") not in (None, "sentence_embedding")
    if kind not in _ACTIVATIONS or not name.startswith("torch.nn.") or odd:
        raise ModelError(
            f"{folder / 'config.json'} has the activation {name}{' and works on tokens' if odd else ''}; expected one "
            f"of {', '.join(_ACTIVATIONS)} of torch.nn, on pooled rows."
        )
    safe = folder / "model.safetensors"
    try:
        weights = load_file(safe) if safe.is_file() else read_tensors(folder / "pytorch_model.bin")
        linear = nn.Linear(values["in_features"], values["out_features"], bias=bool(values.get("bias", True)))
        linear.load_state_dict({key.removeprefix("linear."): value.float() for key, value in weights.items()})
    except (RuntimeError, SafetensorError, KeyError, TypeError) as error:  # not whole, or of other shapes or none
        raise ModelError(
            f"the weights in {folder} are not those of its config.json: {error!r}. Copy it again."
        ) from error
    return Dense(linear, getattr(nn, kind)())


def write(folder: Path, module: SentenceModel, layout: Sentences, longest: int) -> None:
    """Write beside a transformer's own files what makes its folder one of sentence-transformers."""
    _put(folder / _LENGTH, {"max_seq_length": longest, "do_lower_case": layout.lower_case})
    if layout.prompt:
        _put(folder / _PROMPTS, {"prompts": {"default": layout.prompt}, "default_prompt_name": "default"})
    parts = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modes = {setting: name in module.pooling for name, setting in POOLINGS.items()}
    width = module.transformer.config.hidden_size
    _put(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **modes})
    for number, step in enumerate(module.steps, start=2):
        kind = type(step).__name__
        parts.append((kind, f"{number}_{kind}"))
        (folder / parts[-1][1]).mkdir()
        if isinstance(step, Dense):
            _write_dense(folder / parts[-1][1], step)
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": _TYPE + kind}
        for index, (kind, path) in enumerate(parts)
    ]
    _put(folder / _MODULES, listed)


def _write_dense(folder: Path, step: Dense) -> None:
    linear, kind = step.linear, type(step.activation)
    values = {"in_features": linear.in_features, "out_features": linear.out_features, "bias": linear.bias is not None}
    _put(folder / "config.json", {**values, "activation_function": f"{kind.__module__}.{kind.__name__}"})
    weights = {f"linear.{name}": value.detach().cpu().contiguous() for name, value in linear.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


def _put(path: Path, values: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
