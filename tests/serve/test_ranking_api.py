"""Documents are ordered by cosines, labels have the probabilities of the model's own scale."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from clipdistill.search.runtime import Runtime
from clipdistill.serve.ranking_api import probabilities


@pytest.fixture(scope="module")
def runtime(exported: tuple[Path, Any]) -> Runtime:
    return Runtime.open(exported[0], threads=1)


def test_documents_are_ordered_by_their_cosine(
    client: httpx.Client, runtime: Runtime, gallery: Path, data_uri: Callable[[int], str]
) -> None:
    documents = ["a red circle", {"image": data_uri(0)}, data_uri(1), {"text": "boat"}]
    answer = client.post("/rerank", json={"query": "a boat", "documents": documents, "return_documents": True})
    pictures = runtime.images([gallery / "photos" / f"{place}.png" for place in (0, 1)])
    texts = runtime.texts(["a red circle", "boat"])
    cosines = np.stack([texts[0], pictures[0], pictures[1], texts[1]]) @ runtime.texts(["a boat"])[0]
    results = answer.json()["results"]
    assert [one["index"] for one in results] == list(np.argsort(-cosines))
    assert [one["relevance_score"] for one in results] == pytest.approx(sorted(cosines, reverse=True), abs=1e-5)
    assert {one["index"]: one["document"] for one in results}[3] == {"text": "boat"}
    first = client.post("/v1/rerank", json={"query": "a boat", "documents": documents, "top_n": 1}).json()["results"]
    assert first == [{**results[0], "document": None}]


def test_labels_have_the_probabilities_of_the_model(
    client: httpx.Client, runtime: Runtime, gallery: Path, data_uri: Callable[[int], str]
) -> None:
    labels, templates = ["boat", "red circle", "tree"], ["a photo of a {}", "a drawing of a {}"]
    body = {"input": [data_uri(0), {"text": "tree"}], "labels": labels, "templates": templates}
    data = client.post("/classify", json=body).json()["data"]
    sentences = [template.replace("{}", label) for label in labels for template in templates]
    rows = runtime.texts(sentences).reshape(3, 2, -1).mean(axis=1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    inputs = np.stack([runtime.images([gallery / "photos" / "0.png"])[0], runtime.texts(["tree"])[0]])
    logits = runtime.scale * (inputs @ rows.T).astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for row, told in zip(expected, data, strict=True):
        assert [one["score"] for one in told["predictions"]] == pytest.approx(row, abs=1e-4)
        assert told["prediction"] == labels[int(row.argmax())]
        assert told["score"] == max(one["score"] for one in told["predictions"])


def test_a_model_with_a_bias_tells_each_label_by_itself() -> None:
    towers: Any = SimpleNamespace(runtime=SimpleNamespace(scale=10.0, bias=-2.0))
    found = probabilities(towers, np.array([[0.2, 0.5]], np.float32))
    assert found == pytest.approx(1 / (1 + np.exp([[-0.0, -3.0]])), abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/rerank", {"query": "x", "documents": []}, "at least 1"),
        ("/rerank", {"query": "x"}, "required"),
        ("/classify", {"input": ["x"], "labels": []}, "at least 1"),
        ("/classify", {"input": ["x"], "labels": ["a"], "templates": ["no slot"]}, "has no {}"),
        ("/classify", {"input": ["x"], "labels": ["a"] * 1000, "templates": ["{}"] * 100}, "labels times templates"),
        ("/classify", {"input": ["x"], "labels": ["a" * 20], "templates": ["{}" * 1000]}, "more than 20000 characters"),
        ("/classify", {"input": ["x"] * 101, "labels": ["a"] * 1000}, "inputs times labels"),
        ("/classify", {"input": ["x"] * 100, "labels": ["a" * 19_000] * 6}, "times the characters of labels"),
    ],
)
def test_a_wrong_request_is_told_why(client: httpx.Client, path: str, body: dict[str, Any], word: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert word in answer.json()["error"]["message"]
