"""Checkpoints that torch wrote: their tensors alone are read, and no code in a file is ever run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipdistill.errors import ModelError

#: OpenAI's downloads and the same weights in a format that holds tensors alone.
OPENAI = {
    "ViT-B-32.pt": "openai/clip-vit-base-patch32",
    "ViT-B-16.pt": "openai/clip-vit-base-patch16",
    "ViT-L-14.pt": "openai/clip-vit-large-patch14",
    "ViT-L-14-336px.pt": "openai/clip-vit-large-patch14-336",
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a checkpoint, mapped from the file rather than copied.

    Of a training checkpoint it is the entry ``state_dict``. Raises :class:`ModelError` for a TorchScript archive, for
    a pickle with anything but tensors and plain values in it, and for a damaged file.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _refuse_programs(path)
        # The format before torch 1.6 is no archive and cannot be mapped.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except ModelError:
        raise
    except Exception as error:  # bytes of any other kind, such as a hub's page about an error, fail anywhere
        raise ModelError(
            f"{path} cannot be read as tensors alone ({_first_line(error)}). It is damaged, or holds Python objects, "
            "which could run code and are not opened. Download it again, or, where its origin is trusted, save its "
            "weights anew: torch.save({'state_dict': model.state_dict()}, 'weights.pt')."
        ) from error
    weights = found.get("state_dict", found) if isinstance(found, Mapping) else found
    return _tensors(weights, path)


def _tensors(weights: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(weights, Mapping) and weights and all(isinstance(value, Tensor) for value in weights.values()):
        return {str(name): value for name, value in weights.items()}
    keys = f" with {', '.join(map(str, list(weights)[:6]))}" if isinstance(weights, Mapping) else ""
    raise ModelError(
        f"{path} holds a {type(weights).__name__}{keys}; expected a state dict of tensors, bare or under 'state_dict'."
    )


def _refuse_programs(path: Path) -> None:
    """Refuse a TorchScript archive, as OpenAI publishes its models: opening one runs the program in it."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if not any(name.endswith("/constants.pkl") for name in names) or not any("/code/" in name for name in names):
        return
    if path.name in OPENAI:
        instead = f"The same weights as tensors alone: {OPENAI[path.name]}"
    elif path.name.startswith("RN"):
        instead = f"OpenAI's ResNets have no counterpart in transformers; its vision transformers are {_all_openai()}"
    else:
        instead = f"OpenAI's models as tensors alone: {_all_openai()}"
    raise ModelError(f"{path} is a TorchScript archive: a program, which is not run here. {instead}.")


def _all_openai() -> str:
    return ", ".join(f"{name} ({file})" for file, name in OPENAI.items())


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
