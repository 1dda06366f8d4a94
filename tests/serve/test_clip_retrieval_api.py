"""Clients of clip-retrieval are answered: requests as its ClipClient and its page send them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import requests
from PIL import Image

from clipdistill.search.query import Answer, Options, Query
from clipdistill.search.searcher import Searcher
from clipdistill.serve import clip_retrieval_api


def ask(client: httpx.Client, **given: Any) -> requests.Response:
    """Everything that ClipClient sends, as it sends it: JSON that does not say so."""
    body = {
        "text": None,
        "image": None,
        "image_url": None,
        "embedding_input": None,
        "deduplicate": True,
        "use_safety_model": True,
        "use_violence_detector": True,
        "indice_name": "photos",
        "use_mclip": False,
        "aesthetic_score": 9,
        "aesthetic_weight": 0.5,
        "modality": "image",
        "num_images": 5,
        "num_result_ids": 5,
        "verbose": False,
    }
    return requests.post(f"{client.base_url}/knn-service", data=json.dumps({**body, **given}), timeout=30)


@pytest.fixture(scope="module")
def searcher(gallery: Path) -> Searcher:
    return Searcher.open(gallery / "photos.index", threads=1)


def test_a_text_is_searched_for(client: httpx.Client, searcher: Searcher) -> None:
    found = ask(client, text="a red circle").json()
    expected = searcher.search(Query(texts={"a red circle": 1.0}), Options(k=5, distinct=True)).hits
    assert [(one["id"], one["caption"]) for one in found] == [(hit.id, hit.caption) for hit in expected]
    assert [one["similarity"] for one in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert all(Image.open(io.BytesIO(base64.b64decode(one["image"]))).format == "JPEG" for one in found)


def test_a_picture_and_a_row_are_searched_with(
    client: httpx.Client, searcher: Searcher, data_uri: Callable[[int], str], gallery: Path
) -> None:
    plain = data_uri(4).partition(",")[2]
    found = ask(client, image=plain, deduplicate=False).json()
    row = searcher.embed(Query(images=(((gallery / "photos" / "4.png").read_bytes(), 1.0),)))
    again = ask(client, embedding_input=row.tolist(), deduplicate=False, indice_name=None).json()
    expected = searcher.search_many(row[None], Options(k=5))[0].hits
    assert [one["id"] for one in found] == [one["id"] for one in again] == [hit.id for hit in expected]
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-3)


def test_its_page_asks_for_thousands_and_then_for_more_of_them(client: httpx.Client) -> None:
    body = json.dumps({"text": "boat", "modality": "image", "num_images": 2, "num_result_ids": 3000})
    found = client.post("/knn-service", content=body, headers={"Content-Type": "text/plain;charset=UTF-8"}).json()
    assert len(found) == 16
    assert ["caption" in one for one in found] == [True] * 2 + [False] * 14
    ids = [found[5]["id"], "no such", found[3]["id"]]
    more = client.post("/metadata", content=json.dumps({"ids": ids, "indice_name": "photos"})).json()
    assert [one["id"] for one in more] == [found[5]["id"], found[3]["id"]]
    assert {"caption", "image", "width", "height", "tags"} == set(more[0]["metadata"])
    assert client.get("/indices-list").json() == ["photos", "more"]


def test_hits_and_what_is_known_of_them_are_of_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is published while it is searched."""
    versions, searched = iter([1, 2, 2]), []
    index = property(lambda _: SimpleNamespace(version=next(versions)))

    def search(self: Any, *_: Any, **__: Any) -> Any:
        searched.append(self)
        return Answer((), 0.1, 2)

    searcher = type("Published", (), {"index": index, "search": search})()
    house: Any = SimpleNamespace(
        searcher=lambda _: ("photos", searcher), settings=SimpleNamespace(fetch=()), towers=None
    )
    told: list[int] = []
    monkeypatch.setattr(clip_retrieval_api, "_hits", lambda index, *_: told.append(index.version))
    clip_retrieval_api._knn(house, clip_retrieval_api.KnnRequest(text="a boat"))
    assert told == [2]
    assert len(searched) == 2


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "expected one of text"),
        ({"text": "x", "modality": "text"}, "an index here holds pictures"),
        ({"text": "x", "use_mclip": True}, "there is no mclip model"),
        ({"image_url": "http://example.org/x.png"}, "--allow-fetch example.org"),
        ({"image": "no base64!"}, "base64"),
        ({"embedding_input": [0.5]}, "shape"),
        ({"embedding_input": [float("nan")]}, "finite"),
        ({"embedding_input": [0.5] * 16_385}, "at most 16384"),
        ({"text": "x", "num_images": 0}, "greater"),
        ({"text": "x", "indice_name": "laion5B"}, "Known: more, photos"),
    ],
)
def test_what_cannot_be_done_is_said(client: httpx.Client, given: dict[str, Any], word: str) -> None:
    answer = ask(client, **given)
    assert answer.status_code in (400, 404)
    assert word in answer.json()["error"]["message"]
