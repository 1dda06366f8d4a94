"""Golden rows: pictures and captions with their embeddings, by which an exported folder is examined anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdistill.errors import ClipdistillError
from clipdistill.files import checksum
from clipdistill.search.runtime import SECTION, Runtime, read_record

GOLDEN = "golden.npz"
#: Two rows of unit length are the same from this cosine on.
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

    Returns a line for each thing that is wrong; raises :class:`SearchError` for a folder that is no exported model.
    """
    folder = Path(folder)
    record = read_record(folder)
    findings = [
        finding for name, digest in record[SECTION]["files"].items() if (finding := _file(folder, name, digest))
    ]
    try:
        return findings + _rows(Runtime(folder, record), record[SECTION]["golden"])
    except (ClipdistillError, OSError, ValueError, KeyError) as error:  # what a damaged file makes of the readers
        return [*findings, f"the golden rows cannot be compared: {error}"]


def _file(folder: Path, name: str, digest: str) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"{name} is missing; copy the whole folder again"
    if checksum(path) != digest:
        return f"{name} is not the file that was exported (its checksum is another); copy it again"
    return None


def _rows(runtime: Runtime, about: Mapping[str, Any]) -> list[str]:
    with np.load(runtime.folder / about["file"], allow_pickle=False) as golden:
        kept = {name: golden[name] for name in golden.files}
    least, findings = float(about["least_cosine"]), []
    if "I" in runtime.sides:
        rows = runtime.images([Image.fromarray(pixels) for pixels in kept["pictures"]])
        findings += _differing(rows, kept["image_embeds"], least, "golden picture", range(len(rows)))
    if "T" in runtime.sides:
        captions = [str(caption) for caption in kept["captions"]]
        rows = runtime.texts(captions)
        findings += _differing(rows, kept["text_embeds"], least, "golden caption", map(repr, captions))
    return findings


def _differing(rows: NDArray[np.float32], kept: NDArray[np.float32], least: float, what: str, names: Any) -> list[str]:
    if rows.shape != kept.shape:
        return [f"{what}s give rows of shape {list(rows.shape)}, expected {list(kept.shape)}"]
    return [
        f"{what} {name}: the cosine with its row is {cosine:.6f}, expected {least} or more"
        for name, cosine in zip(names, (rows * kept).sum(axis=1), strict=True)
        if not cosine >= least
    ]
