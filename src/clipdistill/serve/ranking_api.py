"""What two towers can do without an index: order documents by a query, and tell which label fits.

Shapes: ``N`` inputs, ``L`` labels, ``D`` width of their rows.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from clipdistill.serve.failures import RESPONSES, RefusedError
from clipdistill.serve.house import House
from clipdistill.serve.openai_api import AnyItem, Inputs, Item, Lenient, Usage, embed_items, item_of, tokens_of
from clipdistill.serve.schemas import MOST_TEXTS, TEXT_LENGTH, Name, Text
from clipdistill.serve.towers import Towers
from clipdistill.serve.work import Work

_MOST_LABELS, _MOST_TEMPLATES, _MOST_ANSWERS = 1000, 100, 100_000
#: The answer repeats every label for every input: so many characters of them at most.
_MOST_ANSWERED = 10_000_000
#: Stands for the label in a template.
_SLOT = "{}"


class RerankRequest(Lenient):
    """Documents to put in order by how near they are to the query; strings are texts, or pictures as data URIs."""

    query: AnyItem
    documents: Inputs
    model: Name | None = None
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False


class Ranked(BaseModel):
    """A document by its place in the request; ``relevance_score`` is the cosine with the query."""

    index: int
    relevance_score: float
    document: dict[str, str] | None = None


class RerankResponse(BaseModel):
    """Documents, the nearest first."""

    object: Literal["list"] = "list"
    model: str
    results: list[Ranked]
    usage: Usage


class ClassifyRequest(Lenient):
    """Pictures or texts to find the label of; strings of ``input`` are pictures if they are data URIs, else texts.

    Each template is a sentence with ``{}`` where the label goes; a label's row is the mean of all its sentences'.
    """

    input: Inputs
    labels: Annotated[list[Text], Field(min_length=1, max_length=_MOST_LABELS)]
    templates: Annotated[tuple[Text, ...], Field(min_length=1, max_length=_MOST_TEMPLATES)] = ("a photo of a {}",)
    model: Name | None = None


class Prediction(BaseModel):
    """A label, and the probability that the model gives it."""

    label: str
    score: float


class Classified(BaseModel):
    """The likeliest label of an input, and all of them, in the order of the request."""

    object: Literal["classification"] = "classification"
    index: int
    prediction: str
    score: float
    predictions: list[Prediction]


class ClassifyResponse(BaseModel):
    """Classes in the order of the inputs."""

    object: Literal["list"] = "list"
    model: str
    data: list[Classified]
    usage: Usage


def ranking_router(house: House, work: Work) -> APIRouter:
    """Routes of both; each also under ``/v1``, where some clients look."""
    router = APIRouter(responses=RESPONSES, tags=["ranking"])

    @router.post("/v1/rerank", include_in_schema=False)
    @router.post("/rerank")
    async def rerank(request: RerankRequest) -> RerankResponse:
        """Put texts or pictures in order by how near they are to a query."""
        return await work.run(lambda: _rerank(house, request))

    @router.post("/v1/classify", include_in_schema=False)
    @router.post("/classify")
    async def classify(request: ClassifyRequest) -> ClassifyResponse:
        """Tell which of some labels fits each picture or text, without training."""
        return await work.run(lambda: _classify(house, request))

    return router


def probabilities(towers: Towers, cosines: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of labels, ``[N, L]``, by the model's own scale, as it was trained.

    A softmax over the labels; a model with a bias was trained to tell each label by itself, so they need not sum to 1.
    """
    logits = towers.runtime.scale * cosines.astype(np.float64)
    if towers.runtime.bias is not None:
        return np.asarray(np.exp(-np.logaddexp(0, -(logits + towers.runtime.bias))))
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _rerank(house: House, request: RerankRequest) -> RerankResponse:
    name, towers = house.model(request.model)
    documents = [_as_item(one) for one in request.documents]
    hosts = house.settings.fetch
    query = embed_items([_as_item(request.query)], towers, hosts, "query")[0]
    scores = embed_items(documents, towers, hosts, "documents") @ query
    order = np.argsort(-scores, kind="stable")[: request.top_n]
    results = [
        Ranked(
            index=int(place),
            relevance_score=float(scores[place]),
            document=documents[place].model_dump(exclude_none=True) if request.return_documents else None,
        )
        for place in order
    ]
    tokens = tokens_of([_as_item(request.query), *documents], towers)
    return RerankResponse(model=name, results=results, usage=Usage(prompt_tokens=tokens, total_tokens=tokens))


def _classify(house: House, request: ClassifyRequest) -> ClassifyResponse:
    name, towers = house.model(request.model)
    items = [_as_item(one) for one in request.input]
    if len(items) * len(request.labels) > _MOST_ANSWERS:
        raise RefusedError(400, f"inputs times labels are more than {_MOST_ANSWERS}", "input")
    if len(items) * sum(map(len, request.labels)) > _MOST_ANSWERED:
        raise RefusedError(400, f"inputs times the characters of labels are more than {_MOST_ANSWERED}", "labels")
    labels = _label_rows(request, towers)
    scores = probabilities(towers, embed_items(items, towers, house.settings.fetch, "input") @ labels.T)
    data = []
    for place, row in enumerate(scores):
        best = int(row.argmax())
        told = [Prediction(label=label, score=float(score)) for label, score in zip(request.labels, row, strict=True)]
        data.append(Classified(index=place, prediction=request.labels[best], score=float(row[best]), predictions=told))
    tokens = tokens_of(items, towers)
    return ClassifyResponse(model=name, data=data, usage=Usage(prompt_tokens=tokens, total_tokens=tokens))


def _label_rows(request: ClassifyRequest, towers: Towers) -> NDArray[np.float32]:
    """Rows of labels, ``[L, D]``, of unit length."""
    if any(_SLOT not in template for template in request.templates):
        raise RefusedError(400, f"a template has no {_SLOT} for the label", "templates")
    if len(request.labels) * len(request.templates) > 2 * MOST_TEXTS:
        raise RefusedError(400, f"labels times templates are more than {2 * MOST_TEXTS}", "templates")
    longest = max(map(len, request.labels))
    if any(len(template) + template.count(_SLOT) * longest > TEXT_LENGTH for template in request.templates):
        raise RefusedError(400, f"a template with its label has more than {TEXT_LENGTH} characters", "templates")
    texts = [template.replace(_SLOT, label) for label in request.labels for template in request.templates]
    rows = towers.texts(texts).reshape(len(request.labels), len(request.templates), -1).mean(axis=1)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def _as_item(one: str | Item) -> Item:
    if isinstance(one, Item):
        return one
    return item_of(one, "image" if one.startswith("data:image/") else "text")
