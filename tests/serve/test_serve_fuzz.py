"""Whatever is sent, the answer is one of those that the description promises, and never a failure of the server."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

BOUNDS = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_every_route_answers_as_it_is_described(client: httpx.Client) -> None:
    while client.get("/ready").status_code != 200:
        pass
    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {
        "/api/search",
        "/v1/embeddings",
        "/knn-service",
        "/classify",
    }
    modes = [(one, GenerationMode.POSITIVE) for one in operations]
    modes += [(one, GenerationMode.NEGATIVE) for one in operations if one.method == "post"]
    for operation, mode in modes:

        @given(case=operation.as_strategy(generation_mode=mode))
        @BOUNDS
        def answers_as_described(case: Any) -> None:
            case.call_and_validate(checks=CHECKS, timeout=30)

        answers_as_described()


def starts() -> list[bytes]:
    """The first bytes of pictures of every form that is read, and of one that is not."""
    import io

    found = []
    for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"):
        stream = io.BytesIO()
        Image.new("RGB", (40, 30), (200, 10, 10)).save(stream, form)
        found.append(stream.getvalue())
    return found


@st.composite
def nearly_pictures(draw: Any) -> bytes:
    """A picture with some bytes changed, cut short or made longer."""
    data = bytearray(draw(st.sampled_from(starts())))
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))]) + draw(st.binary(max_size=20))


@given(data=st.one_of(nearly_pictures(), st.binary(max_size=200)))
@settings(BOUNDS, max_examples=60)
def test_any_bytes_are_a_picture_or_are_refused(client: httpx.Client, data: bytes) -> None:
    body = {"input": [{"image": "data:image/png;base64," + base64.b64encode(data).decode()}]}
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert set(answer.json()["error"]) == {"message", "type", "param"}


@given(where=st.text(max_size=40))
@settings(BOUNDS, max_examples=40)
def test_any_text_is_a_filter_or_is_refused(client: httpx.Client, where: str) -> None:
    answer = client.post("/api/search", json={"texts": ["boat"], "where": where})
    assert answer.status_code in (200, 400)
