"""What is wrong with the folder of a model, whoever it was written for."""

from __future__ import annotations

from pathlib import Path

from clipdistill.search.golden import check_files, check_golden
from clipdistill.search.papers import FILES, LAYOUT, is_export, read_papers


def examine(folder: Path) -> list[str]:
    """Return a line for each thing that is wrong with a student's folder, an exported one, or one of a layout.

    Raises :class:`SearchError` for a folder that is none of these.
    """
    record = read_papers(folder)
    if is_export(record):
        return check_golden(folder)
    if LAYOUT in record:  # another library's files: only their own library could embed with them
        return check_files(folder, record.get(FILES, {}))
    from clipdistill.models.checking import check_bundle  # it needs torch, an export does not

    return check_bundle(folder)
