"""Datasets of Hugging Face's ``datasets`` library: on the hub, saved to disk, or parquet files that hold pictures.

::

    hf:nlphuji/flickr30k?split=test          fetched once into the library's cache, of the whole of it;
                                             with &streaming=true its files are opened as in remote_parquet.py
    photos/                                  written by Dataset.save_to_disk or DatasetDict.save_to_disk
    cc3m/{00000..00331}.parquet, cc3m/       as the hub stores them or img2dataset writes them (a column jpg of bytes)

The library makes Arrow files of parquet in its cache (``HF_DATASETS_CACHE``), which are mapped into memory: rows can be
read in any order, by any process, at the price of the disk. Nothing is fetched with ``HF_HUB_OFFLINE=1``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

from clipdistill.data.images import IMAGE_SUFFIXES
from clipdistill.data.remote import is_remote
from clipdistill.data.sources.arrow_columns import image_column, is_encoded
from clipdistill.data.sources.arrow_rows import ArrowRows, Files, open_rows
from clipdistill.data.sources.folder import METADATA
from clipdistill.data.sources.shard_names import expand
from clipdistill.data.sources.splits import choose_splits
from clipdistill.data.sources.tables import NONE, Columns
from clipdistill.errors import ClipdistillError, DataError, need

_HUB = re.compile(r"hf:(?!//)")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SAVED, _SAVED_SPLITS = ("state.json", "dataset_info.json"), ("dataset_dict.json",)

_PINNED = re.compile(r"(hf://datasets/[^/@]+/[^/@]+)@[^/]+")

# A dataset, and the rows of each split in it; no splits where it has only one.
_Found = tuple[Any, dict[str, int]]
Made = TypeVar("Made")


def is_hub(uri: str) -> bool:
    """Whether a URI names a dataset on the hub, ``hf:org/name``; ``hf://`` begins the URL of a file."""
    return _HUB.match(uri) is not None


def open_hub(name: str, columns: Columns, choices: Mapping[str, str], uri: str) -> ArrowRows:
    """Open ``hf:org/name``, fetching it first where the library's cache does not have it.

    Raises :class:`DataError` for a name or a split that is not there, and for no network.
    """
    found = _on_hub(name, choices, uri, lambda builder: _prepared(builder, choices, uri))
    return open_rows(*found, columns, choices.get("id"), uri, Files(fetched=_fetched_to(name)))


def hub_files(name: str, choices: Mapping[str, str], uri: str) -> dict[str, list[str]]:
    """The URLs of the parquet files of ``hf:org/name``, by split: of those asked for, ``""`` where there is only one.

    Raises :class:`DataError` as :func:`open_hub` does, and for files that are no parquet.
    """
    known: Mapping[str, Sequence[str]] = _on_hub(name, choices, uri, lambda builder: builder.config.data_files or {})
    if not known:
        raise DataError(
            f"{uri}: found no list of its files, which streaming=true asks the hub for. Without a network, leave it "
            "out: the dataset is in the library's cache."
        )
    chosen = {split: known[split] for split in choose_splits(known, choices.get("split"), uri)}
    files = [file for split in chosen.values() for file in split]
    others = [file for file in files if not file.lower().endswith(".parquet")]
    if others:
        raise DataError(
            f"{uri}: found {others[0]}, expected parquet files, which alone can be read with "
            f"streaming=true. Leave it out, or name the files, such as {name.replace('hf:', 'hf://datasets/')}/*.parquet"
        )
    # Not by the commit: after one that leaves a file as it is, its copy stays good.
    revision = f"@{quote(choices['revision'], safe='')}" if "revision" in choices else ""
    urls = {split: [_PINNED.sub(rf"\1{revision}", file) for file in files] for split, files in chosen.items()}
    return urls if len(known) > 1 else {"": [url for split in urls.values() for url in split]}


def _on_hub(name: str, choices: Mapping[str, str], uri: str, prepare: Callable[[Any], Made]) -> Made:
    """What ``prepare`` makes of the builder of a dataset on the hub, which knows its files and has fetched none."""
    repository = name.removeprefix("hf:")
    if not _NAME.fullmatch(repository):
        raise DataError(f"{uri}: found '{repository}', expected the name of a dataset on the hub, such as hf:org/name")
    if Path(repository).exists():
        raise DataError(f"{uri}: there is a folder {repository} here. Name it without hf:, or start somewhere else.")
    datasets = need("datasets", "data")
    config, revision = choices.get("config"), choices.get("revision")
    offline = " Nothing is fetched: HF_HUB_OFFLINE is set." if _offline() else ""
    advice = (
        f"{offline} Check the name, ?config= and the network; a private or gated one needs HF_TOKEN. Or fetch it "
        f"elsewhere, with hf download {repository} --repo-type dataset --local-dir FOLDER, and name that folder."
    )

    def attempt() -> Made:
        return prepare(datasets.load_dataset_builder(repository, config, revision=revision))

    return _attempt(attempt, uri, advice)


