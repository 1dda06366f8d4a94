"""Golden rows: pictures and captions with their embeddings, by which an exported folder is examined anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdistill.errors import ClipdistillError
from clipdistill.files import checksum
from clipdistill.search.runtime import SECTION, Runtime, read_record

GOLDEN = "golden.npz"
#: Two rows of unit length that were computed in float32 are the same from this cosine on.
LEAST_COSINE = 0.99999


def write_golden(
    path: Path,
    images: tuple[Sequence[NDArray[np.uint8]], NDArray[np.float32]] | None,
    texts: tuple[Sequence[str], NDArray[np.float32]] | None,
) -> None:
    """Write pictures (``uint8 [H, W, 3]`` each, of one size) and captions with their rows, ``float32 [N, D]``."""
    arrays: dict[str, NDArray[Any]] = {}
    if images:
        arrays |= {"pictures": np.stack(images[0]), "image_embeds": images[1]}
    if texts:
        arrays |= {"captions": np.array(texts[0]), "text_embeds": texts[1]}
    np.savez(path, allow_pickle=False, **arrays)


def check_golden(folder: str | Path) -> list[str]:
    """Examine an exported folder: every file against its checksum, every golden row against a fresh one.

    The rows are the model's own, from torch; how far those of a graph may be from them is in the record, by precision.
    Returns a line for each thing that is wrong; raises :class:`SearchError` for a folder that is no exported model.
    """
    folder = Path(folder)
    record = read_record(folder)
    findings = check_files(folder, record[SECTION]["files"])
    try:
        return findings + _rows(Runtime(folder, record), folder / record[SECTION]["golden"]["file"])
    except (ClipdistillError, OSError, ValueError, KeyError) as error:  # what a damaged file makes of the readers
        return [*findings, f"the golden rows cannot be compared: {error}"]


def checksums(folder: Path) -> dict[str, str]:
    """The checksums of all files that are in a folder by now, by their names in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): checksum(path) for path in files}


def check_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Return a line for each file that is missing or has another checksum than the one given."""
    return [finding for name, digest in files.items() if (finding := _file(folder, name, digest))]


def _file(folder: Path, name: str, digest: str) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"{name} is missing; copy the whole folder again"
    if checksum(path) != digest:
        return f"{name} is not the file that was exported (its checksum is another); copy it again"
    return None


def golden_rows(runtime: Runtime, path: Path) -> Iterator[tuple[str, list[str], NDArray[Any], NDArray[Any]]]:
    """Yield for each side its name, what was embedded, and fresh and golden rows, ``float32 [N, D]`` each."""
    with np.load(path, allow_pickle=False) as golden:
        kept = {name: golden[name] for name in golden.files}
    if "I" in runtime.sides:
        rows = runtime.images([Image.fromarray(pixels) for pixels in kept["pictures"]])
        yield "image", [f"picture {place}" for place in range(len(rows))], rows, kept["image_embeds"]
    if "T" in runtime.sides:
        captions = [str(caption) for caption in kept["captions"]]
        yield "text", [f"caption {caption!r}" for caption in captions], runtime.texts(captions), kept["text_embeds"]


def _rows(runtime: Runtime, path: Path) -> list[str]:
    findings = []
    for side, names, rows, kept in golden_rows(runtime, path):
        least = float(runtime.graph_of(side).get("least_cosine", LEAST_COSINE))
        findings += _differing(rows, kept, least, names)
    return findings


def _differing(rows: NDArray[Any], kept: NDArray[Any], least: float, names: Sequence[str]) -> list[str]:
    if rows.shape != kept.shape:
        return [f"golden rows have the shape {list(rows.shape)}, expected {list(kept.shape)}"]
    return [
        f"golden {name}: the cosine with its row is {cosine:.6f}, expected {least} or more"
        for name, cosine in zip(names, (rows * kept).sum(axis=1), strict=True)
        if not cosine >= least
    ]
