"""The soak of a search: a short one with everything in it, and checks that find what they are made for."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipdistill.bench import search_soak
from clipdistill.bench.search_soak_checks import Answered, Asked, Sample, leaks, wrong
from clipdistill.bench.search_soak_clients import KINDS, Target
from clipdistill.bench.search_soak_gallery import Held, Ledger, Pool, Version
from clipdistill.cli import main
from clipdistill.search.build import build_index

LAG = 1.0


def test_a_short_soak_has_all_of_it_and_finds_nothing(
    exported: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(*words: str) -> None:
        """Make the index in this process, which has started already."""
        build_index(words[2], words[4], words[6], workers=0).close()

    monkeypatch.setattr(search_soak, "run_module", here)
    pace = search_soak.Pace(clients=3, restart=0.5, sample=0.1, kill=1.0)
    soak = search_soak.Soak(tmp_path, exported[0], pace, draw=random.Random(1), typical=1.0)
    killed = soak._cycle

    def cycle() -> None:
        killed()
        soak.pace = replace(pace, kill=0.0)  # the first sync alone

    monkeypatch.setattr(soak, "_cycle", cycle)
    soak.begin()
    soak.live(2.0)
    told = search_soak.result(0.1, soak)
    assert told.measured["violations"] == [], told.text
    assert told.measured["syncs"] >= 1
    assert told.measured["versions"] >= 2
    assert told.measured["restarts"] >= 1
    assert set(told.measured["answers"]) == set(KINDS)
    assert soak.samples[-1].megabytes > 50
    assert json.loads(json.dumps(told.measured)) == told.measured


@pytest.fixture
def pool() -> Pool:
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((2, 6, 8))
    images, texts = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).astype(np.float32)
    pixels = [np.full((8, 8, 3), 40 * place, np.uint8) for place in range(6)]
    return Pool(pixels, [f"{word} star" for word in ("red", "blue", "grey", "red", "pink", "jade")], images, texts)


@pytest.fixture
def ledger() -> Ledger:
    """Three versions: b goes, then a is drawn anew, d comes and c gets another caption."""
    ledger = Ledger()
    first = {"a": (0, 0), "b": (1, 1), "c": (2, 2)}
    second = {"a": (0, 0), "c": (2, 2)}
    third = {"a": (3, 0), "c": (2, 4), "d": (5, 5)}
    for number, held in enumerate((first, second, third), start=1):
        ledger.add(number, Version(Held(held), 10.0 * number, 10.0 * number + 2))
    return ledger


Answer = Callable[..., str]


@pytest.fixture
def told(pool: Pool, ledger: Ledger) -> Answer:
    """What is said of an answer at some moment; the second version is the newest at 25."""

    def say(asked: Asked, body: Any, status: int = 200, at: float = 25.0) -> str:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return wrong(Answered(asked, status, raw, at, at + 0.1), ledger, pool, LAG)

    return say


def hits(pool: Pool, held: dict[str, tuple[int, int]], row: Any, **other: float) -> list[dict[str, Any]]:
    found = [
        {"id": name, "score": float(pool.images[drawn] @ row), "caption": pool.captions[words]}
        for name, (drawn, words) in held.items()
    ]
    return sorted(found, key=lambda hit: -hit["score"])


def test_an_answer_of_one_version_is_right(pool: Pool, ledger: Ledger, told: Answer) -> None:
    row, held = pool.texts[:1], ledger.versions[2].held.pictures
    asked = Asked("text", "/api/search", rows=row)
    assert told(asked, {"version": 2, "hits": hits(pool, dict(held), row[0])}) == ""
    red = {name: places for name, places in held.items() if name == "a"}
    assert told(replace(asked, kind="filter", word="red"), {"version": 2, "hits": hits(pool, red, row[0])}) == ""
    others = {name: places for name, places in held.items() if name != "a"}
    like = Asked("like", "/api/search", id="a")
    assert told(like, {"version": 2, "hits": hits(pool, others, pool.images[0])}) == ""
    assert told(like, b"busy", status=429) == ""


def test_the_old_version_may_answer_as_long_as_the_new_one_is_new(pool: Pool, ledger: Ledger, told: Answer) -> None:
    row = pool.texts[:1]
    asked = Asked("text", "/api/search", rows=row)
    old = {"version": 1, "hits": hits(pool, dict(ledger.versions[1].held.pictures), row[0])}
    assert told(asked, old, at=22.5) == ""
    assert told(asked, old, at=25.0) == "it is of version 1; then 2 could be"
    new = {"version": 3, "hits": hits(pool, dict(ledger.versions[3].held.pictures), row[0])}
    assert told(asked, new, at=25.0) == "it is of version 3; then 2 could be"
    assert told(asked, new, at=31.0) == ""


def test_mixed_and_wrong_hits_are_told(pool: Pool, ledger: Ledger, told: Answer) -> None:
    row, held = pool.texts[:1], dict(ledger.versions[2].held.pictures)
    asked = Asked("text", "/api/search", rows=row)

    def said(found: list[dict[str, Any]]) -> str:
        return told(asked, {"version": 2, "hits": found})

    right = hits(pool, held, row[0])
    assert said(right[:1]) == "1 hits instead of 2"
    assert said([right[0], right[0]]) == "2 hits instead of 2"
    assert "b is among the hits" in said(hits(pool, {"a": (0, 0), "b": (1, 1)}, row[0]))
    assert "a has the score" in said(hits(pool, {**held, "a": (3, 0)}, row[0]))
    assert "c has the caption of another version: pink star" in said(hits(pool, {**held, "c": (2, 4)}, row[0]))
    assert "has the score" in said(right[::-1])


def test_errors_are_told_unless_the_picture_is_gone(told: Answer) -> None:
    like, small = Asked("like", "/api/search", id="b"), Asked("thumbnail", "/thumbnails/photos/b", id="b")
    assert told(like, b"no such id", status=400) == ""
    assert told(small, b"", status=404) == ""
    assert told(like, b"no such id", status=400, at=15.0).startswith("status 400")  # it was there
    assert told(replace(small, id="a"), b"", status=404).startswith("status 404")
    assert told(like, b"", status=500).startswith("status 500")


def test_thumbnails_and_rows_are_compared(pool: Pool, told: Answer) -> None:
    def jpeg(place: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(pool.pixels[place]).save(stream, "JPEG")
        return stream.getvalue()

    small = Asked("thumbnail", "/thumbnails/photos/a", id="a")
    assert told(small, jpeg(0)) == ""
    assert told(small, jpeg(3)) == "the thumbnail of a is of no picture that it has been"
    assert told(small, jpeg(3), at=35.0) == ""
    asked = Asked("embeddings", "/v1/embeddings", rows=pool.texts[:2])
    rows = [{"embedding": row.tolist()} for row in pool.texts[:2]]
    assert told(asked, {"data": rows}) == ""
    assert told(asked, {"data": rows[::-1]}).startswith("rows are")
    assert told(asked, {"data": rows[:1]}) == "rows [1, 8] instead of [2, 8]"


def test_growth_is_a_leak_and_warming_up_is_none() -> None:
    warm = [Sample(at, 300 + min(at, 20) * 5, 20) for at in range(120)]
    assert leaks(warm) == []
    assert leaks(warm[:8]) == []
    assert leaks([Sample(at, 300 + at, 20) for at in range(120)]) == ["memory grew from 360 to 410 MB"]
    assert leaks([Sample(at, 300, 20 + at // 4) for at in range(120)]) == ["open files grew from 39 to 49"]


def test_a_server_that_is_down_on_purpose_surprises_nobody() -> None:
    target = Target("restarted", "photos", down=[(10.0, 12.0)])
    assert target.was_down(9.5, 10.5)
    assert target.was_down(11.0, 11.1)
    assert not target.was_down(12.5, 13.0)


def test_violations_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[float] = []
    found = search_soak.Result({}, {"violations": ["text: 1 hits instead of 2"]}, "violations: 1")
    monkeypatch.setattr(search_soak, "run", lambda minutes: asked.append(minutes) or found)
    file = tmp_path / "soak.json"
    assert main(["bench", "search-soak", "--minutes", "30", "--json", str(file)]) == 1
    assert "1 violations, the first: text: 1 hits instead of 2" in capsys.readouterr().err
    assert json.loads(file.read_text())["benchmarks"]["search-soak"]["violations"] == ["text: 1 hits instead of 2"]
    assert asked == [30]
