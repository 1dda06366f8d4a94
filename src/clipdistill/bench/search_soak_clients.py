"""Clients of a soak: each asks the servers in turn for whatever comes, and keeps what was answered."""

from __future__ import annotations

import base64
import http.client
import io
import json
import queue
import random
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import quote

import numpy as np
from PIL import Image

from clipdistill.bench.search_server import Client, search_body
from clipdistill.bench.search_soak_checks import Answered, Asked
from clipdistill.bench.search_soak_gallery import DRAWN, Ledger, Pool

#: How often each kind of request comes.
KINDS = {"text": 4, "image": 2, "filter": 2, "like": 2, "embeddings": 1, "thumbnail": 2}
#: Words of captions that filters ask for.
_WORDS = ("red", "blue", "circle", "star", "large", "small")
#: Seconds between two requests of a client, and after one that nobody answered.
_PAUSE, _AFTER_FAILURE = 0.02, 0.5


@dataclass
class Target:
    """A server that clients ask: its port, and while it is ``down`` on purpose nobody is surprised."""

    name: str
    index: str
    port: int = 0
    down: list[tuple[float, float]] = field(default_factory=list)

    def was_down(self, sent: float, received: float) -> bool:
        """Whether it was down, or going down, at some time between."""
        return any(begun <= received and sent <= ended for begun, ended in list(self.down))


@dataclass
class Crowd:
    """So many clients in threads. What they are answered is in ``answers``, and what they are not in ``failures``."""

    pool: Pool
    ledger: Ledger
    targets: list[Target]
    draw: random.Random
    answers: queue.Queue[Answered] = field(default_factory=queue.Queue)
    failures: list[tuple[Target, float, float, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def start(self, clients: int) -> list[threading.Thread]:
        seeds = [self.draw.random() for _ in range(clients)]
        threads = [threading.Thread(target=self._work, args=(random.Random(seed),)) for seed in seeds]
        for thread in threads:
            thread.start()
        return threads

    def _work(self, draw: random.Random) -> None:
        clients: dict[str, Client] = {}
        while not self.over.is_set():
            target = draw.choice(self.targets)
            client = clients.get(target.name)
            if client is None or client.port != target.port:
                if client:
                    client.close()
                client = clients[target.name] = Client(target.port)
            asked = self.request(draw, target.index)
            sent = time.monotonic()
            try:
                status, body = client.ask(asked.path, asked.body)
                self.answers.put(Answered(asked, status, body, sent, time.monotonic()))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((target, sent, time.monotonic(), repr(error)))
                time.sleep(_AFTER_FAILURE)
            time.sleep(_PAUSE)
        for client in clients.values():
            client.close()

    def request(self, draw: random.Random, index: str) -> Asked:
        """Draw a request to an index by its name."""
        kind, place = draw.choices(list(KINDS), list(KINDS.values()))[0], draw.randrange(DRAWN)
        name = draw.choice(sorted(self.ledger.versions[self.ledger.newest].held.pictures))
        text, path = self.pool.captions[place], "/api/search"
        row = self.pool.texts[place : place + 1]
        if kind == "image":
            body = search_body(images=[_uri(self.pool.pixels[place])], k=10)
            return Asked(kind, path, body, self.pool.images[place : place + 1])
        if kind == "filter":
            word = draw.choice(_WORDS)
            where = f"caption contains {word}"
            return Asked(kind, path, search_body(texts=[text], where=where, k=10), row, word=word)
        if kind == "like":
            return Asked(kind, path, search_body(ids=[name], k=10), id=name)
        if kind == "thumbnail":
            version = self.ledger.newest
            return Asked(kind, f"/thumbnails/{quote(index)}/{quote(name)}?v={version}", id=name)
        if kind == "embeddings":
            places = [place, draw.randrange(DRAWN)]
            body = json.dumps({"input": [self.pool.captions[one] for one in places]}).encode()
            return Asked(kind, "/v1/embeddings", body, self.pool.texts[places])
        return Asked(kind, path, search_body(texts=[text], k=10), row)


def _uri(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