def _fetched_to(name: str) -> tuple[Path, ...]:
    """Where the library puts the files of ``hf:org/name``: its own copy of the repository, and unpacked archives."""
    copies = need("huggingface_hub.constants", "data").HF_HUB_CACHE
    copy = need("huggingface_hub.file_download", "data").repo_folder_name
    unpacked = need("datasets", "data").config.DOWNLOADED_DATASETS_PATH
    return Path(copies, copy(repo_id=name.removeprefix("hf:"), repo_type="dataset")), Path(unpacked)


def find_dataset(name: str, columns: Columns) -> list[Path] | None:
    """Return the folder or the parquet files that ``name`` means, or None if it means something else.

    A single parquet file is meant if it holds pictures; one that names their files is a table. A folder of parquet
    files has no picture beside them. Raises :class:`DataError` for files that are not there.
    """
    path, several = Path(name), "::" in name
    if not several and path.is_dir():
        return [path] if _is_saved(path) or _holds_parquet(path) else None
    if not several and path.is_file():
        return [path] if path.suffix.lower() == ".parquet" and _holds_pictures(path, columns.image) else None
    if ".parquet" not in name.lower() or is_remote(name):
        return None
    files = [Path(file) for piece in name.split("::") for file in expand(piece)]
    if files == [path]:
        return None
    for file in files:
        if not file.is_file() or file.suffix.lower() != ".parquet":
            raise DataError(f"{name}: {file} is {'no parquet file' if file.is_file() else 'not there'}")
    return files


def open_dataset(paths: Sequence[Path], columns: Columns, choices: Mapping[str, str], uri: str) -> ArrowRows:
    """Open what :func:`find_dataset` found; raises :class:`DataError` for files that cannot be read."""
    datasets = need("datasets", "data")
    first = paths[0].absolute()

    def prepare() -> _Found:
        if first.is_dir() and _is_saved(first):
            return _saved(first, choices, uri)
        if first.is_dir():
            return _prepared(datasets.load_dataset_builder(str(first), choices.get("config")), choices, uri)
        files = [str(path.absolute()) for path in paths]
        return _prepared(datasets.load_dataset_builder("parquet", data_files=files), choices, uri)

    found = _attempt(prepare, uri, " Write or download it again.")
    folder = first if first.is_dir() else first.parent
    return open_rows(*found, columns, choices.get("id"), uri, Files(folder))


def _offline() -> bool:
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in names)


def _attempt(prepare: Callable[[], Made], uri: str, advice: str) -> Made:
    generation = need("datasets.exceptions", "data").DatasetGenerationError
    try:
        return prepare()
    except ClipdistillError:
        raise
    except Exception as error:  # its own errors, and those of Arrow and the HTTP client below it
        cause = (error.__cause__ or error) if isinstance(error, generation) else error
        reason = " ".join(str(cause).split("\n")[:2]).strip() or type(cause).__name__
        raise DataError(f"{uri}: the dataset cannot be opened: {reason.rstrip('.')}.{advice}") from error


def _prepared(builder: Any, choices: Mapping[str, str], uri: str) -> _Found:
    """Fetch and convert what is not in the cache yet."""
    builder.download_and_prepare()
    known = {name: split.num_examples for name, split in builder.info.splits.items()}
    chosen = choose_splits(known, choices.get("split"), uri)
    return builder.as_dataset(split="+".join(chosen)), _sizes(chosen, known)


def _saved(folder: Path, choices: Mapping[str, str], uri: str) -> _Found:
    datasets = need("datasets", "data")
    found = datasets.load_from_disk(str(folder), keep_in_memory=False)
    if isinstance(found, dict):
        chosen = choose_splits(found, choices.get("split"), uri)
        sizes = _sizes(chosen, {name: split.num_rows for name, split in found.items()})
        return datasets.concatenate_datasets([found[name] for name in chosen]), sizes
    if "split" in choices:
        raise DataError(f"{uri}: split={choices['split']} chooses among splits, but one alone was saved here")
    return found, {}


def _sizes(chosen: Sequence[str], known: Mapping[str, int]) -> dict[str, int]:
    return {name: known[name] for name in chosen} if len(known) > 1 else {}


def _is_saved(folder: Path) -> bool:
    return any(all((folder / name).is_file() for name in names) for names in (_SAVED, _SAVED_SPLITS))


def _holds_parquet(root: Path) -> bool:
    """Whether there are parquet files in a folder or below, and nothing that is read before them."""
    found = False
    if any((root / name).is_file() for name in METADATA):
        return False
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if Path(folder) != root and any(name in METADATA for name in names):
            return False
        endings = {PurePosixPath(name).suffix.lower() for name in names if not name.startswith(".")}
        if endings & {*IMAGE_SUFFIXES, ".tar"}:
            return False
        found = found or ".parquet" in endings
    return found


def _holds_pictures(path: Path, image: str | None) -> bool:
    """Whether the column of pictures of a parquet file is of encoded ones; a damaged file is left to the tables."""
    parquet = need("pyarrow.parquet", "train")
    try:
        schema = parquet.read_schema(path)
    except (OSError, ValueError):
        return False
    name = image_column(schema, local=True) if image in (None, NONE) else image
    return name in schema.names and is_encoded(schema.field(name).type)
