"""From what the user writes to a folder of model files: a local folder first, else a name on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from clipdistill.errors import ModelError

_SMALL_FILES = ("*.json", "*.txt", "*.model")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def model_folder(uri: str, weights: bool = True) -> Path:
    """Return the folder that ``uri`` names, downloaded to the hub's cache where it is not on this disk.

    ``file:FOLDER`` and plain paths are local; ``hf:org/name`` is on the hub; a bare ``org/name`` is a local folder
    if there is one, else a hub name. A run folder stands for the student in it.
    ``HF_HUB_OFFLINE=1`` allows only what the cache holds. With ``weights=False``
    only configuration and tokenizer files are fetched. Raises :class:`ModelError`.
    """
    if uri.startswith("hf:"):
        return _fetch(uri.removeprefix("hf:"), weights)
    path = Path(uri.removeprefix("file:")).expanduser()
    if path.is_dir():
        # A run folder means the student in it.
        return path / "student" if (path / "student" / "config.json").is_file() else path
    if path.exists():
        raise ModelError(f"{path} is a file; expected a model folder with config.json and weights in it.")
    if uri.startswith("file:") or not _is_hub_name(uri):
        raise ModelError(
            f"no model folder at {path} (looked from {Path.cwd()}). Give a folder written by save_pretrained, "
            "or a hub name such as hf:openai/clip-vit-base-patch32."
        )
    return _fetch(uri, weights)


def _is_hub_name(uri: str) -> bool:
    parts = uri.split("/")
    return len(parts) == 2 and all(parts) and parts[0] not in {".", "..", "~"} and ":" not in uri


def _fetch(name: str, weights: bool) -> Path:
    """Download one repository's root files: safetensors if it has them, else the pickled weights."""
    folder = _snapshot(name, _SMALL_FILES)
    for pattern in _WEIGHTS if weights else ():
        folder = _snapshot(name, (*_SMALL_FILES, pattern))
        if any(folder.glob(pattern)):
            break
    return folder


def _snapshot(name: str, patterns: tuple[str, ...]) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except Exception as error:  # network, permission, offline mode, a bad name: each has its own class, all mean this
        raise ModelError(
            f"no local folder '{name}', and the hub did not give it ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Check the name and the network, or on a machine that has a network run "
            f"'hf download {name} --local-dir FOLDER', copy FOLDER here and give its path instead of the name."
        ) from error
