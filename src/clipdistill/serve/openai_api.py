"""Embeddings as the clients of OpenAI, Jina, Infinity and vLLM ask for them, all at ``POST /v1/embeddings``.

Shapes: ``N`` inputs, ``D`` width of their rows.
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from clipdistill.errors import DataError
from clipdistill.serve.batching import Rows
from clipdistill.serve.failures import RESPONSES, RefusedError
from clipdistill.serve.house import House
from clipdistill.serve.pictures import picture_bytes
from clipdistill.serve.schemas import (
    LIST,
    MOST_IMAGES,
    MOST_TEXTS,
    OBJECT,
    STRING,
    TEXT_LENGTH,
    Image,
    Name,
    Text,
    form_of,
)
from clipdistill.serve.towers import Towers
from clipdistill.serve.work import Work


def _one_of(*fields: str) -> dict[str, Any]:
    """What a description says of a request with exactly one of some fields."""
    return {"oneOf": [{"required": [field]} for field in fields]}


class Lenient(BaseModel):
    """A request of clients that send more fields than are used here."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Item(Lenient):
    """A text or a picture, one of the two."""

    model_config = ConfigDict(json_schema_extra=_one_of("text", "image"))
    text: Text | SkipJsonSchema[None] = None
    image: Image | SkipJsonSchema[None] = None

    @model_validator(mode="after")
    def _one(self) -> Item:
        if (self.text is None) == (self.image is None):
            raise ValueError("expected either 'text' or 'image'")
        return self


#: A text, whose length is checked once it is known to be one, or a picture.
TextOrImage = Annotated[str, Field(min_length=1)]
AnyItem = Annotated[Annotated[TextOrImage, Tag(STRING)] | Annotated[Item, Tag(OBJECT)], Discriminator(form_of)]
Inputs = Annotated[list[AnyItem], Field(min_length=1, max_length=MOST_TEXTS)]
AnyInput = Annotated[Annotated[TextOrImage, Tag(STRING)] | Annotated[Inputs, Tag(LIST)], Discriminator(form_of)]


class ImageUrl(Lenient):
    """Where a picture is, or itself as a data URI."""

    url: Image


class Part(Lenient):
    """A part of a message."""

    model_config = ConfigDict(json_schema_extra=_one_of("text", "image_url"))
    type: Literal["text", "image_url"]
    text: Text | SkipJsonSchema[None] = None
    image_url: ImageUrl | SkipJsonSchema[None] = None


class Message(Lenient):
    """A message, of one part: a model of two towers has no row for a text and a picture together."""

    content: Annotated[
        Annotated[Text, Tag(STRING)] | Annotated[list[Part], Field(min_length=1, max_length=1), Tag(LIST)],
        Discriminator(form_of),
    ]


class EmbeddingRequest(Lenient):
    """Inputs to embed: texts and items in ``input``, or vLLM's ``messages``.

    ``modality`` says what the strings of ``input`` are. ``dimensions`` cuts rows to so many and brings them to unit
    length again; ``base64`` is of little-endian float32. ``embedding_type`` is Jina's name of ``encoding_format``.
    """

    model_config = ConfigDict(json_schema_extra=_one_of("input", "messages"))
    input: AnyInput | SkipJsonSchema[None] = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=1)] | SkipJsonSchema[None] = None
    model: Name | None = None
    modality: Literal["text", "image"] = "text"
    encoding_format: Literal["float", "base64"] | None = None
    embedding_type: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _no_tokens(cls, value: Any) -> Any:
        first = value[0] if isinstance(value, list) and value else value
        first = first[0] if isinstance(first, list) and first else first
        if isinstance(first, int):
            raise ValueError(
                "token ids of another model mean nothing to this one; send texts "
                "(in LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
            )
        return value

    @model_validator(mode="after")
    def _given_once(self) -> EmbeddingRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("expected either 'input' or 'messages'")
        return self

    def items(self) -> list[Item]:
        """The inputs, each with what it is."""
        if self.messages is not None:
            return [_item(message) for message in self.messages]
        given = self.input if isinstance(self.input, list) else [self.input]
        return [one if isinstance(one, Item) else item_of(one or "", self.modality) for one in given]


