"""From what the user writes to model files: a local folder or checkpoint first, else a name on a hub."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from pathlib import Path

from huggingface_hub import constants, snapshot_download

from clipdistill.errors import ModelError

#: The card and the licence are read for what a student inherits of them.
_SMALL_FILES = ("*.json", "*.txt", "*.model", "README.md", "LICENSE*")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
#: A folder with this file is open_clip's.
OPEN_CLIP_CONFIG = "open_clip_config.json"
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
#: A folder of sentence-transformers: its parts are in folders named by their numbers, as in 1_Pooling.
_PARTS = "modules.json"
_CHECKPOINTS = (".pt", ".pth")
#: What begins a name that only open_clip can open.
OPEN_CLIP = ("open_clip:", "hf-hub:", "local-dir:")
_EXAMPLE = "multi-modal_clip-vit-base-patch16_zh"


def model_folder(uri: str, weights: bool = True) -> Path:
    """Return the folder that ``uri`` names, downloaded to the hub's cache where it is not on this disk.

    ``file:FOLDER`` and plain paths are local; ``hf:org/name`` is on the hub; a bare ``org/name`` is a local folder
    if there is one, else a hub name; ``ms:org/name`` is on ModelScope; ``local-dir:FOLDER`` and ``hf-hub:org/name``
    are how open_clip names the two. A run folder stands for the student in it, a checkpoint file (see
    :func:`checkpoint_file`) for the folder it lies in.
    ``HF_HUB_OFFLINE=1`` allows only what the caches hold. With ``weights=False``
    only configuration and tokenizer files are fetched. Raises :class:`ModelError`.
    """
    if uri.startswith("hf:"):
        return _fetch(uri.removeprefix("hf:"), weights)
    if uri.startswith("ms:"):
        return _modelscope_folder(uri.removeprefix("ms:"), weights)
    if uri.startswith("hf-hub:"):
        return _fetch(uri.removeprefix("hf-hub:"), weights, open_clip=True)
    if uri.startswith("open_clip:"):
        raise ModelError(f"{uri} is a model of open_clip's by name; expected a folder or a hub name here.")
    if uri.startswith("local-dir:"):
        uri = "file:" + uri.removeprefix("local-dir:")
    if file := checkpoint_file(uri):
        return file.parent
    path = Path(uri.removeprefix("file:")).expanduser()
    if path.is_dir():
        # A run folder means the student in it.
        return path / "student" if _is_model(path / "student") else path
    if path.exists():
        raise ModelError(f"{path} is a file; expected a model folder with config.json and weights in it.")
    if uri.startswith("file:") or not is_hub_name(uri):
        raise ModelError(
            f"no model folder at {path} (looked from {Path.cwd()}). Give a folder written by save_pretrained, "
            "or a hub name such as hf:openai/clip-vit-base-patch32."
        )
    return _fetch(uri, weights)


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", OPEN_CLIP_CONFIG))


def is_open_clip(folder: Path) -> bool:
    """Tell whether a folder has open_clip's layout, and not that of transformers as well."""
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        return False
    path = folder / "config.json"
    try:
        return not path.is_file() or "model_type" not in json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError):  # no JSON object: whoever reads it as a configuration says so
        return False


def checkpoint_file(uri: str) -> Path | None:
    """Return the local checkpoint, ``*.pt`` or ``*.pth``, that ``uri`` names; None for folders and names on a hub.

    Raises :class:`ModelError` where the name is a checkpoint's and there is no such file.
    """
    path = Path(uri.removeprefix("file:")).expanduser()
    if path.suffix not in _CHECKPOINTS or path.is_dir() or uri.startswith(("hf:", "ms:", *OPEN_CLIP)):
        return None
    if path.is_file():
        return path
    raise ModelError(f"no checkpoint at {path} (looked from {Path.cwd()}). Give the path of a file that is there.")


