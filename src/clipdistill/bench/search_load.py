"""Clients of a server, who measure how long they wait: what ``bench search`` asks a process of its own for.

``python -m clipdistill.bench.search_load '{"port": ..., "captions": ..., ...}'``
"""

from __future__ import annotations

import base64
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from clipdistill.bench.clock import percentiles
from clipdistill.bench.pictures import jpeg
from clipdistill.bench.search_mixture import CATEGORIES, tag
from clipdistill.bench.search_server import Client, search_body
from clipdistill.errors import TrainingError

PATH = "/api/search"
#: Hits that are asked for, pictures to ask with, and their size in pixels.
HITS, PICTURES, SIZE = 10, 8, (512, 512)
#: Answers that do not count: they warm up.
_WARM = 5


def measure(port: int, captions: str, kinds: Sequence[str], rounds: int, longest: float) -> dict[str, Any]:
    """Ask one thing after another, ``kinds`` in turn, and wait for each: ``p50``, ``p99`` (ms) and ``rounds`` by kind.

    There are so many ``rounds``, fewer if they take more than ``longest`` seconds. Raises :class:`TrainingError` for
    an answer that is not ten hits.
    """
    bodies = _bodies(captions)
    asking = {kind: cycle(bodies[kind]) for kind in kinds}
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    began, done = time.perf_counter(), 0
    with closing(Client(port)) as client:
        while done < rounds + _WARM and (done < 2 * _WARM or time.perf_counter() - began < longest):
            for kind, several in asking.items():
                taken[kind].append(_ask(client, next(several)))
            done += 1
    return {kind: percentiles(seconds[_WARM:]) for kind, seconds in taken.items()}


def press(port: int, captions: str, kind: str, clients: int, seconds: float) -> dict[str, Any]:
    """Ask from many clients at once, each as soon as it has its answer.

    Returns ``per_s`` answers, ``p50_ms``, ``p99_ms``, how many were ``refused`` as too many, and ``errors``: any other
    answer, and none.
    """
    bodies, taken, failed = _bodies(captions)[kind], list[float](), list[str]()
    until = time.perf_counter() + seconds

    def work(number: int) -> None:
        client, mine = Client(port), cycle(bodies[number % len(bodies) :] + bodies[: number % len(bodies)])
        while (start := time.perf_counter()) < until:
            try:
                status, answer = client.ask(PATH, next(mine))
            except (OSError, http.client.HTTPException) as error:
                failed.append(repr(error))
                continue
            if status == 200:
                taken.append(time.perf_counter() - start)
            else:
                failed.append(f"{status} {answer[:200].decode()}")
                time.sleep(0.05)
        client.close()

    began = time.perf_counter()
    _together([partial(work, number) for number in range(clients)])
    spent, refused = time.perf_counter() - began, sum(told.startswith("429 ") for told in failed)
    found = percentiles(taken) if taken else {"p50": None, "p99": None}
    errors = [told for told in failed if not told.startswith("429 ")]
    told = {"per_s": len(taken) / spent, "refused": refused, "errors": len(errors), "first_error": (errors or [""])[0]}
    return {**told, "p50_ms": found["p50"], "p99_ms": found["p99"]}


def picture_uri(seed: int) -> str:
    """A JPEG as a browser sends it."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(seed, SIZE)).decode()


def _bodies(captions: str) -> dict[str, list[bytes]]:
    texts = json.loads(Path(captions).read_text())
    wanted = [f"tags has {tag(place % CATEGORIES)}" for place in range(len(texts))]
    return {
        "text": [search_body(texts=[text], k=HITS) for text in texts],
        "filter": [search_body(texts=[text], where=where, k=HITS) for text, where in zip(texts, wanted, strict=True)],
        "image": [search_body(images=[picture_uri(seed)], k=HITS) for seed in range(PICTURES)],
    }


def _ask(client: Client, body: bytes) -> float:
    start = time.perf_counter()
    status, answer = client.ask(PATH, body)
    hits = json.loads(answer).get("hits", ())
    spent = time.perf_counter() - start
    if status != 200 or len(hits) != HITS:
        raise TrainingError(f"the server answers with {status} and {len(hits)} hits: {answer[:500].decode()}")
    return spent


def _together(works: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(**asked: Any) -> None:
    """Answer one question with one line of JSON."""
    print(json.dumps(press(**asked) if "clients" in asked else measure(**asked)))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
