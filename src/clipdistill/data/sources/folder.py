"""A folder of pictures: with a metadata file, sidecar captions, a folder per class, or just file names."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from clipdistill.data.images import IMAGE_SUFFIXES
from clipdistill.data.samples import Sample
from clipdistill.data.sources.listed import without_captions
from clipdistill.data.sources.tables import NONE, Columns, read_table, read_text
from clipdistill.errors import DataError

#: The imagefolder convention of Hugging Face datasets.
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
#: Where somebody else has captions: names of files are no captions then.
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_folder(root: Path, columns: Columns) -> list[Sample]:
    """Read a folder's samples, in a fixed order; raises :class:`DataError` if there is nothing to read."""
    tables = _metadata(root)
    if len(tables) > 1:
        names = " and ".join(table.name for table in tables)
        raise DataError(f"{root}: found {names}; keep one, or open one of them by its own path")
    if tables:
        return read_table(tables[0], columns)
    _refuse_splits(root)
    chosen = [f"{key}={value}" for key, value in vars(columns).items() if value and (key, value) != ("caption", NONE)]
    if chosen:
        raise DataError(f"{root}: {chosen[0]} chooses a column, but there is none of {', '.join(METADATA)}")
    samples = _from_files(root, _walk(root), wordless=columns.caption == NONE)
    return without_captions(samples) if columns.caption == NONE else samples


def _metadata(folder: Path) -> list[Path]:
    return [folder / name for name in METADATA if (folder / name).is_file()]


def _refuse_splits(root: Path) -> None:
    splits = sorted(str(entry) for entry in root.iterdir() if entry.is_dir() and _metadata(entry))
    if splits:
        raise DataError(f"{root}: there is no metadata file here. Did you mean {' or '.join(splits)}?")


def _walk(root: Path) -> list[str]:
    """List all files below ``root`` but hidden ones: sorted paths with forward slashes.

    Links are followed, but into no folder twice: a link to a folder above it would never end.
    """
    found: list[str] = []
    seen = {os.path.realpath(root)}
    for folder, folders, files in os.walk(root, followlinks=True):
        real = {name: os.path.realpath(Path(folder) / name) for name in sorted(folders)}
        folders[:] = [name for name in real if not name.startswith(".") and real[name] not in seen]
        seen.update(real[name] for name in folders)
        inside = Path(folder).relative_to(root)
        found += [(inside / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def _from_files(root: Path, files: list[str], wordless: bool) -> list[Sample]:
    images = [name for name in files if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(
            f"{root}: there are no pictures in this folder. Looked for {', '.join(METADATA)} and, in it and below, "
            f"for files ending in {', '.join(sorted(IMAGE_SUFFIXES))}; found {len(files)} other files."
        )
    sidecars = {name for name in files if name.endswith(".txt")}
    told = [name for name in images if _sidecar(name) in sidecars]
    few = max(1, len(images) // 20)  # so few are a slip, and would change how every other picture is read
    if len(told) > few or len(told) == len(images):
        return [_with_sidecar(root, name, sidecars) for name in images]
    if told:
        raise DataError(
            f"{root}: {len(told)} of {len(images)} pictures have a caption file beside them (first {told[0]}), the "
            "others have none. Give them one too, or remove these text files to name pictures by folder or file."
        )
    folders = {str(PurePosixPath(name).parent) for name in images}
    loose = [name for name in images if "/" not in name]
    if len(folders) > 2 and 0 < len(loose) <= few:
        raise DataError(
            f"{root}: pictures lie in one folder per class, but {len(loose)} lie beside these folders "
            f"(first {loose[0]}). Move them into a class, or away."
        )
    classes = len(folders) > 1 and not loose
    if not (classes or wordless) and (tables := [name for name in files if "/" not in name and name.endswith(_TABLES)]):
        raise DataError(
            f"{root}: {tables[0]} lies beside the pictures, and is not read as {METADATA[1]} would be. If the captions "
            f"are in it, open {root / tables[0]}; else write {root}?caption={NONE}, or move it away."
        )
    return [_by_name(root, name, classes) for name in images]


def _sidecar(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".txt"))


def _with_sidecar(root: Path, name: str, sidecars: set[str]) -> Sample:
    """Read one caption per line that is not empty; a picture without a sidecar file has no caption."""
    sidecar = _sidecar(name)
    lines = read_text(root / sidecar).split("\n") if sidecar in sidecars else []
    captions = dict.fromkeys(line.strip() for line in lines if line.strip())
    return Sample(name, root / name, {"": list(captions)})


def _by_name(root: Path, name: str, classes: bool) -> Sample:
    path = PurePosixPath(name)
    label = path.parent.name if classes else None
    caption = (label or path.stem).replace("_", " ").replace("-", " ").strip()
    return Sample(name, root / name, {"": [caption]}, label)