def _modelscope_folder(name: str, weights: bool) -> Path:
    """Return the folder of a model of ModelScope: from its cache, else fetched if its package is installed."""
    if not is_hub_name(name):
        raise ModelError(f"'ms:{name}' is no name on ModelScope. Expected for instance ms:damo/{_EXAMPLE}.")
    if cached := _in_modelscope_cache(name, weights):
        return cached
    reason = f"it is not in ModelScope's cache ({modelscope_cache()})"
    if constants.HF_HUB_OFFLINE:
        reason += ", and HF_HUB_OFFLINE is set"
    elif importlib.util.find_spec("modelscope") is None:
        reason += ", and the package modelscope, which could fetch it, is not installed"
    else:
        try:
            module = importlib.import_module("modelscope.hub.snapshot_download")
            kinds = [*_SMALL_FILES, *(_WEIGHTS if weights else ())]
            return Path(module.snapshot_download(name, allow_patterns=kinds))
        except Exception as error:  # network, permission, a bad name: each has its own class, all mean this
            reason += f", and ModelScope did not give it ({type(error).__name__}: {error})"
    raise ModelError(
        f"ms:{name} cannot be opened: {reason}. On a machine that has a network run 'pip install modelscope' and "
        f"'modelscope download --model {name} --local_dir FOLDER', copy FOLDER here and give its path instead."
    )


def modelscope_cache() -> Path:
    """The folder in which ModelScope keeps what it has fetched."""
    given = os.environ.get("MODELSCOPE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "modelscope"


def _in_modelscope_cache(name: str, weights: bool) -> Path | None:
    """Look where ModelScope's releases put models: ``owner/name``, ``models/owner--name/snapshots/revision``, ..."""
    owner, _, title = name.partition("/")
    for room in ("models", "hub/models", "hub", "."):
        place = modelscope_cache() / room
        snapshots = sorted((place / f"{owner}--{title}" / "snapshots").glob("*"), key=_modified, reverse=True)
        for folder in (place / owner / title.replace(".", "___"), place / owner / title, *snapshots):
            wanted = _WEIGHTS if weights else ("*.json",)
            if any(next(folder.glob(pattern), None) for pattern in wanted):
                return folder
    return None


def _modified(folder: Path) -> float:
    return folder.stat().st_mtime


def is_hub_name(uri: str) -> bool:
    """Tell whether a text has the form of a hub's names, ``org/name``."""
    parts = uri.split("/")
    return len(parts) == 2 and all(parts) and parts[0] not in {".", "..", "~"} and ":" not in uri


def _fetch(name: str, weights: bool, open_clip: bool = False) -> Path:
    """Download one repository's root files: safetensors if it has them, else the pickled weights."""
    folder = _snapshot(name, _SMALL_FILES)
    open_clip = open_clip or is_open_clip(folder)
    kinds, others = (_OPEN_CLIP_WEIGHTS, ()) if open_clip else (_WEIGHTS, _OPEN_CLIP_WEIGHTS)
    for pattern in kinds if weights else ():
        folder = _snapshot(name, (*_SMALL_FILES, pattern), ("*/*", *others))
        if any(folder.glob(pattern)):
            break
    if (folder / _PARTS).is_file():
        kinds = (*_SMALL_FILES, *(_WEIGHTS if weights else ()))
        folder = _snapshot(name, tuple(f"[0-9]_*/{pattern}" for pattern in kinds), ignored=("*/*/*",))
    return folder


def _snapshot(name: str, patterns: tuple[str, ...], ignored: tuple[str, ...] = ("*/*",)) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(ignored)))
    except Exception as error:  # network, permission, offline mode, a bad name: each has its own class, all mean this
        raise ModelError(
            f"no local folder '{name}', and the hub did not give it ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Check the name and the network, or on a machine that has a network run "
            f"'hf download {name} --local-dir FOLDER', copy FOLDER here and give its path instead of the name."
        ) from error
