"""Whether a saved model is what its record says."""

from __future__ import annotations

import json
from pathlib import Path

from clipdistill.errors import ModelError
from clipdistill.models.bundle import RECORD
from clipdistill.models.loading import load


def check_bundle(folder: str | Path) -> list[str]:
    """Open a saved model and compare it with its record: a line for each thing that is wrong.

    Raises :class:`ModelError` for a folder without a record.
    """
    path = Path(folder) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kept = record["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} is no saved model: {path} cannot be read ({error}). Name a student's folder."
        ) from error
    try:
        model = load(f"file:{folder}")
    except ModelError as error:
        return [str(error)]
    if model.fingerprint != kept:
        return ["weights, tokenizer or preprocessing are not those that were saved; copy the whole folder again"]
    return []
