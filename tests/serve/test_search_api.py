"""The program's own interface gives what the searcher gives, and says which field is wrong."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from clipdistill.search.query import Options, Query
from clipdistill.search.searcher import Searcher


def post(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/api/search", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in answer["hits"]]


@pytest.fixture(scope="module")
def searcher(gallery: Path) -> Searcher:
    return Searcher.open(gallery / "photos.index", threads=1)


def test_a_text_finds_what_the_searcher_finds(client: httpx.Client, searcher: Searcher) -> None:
    expected = searcher.search(Query(texts={"a red circle": 1.0}), Options(k=5))
    answer = post(client, texts=["a red circle"], k=5)
    assert ids(answer) == [hit.id for hit in expected.hits]
    assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit.score for hit in expected.hits], abs=1e-5)
    assert answer["version"] == searcher.index.version
    assert (answer["nothing_matches"], answer["calibrated"]) == (expected.nothing_matches, expected.calibrated)
    by_address = client.get("/api/search", params={"q": "a red circle", "k": 5}).json()
    assert by_address["hits"] == answer["hits"]


def test_all_parts_of_a_query_count(
    client: httpx.Client, searcher: Searcher, gallery: Path, data_uri: Callable[[int], str]
) -> None:
    name = sorted(known(searcher))[5]
    answer = post(
        client,
        texts=[{"text": "a red circle", "weight": 2.0}, "a boat"],
        images=[{"image": data_uri(3), "weight": 0.5}],
        ids=[name],
        negatives=["night"],
    )
    query = Query(
        texts={"a red circle": 2.0, "a boat": 1.0, "night": -0.5},
        images=(((gallery / "photos" / "3.png").read_bytes(), 0.5),),
        ids={name: 1.0},
    )
    expected = searcher.search(query, Options(k=20))
    assert ids(answer) == [hit.id for hit in expected.hits]
    assert name not in ids(answer)


def known(searcher: Searcher) -> set[str]:
    return {name for batch in searcher.index.table.scan(["id"]) for name in batch["id"].to_pylist()}


def test_an_index_is_chosen_by_name(client: httpx.Client) -> None:
    found = client.get("/api/indexes").json()["indexes"]
    assert [(one["name"], one["count"]) for one in found] == [("photos", 16), ("more", 8)]
    assert found[0]["model"] == "onnx"
    assert found[0]["sides"] == "IT"
    assert 1 <= len(found[0]["examples"]) <= 6
    assert len(post(client, texts=["boat"], index="more", k=100)["hits"]) == 8
    answer = client.post("/api/search", json={"texts": ["boat"], "index": "photo"})
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "index"
    assert "Did you mean 'photos'?" in answer.json()["error"]["message"]


def test_a_filter_chooses_and_a_wrong_one_is_pointed_at(client: httpx.Client, searcher: Searcher) -> None:
    name = sorted(known(searcher))[0]
    assert ids(post(client, texts=["boat"], where=f"id = '{name}'")) == [name]
    answer = client.post("/api/search", json={"texts": ["boat"], "where": "width >> 3"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "where"
    assert "character 8" in answer.json()["error"]["message"]


def test_thumbnails_come_from_the_index_alone(client: httpx.Client) -> None:
    hit = post(client, texts=["boat"])["hits"][0]
    answer = client.get(hit["thumbnail"])
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "private, max-age=3600"
    assert answer.content.startswith(b"\xff\xd8\xff")
    again = client.get(hit["thumbnail"], headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304
    assert client.get(hit["thumbnail"].split("?")[0]).headers["cache-control"] == "private, no-cache"
    for name in ("..%2F..%2Fphotos%2F0.png", "%2Fetc%2Fpasswd", "nothing", "%00", "a%20'%20or%20id%20!=%20'"):
        refused = client.get(f"/thumbnails/photos/{name}")
        assert refused.status_code == 404, name
        assert refused.json()["error"]["type"] == "not_found_error"


def test_no_answer_shows_where_the_server_keeps_things(client: httpx.Client, gallery: Path) -> None:
    answers = [
        client.get("/api/indexes"),
        client.get("/v1/models"),
        client.get("/openapi.json"),
        client.post("/api/search", json={"texts": ["boat"], "k": 100}),
        client.post("/api/search", json={"texts": ["boat"], "min_precision": 0.9}),
        client.post("/api/search", json={"ids": ["no such"]}),
        client.post("/knn-service", json={"text": "boat", "num_images": 5}),
        client.get("/metrics"),
    ]
    for answer in answers:
        assert str(gallery) not in answer.text
        assert "/tmp/" not in answer.text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"texts": [""]}, "texts.0"),
        ({"texts": [" "]}, None),
        ({"texts": ["boat"], "k": 0}, "k"),
        ({"texts": ["boat"], "k": 1001}, "k"),
        ({"texts": ["x" * 20_001]}, "texts.0"),
        ({"texts": ["boat"] * 65}, "texts"),
        ({"texts": [{"text": "boat", "weight": 0}]}, "texts.0"),
        ({"texts": ["boat"], "min_precision": 1}, "min_precision"),
        ({"texts": ["boat"], "kk": 1}, "kk"),
        ({"images": ["data:image/png;base64,AAAA"]}, None),
        ({"images": ["data:text/plain,AAAA"]}, "images.0"),
        ({"images": ["not base64!"]}, "images.0"),
        ({"images": ["http://127.0.0.1/x.png"]}, "images.0"),
        ({"ids": ["no such"]}, None),
        ({"texts": ["boat"], "negatives": [{"text": "boat", "weight": 1}]}, None),
    ],
)
def test_a_wrong_request_is_refused_in_one_shape(client: httpx.Client, body: dict[str, Any], param: str | None) -> None:
    answer = client.post("/api/search", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert (error["param"] or "").startswith(param or "")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"texts": ["\\ud800"]}',
        b'{"texts": ["a"], "k": 1e999}',
        b'{"texts": [{"text": "a", "weight": NaN}]}',
        b'{"texts": ["a"], "k": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b'"text"',
        b"null",
    ],
)
def test_a_body_that_is_no_request_is_refused(client: httpx.Client, body: bytes) -> None:
    for path in ("/api/search", "/v1/embeddings", "/knn-service", "/metadata", "/rerank", "/classify"):
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, (path, answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "param"}


def test_a_text_of_odd_characters_is_a_text(client: httpx.Client) -> None:
    for text in ("\0", "\u202e ", "𐍈" * 300, "' or 1=1 --", "🏖️", "两只狗在海滩上"):
        found = post(client, texts=[text], where="not caption = '" + text.replace("'", "''") + "'", k=100)
        assert len(found["hits"]) == 16, text


def test_pictures_are_searched_with_as_a_viewer_shows_them(
    client: httpx.Client, png: Callable[..., bytes], picture: Callable[..., Image.Image]
) -> None:
    plain = post(client, images=[base64.b64encode(png(picture(3))).decode()])
    safe = base64.urlsafe_b64encode(png(picture(3))).decode()
    assert ids(post(client, images=[safe])) == ids(plain)
    assert ids(post(client, images=[f"data:image/png;charset=x;base64,{safe}"])) == ids(plain)


@pytest.mark.parametrize("name", ["\ud800", "x" * 201], ids=["half a character", "long"])
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/search", {"texts": ["a"]}, "index"),
        ("/v1/embeddings", {"input": "a"}, "model"),
        ("/rerank", {"query": "a", "documents": ["a"]}, "model"),
        ("/classify", {"input": "a", "labels": ["a"]}, "model"),
        ("/knn-service", {"text": "a"}, "indice_name"),
        ("/metadata", {"ids": ["a"]}, "indice_name"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(
    client: httpx.Client, path: str, body: dict[str, Any], field: str, name: str
) -> None:
    answer = client.post(path, content=json.dumps({**body, field: name}))
    assert answer.status_code == 400, answer.text
    assert len(answer.text) < 1000


def test_a_thumbnail_of_another_picture_is_another_thumbnail(client: httpx.Client) -> None:
    first, second = (client.get(f"/thumbnails/photos/{place}.png") for place in (0, 1))
    assert first.headers["etag"] != second.headers["etag"]
    known = {"If-None-Match": first.headers["etag"]}
    assert client.get("/thumbnails/photos/0.png", headers=known).status_code == 304
    assert client.get("/thumbnails/photos/1.png", headers=known).content == second.content
