"""Indexes of rows that a test makes up, written and published as the product does it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from clipdistill.search.index import Index
from clipdistill.search.manifest import Manifest, Model
from clipdistill.search.table import schema
from clipdistill.search.tables import write_table


def jpeg(seed: int) -> bytes:
    """A small picture."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format="JPEG")
    return stream.getvalue()


def row_of(name: str, vector: NDArray[np.float32], **more: Any) -> dict[str, Any]:
    """A row of an index, with what ``more`` says of it."""
    plain = {"hash": f"hash of {name}", "location": name, "caption": "", "tags": [], "width": 640, "height": 480}
    return {"id": name, "vector": vector, "thumbnail": jpeg(len(name)), **plain, **more}


def write_index(folder: Path, model: Model, rows: Sequence[dict[str, Any]]) -> Index:
    """Write rows to the index in ``folder``, made if there is none, and publish them."""
    folder.mkdir(exist_ok=True)
    about = Manifest.read(folder) if (folder / "index.json").exists() else Manifest(model, None, model.width)
    table = write_table(about, folder)
    table.write(pa.Table.from_pylist(list(rows), schema(model.width)))
    published = table.publish()
    count = sum(len(batch) for batch in table.scan(["id"], written=True))
    replace(about, snapshot=published.snapshot, version=about.version + 1, count=count).write(folder)
    table.close()
    return Index.open(folder)
