"""Writing a mix: parts with weights, opened once to see that they can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from clipdistill.data.sources import pairs
from clipdistill.data.sources.mix import MIX_SUFFIXES, Mixed, Part, check_weight, open_parts, seen_from
from clipdistill.errors import DataError
from clipdistill.files import write_text


def write_mix(parts: Sequence[str], out: str | Path) -> Mixed:
    """Write ``DATA=WEIGHT`` parts, as ``["photos=3", "icons=1"]``, to a file that ``pairs`` opens, and open it.

    Relative paths are written as seen from the file's folder. Raises :class:`DataError` for a part without a weight,
    for one that does not open or does not go with the others, and for a file that is there already; then nothing is
    written.
    """
    path = Path(out)
    if path.suffix.lower() not in MIX_SUFFIXES:
        raise DataError(f"{path}: a mix is written to a file that ends in {MIX_SUFFIXES[0]}")
    if path.exists():
        raise DataError(f"{path}: there is such a file already. Remove it, or choose another name.")
    told = [_part(word) for word in parts]
    mixed = open_parts(told, Path(), pairs, str(path))
    entries = [{"data": seen_from(part.data, path.parent), "weight": _short(part.weight)} for part in told]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump({"mix": entries}, sort_keys=False, allow_unicode=True))
    return mixed


def _part(word: str) -> Part:
    data, mark, weight = word.rpartition("=")
    try:
        number = float(weight)
    except ValueError:
        mark, number = "", 0.0
    if not mark or not data:
        raise DataError(f"{word}: found no weight, expected DATA=WEIGHT, such as photos=3")
    return Part(data, check_weight(number, word))


def _short(weight: float) -> float:
    """3 rather than 3.0."""
    return int(weight) if weight.is_integer() else weight
