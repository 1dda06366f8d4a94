"""What a folder of transformers holds: its kind of model, and the weights, read into one of the library's classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from clipdistill.errors import ModelError
from clipdistill.models.own_code import refuse_code
from clipdistill.models.quiet import quiet

#: Up to so many image tokens plain attention is faster on a CPU: 2.6 times with bfloat16 at 37 tokens.
EAGER_TOKENS = 100


def model_type(folder: Path) -> str:
    """Return the ``model_type`` in a folder's config.json; raises :class:`ModelError` if there is none."""
    path = folder / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except FileNotFoundError:
        found = ", ".join(sorted(item.name for item in folder.iterdir())[:12]) or "nothing"
        raise ModelError(f"{folder} is not a model folder: it has no config.json (found: {found}).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is not a model's configuration with a model_type in it: {error!r}") from error


def attention_for(config: Any, device: str) -> str | None:
    """Choose the attention code: ``eager`` for few image tokens on a CPU, else the library's default."""
    tokens = image_tokens(getattr(config, "vision_config", config))
    return "eager" if device == "cpu" and tokens is not None and tokens <= EAGER_TOKENS else None


def image_tokens(vision: Any) -> int | None:
    """Count the patches of a vision transformer with square ones; None for any other tower."""
    if getattr(vision, "num_patches", None):
        return int(vision.num_patches)
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    return (side // patch) ** 2 if isinstance(side, int) and isinstance(patch, int) else None


def read_weights(model: Any, config: Any, folder: Path, device: str, **arguments: Any) -> Any:
    """Read a folder's weights into a class of transformers; ``arguments`` go to its constructor.

    Raises :class:`ModelError` unless they fill it.
    """
    pickled = _is_pickled(folder)
    try:
        with quiet():
            module, info = model.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation=attention_for(config, device),
                use_safetensors=not pickled,
                weights_only=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **arguments,
            )
    except Exception as error:  # truncated files, wrong shapes, missing shards: each library has its own classes
        refuse_code(error, folder)
        raise ModelError(f"the weights in {folder} cannot be loaded: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"the weights in {folder} do not fill a {type(module).__name__}: {len(missing)} tensors are missing, "
            f"among them {', '.join(missing[:3])}. Expected the checkpoint that belongs to its config.json."
        )
    return module


def _is_pickled(folder: Path) -> bool:
    """Tell whether only pickled weights are there (read with weights_only, so that no code in them runs)."""
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return False
    if any((folder / name).is_file() for name in ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        return True
    found = ", ".join(sorted(item.name for item in folder.iterdir())[:12])
    raise ModelError(
        f"{folder} holds no weights (found: {found}); expected model.safetensors or pytorch_model.bin. "
        "Copy the weights file of the original model into the folder."
    )