class EmbeddingBody(BaseModel):
    """A row: numbers, or base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of the texts, each cut to what the model reads."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """Rows in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[EmbeddingBody]
    model: str
    usage: Usage


class ModelBody(BaseModel):
    """A model that is served; ``width`` of its rows, and ``sides``: ``I`` pictures, ``T`` texts."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "clipdistill"
    width: int
    sides: str


class ModelsResponse(BaseModel):
    """All models; the first is used by default."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


def openai_router(house: House, work: Work) -> APIRouter:
    """Routes of embeddings and models."""
    router = APIRouter(responses=RESPONSES, tags=["embeddings"])

    @router.post("/v1/embeddings", response_model=EmbeddingResponse)
    async def embeddings(request: EmbeddingRequest) -> Response:
        """Embed texts and pictures into rows of unit length."""
        return Response(await work.run(lambda: _answer(house, request)), media_type="application/json")

    @router.get("/v1/models")
    def models() -> ModelsResponse:
        """Tell which models there are."""
        found = house.models().items()
        return ModelsResponse(data=[ModelBody(id=name, width=one.width, sides=one.sides) for name, one in found])

    return router


def item_of(given: str, modality: str) -> Item:
    """A string as what it is said to be; raises :class:`RefusedError` for a text that is too long."""
    if modality == "image":
        return Item(image=given)
    if len(given) > TEXT_LENGTH:
        raise RefusedError(400, f"a text has {len(given)} characters, more than {TEXT_LENGTH}", "input")
    return Item(text=given)


def embed_items(items: list[Item], towers: Towers, hosts: tuple[str, ...], param: str) -> Rows:
    """Embed texts and pictures, ``float32 [N, D]``; raises :class:`RefusedError` that says which picture is none."""
    texts = [place for place, item in enumerate(items) if item.text is not None]
    images = [place for place, item in enumerate(items) if item.image is not None]
    if len(images) > MOST_IMAGES:
        raise RefusedError(400, f"{len(images)} pictures at once; expected at most {MOST_IMAGES}", param)
    rows = np.empty((len(items), towers.width), np.float32)
    rows[texts] = towers.texts([items[place].text or "" for place in texts])
    # One at a time: the bytes of all would be gigabytes.
    rows[images] = towers.images(_bytes(items[place].image or "", hosts, f"{param}.{place}") for place in images)
    return rows


def tokens_of(items: list[Item], towers: Towers) -> int:
    """Count the tokens of all texts, as far as the model reads them."""
    texts = [item.text for item in items if item.text is not None]
    return sum(towers.runtime.reader.lengths(texts)) if texts else 0


def cut(rows: Rows, dimensions: int | None) -> Rows:
    """Cut rows ``[N, D]`` to their first dimensions, of unit length again; raises :class:`RefusedError` for more."""
    if dimensions is None or dimensions == rows.shape[1]:
        return rows
    if dimensions > rows.shape[1]:
        raise RefusedError(400, f"dimensions is {dimensions}; the model's rows have {rows.shape[1]}", "dimensions")
    short = rows[:, :dimensions]
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    return np.asarray(short / np.where(lengths > 0, lengths, 1), np.float32)


def _answer(house: House, request: EmbeddingRequest) -> bytes:
    name, towers = house.model(request.model)
    items = request.items()
    rows = cut(embed_items(items, towers, house.settings.fetch, "input"), request.dimensions)
    packed = "base64" in (request.encoding_format, request.embedding_type)
    tokens = tokens_of(items, towers)
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": place, "embedding": _pack(row) if packed else row.tolist()}
            for place, row in enumerate(rows)
        ],
        "model": name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json.dumps(answer).encode()  # here, in a thread: thousands of rows take a while to write


def _pack(row: Rows) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


def _item(message: Message) -> Item:
    if isinstance(message.content, str):
        return Item(text=message.content)
    part = message.content[0]
    given = part.text if part.type == "text" else part.image_url and part.image_url.url
    if not given:
        raise RefusedError(400, f"a part of the type {part.type} has no {part.type}", "messages")
    return Item(text=given) if part.type == "text" else Item(image=given)


def _bytes(text: str, hosts: tuple[str, ...], param: str) -> bytes:
    try:
        return picture_bytes(text, hosts)
    except DataError as error:
        raise RefusedError(400, str(error), param) from error
