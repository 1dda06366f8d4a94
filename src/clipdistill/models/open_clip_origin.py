"""What a name for open_clip means: an architecture with weights, a repository on the hub, or a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipdistill.errors import ModelError, did_you_mean
from clipdistill.models import import_library
from clipdistill.models.hub import OPEN_CLIP, OPEN_CLIP_CONFIG, model_folder
from clipdistill.models.torch_files import read_tensors

NAMED, HUB, LOCAL = OPEN_CLIP
WEIGHTS = "open_clip_model.safetensors"
#: Weights in a folder, in open_clip's order of preference.
_WEIGHTS = (
    *(WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
_PREPARED = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Origin:
    """What open_clip is asked for: ``name`` and ``arguments`` of ``create_model``, ``tokenizer`` of ``get_tokenizer``.

    ``config`` is the ``model_cfg``, with what the arguments change in it; ``folder`` is None for a built-in one.
    """

    name: str
    tokenizer: str
    config: dict[str, Any]
    folder: Path | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def library() -> Any:
    """Import open_clip; see :func:`clipdistill.models.import_library`."""
    return import_library("open_clip")


def find(uri: str, weights: bool = True) -> Origin:
    if uri.startswith(NAMED):
        return _named(uri, weights)
    folder = model_folder(uri, weights)
    return in_folder(folder, uri if uri.startswith(HUB) else f"{LOCAL}{folder}")


def _named(uri: str, weights: bool) -> Origin:
    """Find an architecture of open_clip's own with published or local weights."""
    name, _, given = uri.removeprefix(NAMED).partition("/")
    known = library().list_models()
    if name not in known:
        raise ModelError(f"{uri}: open_clip has no architecture '{name}'.{did_you_mean(name, known)}")
    tags = library().list_pretrained_tags_by_model(name)
    config = library().get_model_config(name)
    if not given:
        raise ModelError(
            f"{uri} names no weights, and a model with random ones is no teacher. Expected {NAMED}{name}/TAG or "
            f"{NAMED}{name}/PATH; tags: {', '.join(tags) or 'none'}."
        )
    if published := library().get_pretrained_cfg(name, given):
        # open_clip itself only warns that OpenAI's activation is missing, and gives other embeddings.
        quick = {"quick_gelu": True} if published.get("quick_gelu") else {}
        arguments = {"force_quick_gelu": bool(quick), "force_preprocess_cfg": _prepared(published)}
        if weights:
            arguments["pretrained"] = _download(uri, published)
        return Origin(name, name, config | quick, arguments=arguments)
    path = Path(given).expanduser()
    if not path.is_file():
        raise ModelError(
            f"{uri}: '{given}' is neither a tag of published weights for {name} nor a file (looked from {Path.cwd()})."
            f"{did_you_mean(given, tags)}"
        )
    every = [_prepared(library().get_pretrained_cfg(name, tag)) for tag in tags]
    agreed = every[0] if every and all(one == every[0] for one in every) else {}
    return Origin(name, name, config, arguments={"pretrained": str(path), "force_preprocess_cfg": agreed})


def _prepared(published: Mapping[str, Any]) -> dict[str, Any]:
    return {key: published[key] for key in _PREPARED}


def _download(uri: str, published: Mapping[str, Any]) -> str:
    try:
        return str(library().download_pretrained(published))
    except Exception as error:  # network, permission, offline mode: each has its own class, all mean this
        repository, _, file = published["hf_hub"].rpartition("/")
        instead = uri.removesuffix(uri.rpartition("/")[2]) + f"FOLDER/{file}" if file else "local-dir:FOLDER"
        wanted = file or "--include 'open_clip*' '*.json' '*.txt' '*.model'"
        raise ModelError(
            f"{uri}: its weights are not in the cache, and the hub did not give them ({type(error).__name__}: "
            f"{first_line(error)}). Check the network, or on a machine that has a network run "
            f"'hf download {repository} {wanted} --local-dir FOLDER', copy FOLDER here and name the model {instead}."
        ) from error


def in_folder(folder: Path, tokenizer: str) -> Origin:
    """Read a folder's ``open_clip_config.json``."""
    path = folder / OPEN_CLIP_CONFIG
    if not path.is_file():
        raise ModelError(
            f"{folder} is not a folder of open_clip: it has no {OPEN_CLIP_CONFIG} (found: {_listing(folder)}). A model "
            "of transformers is named without hf-hub: or local-dir:."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        whole = {"embed_dim", "vision_cfg", "text_cfg"} <= set(config)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is not a configuration of open_clip with a model_cfg in it: {error!r}") from error
    if not whole:
        raise ModelError(f"{path}: model_cfg has {', '.join(config)}; expected embed_dim, vision_cfg and text_cfg.")
    return Origin(f"{LOCAL}{folder}", tokenizer, config, folder)


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"


def check_weights(origin: Origin) -> None:
    """Raise :class:`ModelError` where there are no weights, or a file of them is more than tensors."""
    path = Path(origin.arguments.get("pretrained", ""))
    if origin.folder:
        found = [origin.folder / name for name in _WEIGHTS if (origin.folder / name).is_file()]
        if not found:
            raise ModelError(
                f"{origin.folder} holds no weights (found: {_listing(origin.folder)}); expected {WEIGHTS} or "
                "open_clip_pytorch_model.bin. Copy the weights file of the original model into the folder."
            )
        path = found[0]
    if path.suffix != ".safetensors":
        read_tensors(path)


def fetch(name: str | None) -> Path | None:
    """Have the small files of what a configuration names on the hub in the cache; None for no name."""
    if not name:
        return None
    return Path(name) if Path(name).is_dir() else model_folder(f"hf:{name}", weights=False)


def first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
