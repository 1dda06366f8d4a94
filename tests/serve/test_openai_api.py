"""The clients of OpenAI, Jina, Infinity and vLLM get rows of the model, each in its own words."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from clipdistill.search.runtime import Runtime
from clipdistill.serve.schemas import MOST_IMAGES

TEXTS = ["a red circle", "两只狗在海滩上", "a much longer caption of many more words than the others have"]


@pytest.fixture(scope="module")
def runtime(exported: tuple[Path, Any]) -> Runtime:
    return Runtime.open(exported[0], threads=1)


def post(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def rows(answer: dict[str, Any]) -> np.ndarray:
    assert [one["index"] for one in answer["data"]] == list(range(len(answer["data"])))
    return np.array([one["embedding"] for one in answer["data"]], np.float32)


def test_the_client_of_openai(client: httpx.Client, runtime: Runtime) -> None:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0) as theirs:
        assert [model.id for model in theirs.models.list()] == ["onnx"]
        plain = theirs.embeddings.create(model="onnx", input=TEXTS, encoding_format="float", user="me")
        packed = theirs.embeddings.create(model="onnx", input=TEXTS)  # base64 on the wire
        short = theirs.embeddings.create(model="photos", input=TEXTS[0], dimensions=4)
        with pytest.raises(openai.NotFoundError, match=r"there is no model 'onx'\. Did you mean 'onnx'"):
            theirs.embeddings.create(model="onx", input="x")
        with pytest.raises(openai.BadRequestError, match="token ids"):
            theirs.embeddings.create(model="onnx", input=[1, 2, 3])
        with pytest.raises(openai.BadRequestError, match="dimensions is 4096"):
            theirs.embeddings.create(model="onnx", input="x", dimensions=4096)
    expected = runtime.texts(TEXTS)
    for answer in (plain, packed):
        assert np.allclose([one.embedding for one in answer.data], expected, atol=1e-5)
    assert plain.usage.total_tokens == sum(runtime.reader.lengths(TEXTS))
    cut = expected[0, :4] / np.linalg.norm(expected[0, :4])
    assert np.allclose(short.data[0].embedding, cut, atol=1e-5)


def test_base64_is_little_endian_float32(client: httpx.Client, runtime: Runtime) -> None:
    packed = post(client, input="boat", encoding_format="base64")["data"][0]["embedding"]
    assert np.allclose(np.frombuffer(base64.b64decode(packed), "<f4"), runtime.texts(["boat"])[0], atol=1e-5)


def test_items_of_jina(client: httpx.Client, runtime: Runtime, gallery: Path, data_uri: Callable[[int], str]) -> None:
    bare = data_uri(1).partition(",")[2]
    answer = post(
        client,
        model="onnx",
        task="retrieval.query",
        normalized=True,
        embedding_type="float",
        input=[{"image": data_uri(0)}, {"text": "boat"}, {"image": bare}, "red"],
    )
    pictures = runtime.images([gallery / "photos" / f"{place}.png" for place in (0, 1)])
    words = runtime.texts(["boat", "red"])
    expected = np.stack([pictures[0], words[0], pictures[1], words[1]])
    assert np.allclose(rows(answer), expected, atol=1e-5)
    assert answer["usage"]["total_tokens"] == sum(runtime.reader.lengths(["boat", "red"]))


def test_modality_of_infinity(
    client: httpx.Client, runtime: Runtime, gallery: Path, data_uri: Callable[[int], str]
) -> None:
    expected = runtime.images([gallery / "photos" / f"{place}.png" for place in (2, 3)])
    answer = post(client, modality="image", input=[data_uri(2), data_uri(3)])
    assert np.allclose(rows(answer), expected, atol=1e-5)
    one = post(client, modality="image", input=data_uri(3))
    assert np.allclose(rows(one)[0], expected[1], atol=1e-5)


def test_messages_of_vllm(client: httpx.Client, runtime: Runtime, data_uri: Callable[[int], str]) -> None:
    content = [{"type": "image_url", "image_url": {"url": data_uri(2), "detail": "auto"}}]
    answer = post(client, messages=[{"role": "user", "content": content}])
    assert np.allclose(rows(answer), rows(post(client, modality="image", input=data_uri(2))), atol=1e-6)
    answer = post(client, messages=[{"role": "user", "content": [{"type": "text", "text": "boat"}]}])
    assert np.allclose(rows(answer)[0], runtime.texts(["boat"])[0], atol=1e-5)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"input": []}, "at least 1"),
        ({"input": ["x"] * 2049}, "2048"),
        ({"input": [{"text": "x", "image": "AAAA"}]}, "either 'text' or 'image'"),
        ({"input": [{}]}, "either 'text' or 'image'"),
        ({"input": [[1, 2]]}, "token ids"),
        ({"input": "x", "messages": [{"content": "x"}]}, "either 'input' or 'messages'"),
        ({}, "either 'input' or 'messages'"),
        ({"messages": [{"content": [{"type": "text"}]}]}, "has no text"),
        ({"input": "x", "encoding_format": "binary"}, "float"),
        ({"input": "x", "dimensions": 0}, "greater"),
        ({"input": "AAAA" * 10, "modality": "image"}, "not a picture"),
        ({"input": ["AAAA"] * (MOST_IMAGES + 1), "modality": "image"}, f"at most {MOST_IMAGES}"),
    ],
)
def test_a_wrong_request_is_told_why(client: httpx.Client, body: dict[str, Any], word: str) -> None:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["error"]["message"]


def test_one_damaged_picture_does_not_spoil_the_others(client: httpx.Client, data_uri: Callable[[int], str]) -> None:
    damaged = data_uri(1)[:200]
    answer = client.post("/v1/embeddings", json={"input": [data_uri(0), damaged], "modality": "image"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input.1"
    assert len(post(client, input=[data_uri(0), data_uri(2)], modality="image")["data"]) == 2


def test_many_texts_are_embedded_in_order(client: httpx.Client, runtime: Runtime) -> None:
    texts = [f"caption {place} " + "word " * (place % 9) for place in range(100)]
    assert np.allclose(rows(post(client, input=texts)), runtime.texts(texts), atol=1e-5)
