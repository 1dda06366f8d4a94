"""Which engine keeps the rows of an index: LanceDB in its folder, or what the manifest's ``engine`` names."""

from __future__ import annotations

from pathlib import Path

from clipdistill.search.manifest import Manifest
from clipdistill.search.table import Table


def refuse_taken(manifest: Manifest, folder: Path) -> None:
    """Raise :class:`SearchError` where an index that is not begun yet would begin in rows that are there already."""
    if manifest.engine:
        from clipdistill.search.milvus import refuse_taken

        refuse_taken(manifest, folder)


def open_table(manifest: Manifest, folder: Path) -> Table:
    """Open the version of the rows that the manifest names, for reading."""
    if manifest.engine:
        from clipdistill.search.milvus import MilvusTable

        return MilvusTable.open(manifest, folder)
    from clipdistill.search.lance import LanceTable  # it takes a while to import

    return LanceTable.open(manifest, folder)


def write_table(manifest: Manifest, folder: Path) -> Table:
    """Open the table that the manifest names, for writing; made if there is none."""
    if manifest.engine:
        from clipdistill.search.milvus import MilvusTable

        return MilvusTable.create(manifest, folder)
    from clipdistill.search.lance import LanceTable

    return LanceTable.create(manifest, folder)
