"""An exported model on a CPU: onnxruntime or OpenVINO, tokenizers, numpy and Pillow, and no torch.

Shapes: ``N`` pictures or captions, ``D`` joint width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipdistill.data.views import Transform
from clipdistill.errors import SearchError
from clipdistill.search.calibrate import Calibration
from clipdistill.search.engines import ONNXRUNTIME, Graph, open_graph
from clipdistill.search.pixels import Picture, read_pixels
from clipdistill.search.tokens import Reader, TextRules

RECORD = "clipdistill.json"
#: The section of the record that makes a folder one of these, and its version.
SECTION, VERSION = "runtime", 1
_PLAIN = {"engine": ONNXRUNTIME, "precision": "float32"}
#: Rows that go through a graph together.
BATCH = 32


class Runtime:
    """The graphs of an exported folder behind two calls. A graph is loaded when it is first used."""

    def __init__(
        self, folder: Path, record: Mapping[str, Any], threads: int | None = None, engine: str | None = None
    ) -> None:
        self.folder, self.record, self._threads, self._engine = folder, record, threads, engine
        about = record[SECTION]
        self.width: int = int(record["width"])
        self.scale: float = float(about["scale"])
        self.bias: float | None = about["bias"]
        self.sides: str = ("I" if "image" in about else "") + ("T" if "text" in about else "")

    @classmethod
    def open(cls, folder: str | Path, threads: int | None = None, engine: str | None = None) -> Runtime:
        """Open a folder that ``clipdistill export`` wrote; ``threads`` of the CPU, all of them by default.

        ``engine``, onnxruntime or openvino, takes the folder's best graphs for that one; else each tower has the
        engine that was chosen for it. Raises :class:`SearchError` for any other folder.
        """
        return cls(Path(folder), read_record(Path(folder)), threads, engine)

    @property
    def fingerprint(self) -> str:
        """That of the model that was exported."""
        return str(self.record["fingerprint"])

    def images(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Embed pictures (files, their bytes, or open pictures): ``float32 [N, D]``, rows of unit length.

        Raises :class:`SearchError` for a model without an image tower, :class:`DataError` for what is no picture.
        """
        transform, graph = self.transform, self._image_graph
        rows = [
            graph(read_pixels(transform, pictures[start : start + BATCH])) for start in range(0, len(pictures), BATCH)
        ]
        return self._joined(rows)

    def prepared(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Embed at most a batch of pictures that :attr:`transform` has prepared: ``float32 [B, D]``."""
        return self._image_graph(inputs)

    def texts(self, captions: Sequence[str]) -> NDArray[np.float32]:
        """Embed captions: ``float32 [N, D]``, rows of unit length.

        Batches are no longer than they must be: of many captions, those of like length go together.
        Raises :class:`SearchError` for a model without a text tower.
        """
        if isinstance(captions, str):
            raise SearchError("captions are a list of texts; found one text. Put it in brackets.")
        reader, graph = self.reader, self._text_graph
        if not captions:
            return self._joined([])
        few = reader.rules.fixed or len(captions) <= BATCH
        order = range(len(captions)) if few else np.argsort(reader.lengths(captions), kind="stable")
        rows = np.empty((len(captions), self.width), np.float32)
        for start in range(0, len(captions), BATCH):
            places = list(order[start : start + BATCH])
            rows[places] = graph(reader([captions[place] for place in places]))
        return rows

    @cached_property
    def calibration(self) -> Calibration | None:
        """What makes a probability of a cosine; None where the export could not be calibrated, as its record says."""
        about = self.record[SECTION].get("calibration") or {}
        return Calibration.from_dict(about) if "slope" in about else None

    @cached_property
    def transform(self) -> Transform:
        """What is done to a picture; raises :class:`SearchError` for a model without an image tower."""
        return Transform.from_dict(self._part("image")["transform"])

    @cached_property
    def reader(self) -> Reader:
        """What makes token ids of captions; raises :class:`SearchError` for a model without a text tower."""
        part = self._part("text")
        return Reader(self.folder / part["tokenizer"], TextRules.from_dict(part["rules"]))

    @cached_property
    def _image_graph(self) -> Graph:
        return self._load("image")

    @cached_property
    def _text_graph(self) -> Graph:
        return self._load("text")

    def _part(self, side: str) -> Mapping[str, Any]:
        if side not in self.record[SECTION]:
            kind = {"image": "captions", "text": "pictures"}[side]
            raise SearchError(f"{self.folder} has no {side} tower: it is a model of {kind} alone.")
        part: Mapping[str, Any] = self.record[SECTION][side]
        return part

    def graph_of(self, side: str) -> Mapping[str, Any]:
        """Return what the record says of a side's graph: its ``engine``, ``precision`` and ``file``.

        One that says no more than its file is for onnxruntime in float32. Raises :class:`SearchError` where there is
        none, or none for the engine that was asked for.
        """
        part = self._part(side)
        graphs = [{**_PLAIN, **graph} for graph in (part, *part.get("others", ()))]
        found = [graph for graph in graphs if self._engine in (None, graph["engine"])]
        if not found:
            known = " and ".join(sorted({graph["engine"] for graph in graphs}))
            raise SearchError(f"{self.folder} has no {side} graph for the engine '{self._engine}', only for {known}.")
        return found[0]

    def _load(self, side: str) -> Graph:
        graph = self.graph_of(side)
        return open_graph(self.folder / graph["file"], graph["engine"], graph["precision"], self._threads)

    def _joined(self, rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate([np.empty((0, self.width), np.float32), *rows])


def read_record(folder: Path) -> dict[str, Any]:
    """Read an exported folder's record; raises :class:`SearchError` for any other folder."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise SearchError(
            f"{folder} is not an exported model: {path}: {reason}. "
            f"Make one with: clipdistill export MODEL --out FOLDER, and name that folder."
        ) from error
    version = (record.get(SECTION) or {}).get("version") if isinstance(record, dict) else None
    if version is None:
        raise SearchError(
            f"{folder} is a model that is not exported: {path} has no section '{SECTION}'. "
            f"Make one with: clipdistill export {folder} --out FOLDER"
        )
    if version != VERSION:
        raise SearchError(
            f"{path} is of version {version}, this clipdistill reads version {VERSION}. Export the model again."
        )
    return record
