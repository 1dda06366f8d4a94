"""A model whose inputs go through it together, whichever requests they came in.

Shapes: ``N`` pictures or captions, ``D`` joint width.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdistill.search.pixels import Picture, read_pixels
from clipdistill.search.runtime import Runtime
from clipdistill.serve.batching import Batcher, Rows, seconds_left
from clipdistill.serve.failures import RefusedError
from clipdistill.serve.metrics import Metrics

#: Pictures that are decoded at a time: each may take some hundred megabytes while it is.
_DECODING = threading.BoundedSemaphore(min(4, os.cpu_count() or 1))


class Towers:
    """What a runtime does, in batches of what many requests ask for; a picture is decoded in its request's thread."""

    def __init__(self, runtime: Runtime, batch: int, metrics: Metrics) -> None:
        self.runtime, self.width = runtime, runtime.width
        self._texts = Batcher(_measured(runtime.texts, "text", metrics), batch, "texts")
        self._images = Batcher(_measured(self._embed_pixels, "image", metrics), batch, "images")

    def texts(self, captions: Sequence[str]) -> Rows:
        """Embed captions: ``float32 [N, D]``; raises :class:`RefusedError` for a model without a text tower."""
        if "T" not in self.runtime.sides:
            raise RefusedError(400, f"the model {self.runtime.folder.name} embeds pictures alone, no texts")
        return self._texts.rows(captions) if captions else self._none()

    def images(self, pictures: Iterable[Picture]) -> Rows:
        """Embed pictures: ``float32 [N, D]``; raises :class:`RefusedError` for a model without an image tower.

        Each is decoded before the next one is asked for. Raises :class:`DataError` for what is no picture.
        """
        if "I" not in self.runtime.sides:
            raise RefusedError(400, f"the model {self.runtime.folder.name} embeds texts alone, no pictures")
        prepared = [self._prepare(picture) for picture in pictures]
        return self._images.rows(prepared) if prepared else self._none()

    def warm(self) -> None:
        """Load the graphs, so that the first request need not wait for it."""
        if "T" in self.runtime.sides:
            self.texts(["warm"])
        if "I" in self.runtime.sides:
            self.images([Image.new("RGB", (32, 32))])

    def close(self) -> None:
        """Finish what is waiting, and end the threads."""
        self._texts.close()
        self._images.close()

    def _prepare(self, picture: Picture) -> Mapping[str, NDArray[Any]]:
        if not _DECODING.acquire(timeout=seconds_left("decode everything")):
            raise RefusedError(504, "there was not enough time to decode everything", retry_after=1)
        try:
            return read_pixels(self.runtime.transform, [picture])
        finally:
            _DECODING.release()

    def _embed_pixels(self, prepared: Sequence[Mapping[str, NDArray[Any]]]) -> Rows:
        return self.runtime.prepared({name: np.concatenate([one[name] for one in prepared]) for name in prepared[0]})

    def _none(self) -> Rows:
        return np.empty((0, self.width), np.float32)


def _measured(embed: Callable[[Any], Rows], side: str, metrics: Metrics) -> Callable[[list[Any]], Rows]:
    def measured(items: list[Any]) -> Rows:
        started = time.perf_counter()
        rows = embed(items)
        metrics.embedding.labels(side).observe(time.perf_counter() - started)
        metrics.batches.labels(side).observe(len(items))
        return rows

    return measured
