"""The routes of clip-retrieval's server, so that its ClipClient and its page search here."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, RootModel, ValidationError

from clipdistill.errors import DataError
from clipdistill.search.index import Index
from clipdistill.search.query import Answer, Options, Query
from clipdistill.serve.failures import RESPONSES, RefusedError, first_fault
from clipdistill.serve.house import House
from clipdistill.serve.openai_api import Lenient
from clipdistill.serve.pictures import picture_bytes
from clipdistill.serve.schemas import MOST_HITS, TEXT_LENGTH, Name
from clipdistill.serve.search_api import web_location
from clipdistill.serve.work import Work

#: No model's rows are wider.
WIDEST = 16_384
_COLUMNS = ("location", "caption", "tags", "width", "height", "thumbnail")


class KnnRequest(Lenient):
    """A search by a text, a picture, its address, or a row; the first of them that is given.

    ``num_result_ids`` hits are given, at most 1000, of which ``num_images`` with what is known of them. There is no
    model here that tells what is safe, violent or beautiful: ``use_safety_model``, ``use_violence_detector``,
    ``aesthetic_score`` and ``aesthetic_weight``, which clients send by themselves, change nothing.
    """

    text: Annotated[str, Field(max_length=TEXT_LENGTH)] | None = None
    image: str | None = None
    image_url: str | None = None
    embedding_input: Annotated[list[float], Field(max_length=WIDEST)] | None = None
    modality: Literal["image", "text"] = "image"
    num_images: Annotated[int, Field(ge=1)] = 100
    num_result_ids: Annotated[int, Field(ge=1)] | None = None
    indice_name: Name | None = None
    deduplicate: bool = False
    use_mclip: bool = False


class MetadataRequest(Lenient):
    """Ids whose metadata is asked for; those that there are not are left out of the answer."""

    ids: Annotated[list[str | int], Field(max_length=MOST_HITS)]
    indice_name: Name | None = None


class Known(BaseModel):
    """A picture's id and what is known of it."""

    id: str
    metadata: dict[str, Any]


class KnnResponse(RootModel[list[dict[str, Any]]]):
    """Hits, best first: ``id``, ``similarity``, and of the first ones ``caption`` and ``url`` or ``image``."""


Body = TypeVar("Body", bound=BaseModel)


def clip_retrieval_router(house: House, work: Work) -> APIRouter:
    """Routes that clip-retrieval's clients call; they send JSON without saying that it is."""
    router = APIRouter(responses=RESPONSES, tags=["clip-retrieval"])

    @router.post("/knn-service", openapi_extra=_takes(KnnRequest))
    async def knn(request: Request) -> KnnResponse:
        """Find pictures, or what a row is near to."""
        asked = await _read(request, KnnRequest)
        return KnnResponse(await work.run(lambda: _knn(house, asked)))

    @router.post("/metadata", openapi_extra=_takes(MetadataRequest))
    async def metadata(request: Request) -> list[Known]:
        """Tell what is known of pictures."""
        asked = await _read(request, MetadataRequest)
        return await work.run(lambda: _metadata(house, asked))

    @router.get("/indices-list")
    def indices() -> list[str]:
        """Tell the names of the indexes."""
        return list(house.searchers)

    return router


def _takes(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"schema": model.model_json_schema()}
    return {"requestBody": {"required": True, "content": {"application/json": schema}}}


async def _read(request: Request, model: type[Body]) -> Body:
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        where, what = first_fault(error.errors())
        raise RefusedError(400, f"{where}: {what}" if where else what, where or None) from error


def _knn(house: House, asked: KnnRequest) -> list[dict[str, Any]]:
    if asked.modality != "image":
        raise RefusedError(400, "an index here holds pictures; modality text searches captions, which have no rows")
    if asked.use_mclip:
        raise RefusedError(
            400, "there is no mclip model here, only those of the indexes; leave use_mclip out", "use_mclip"
        )
    _, searcher = house.searcher(asked.indice_name)
    options = Options(k=min(asked.num_result_ids or asked.num_images, MOST_HITS), distinct=asked.deduplicate)
    query = _query(asked, house.settings.fetch)
    while True:
        index = searcher.index
        answer = searcher.search(query, options, through=house.towers)
        if answer.version == index.version:  # else another was published: hits and what is known of them are of one
            return _hits(index, answer, asked.num_images)


def _query(asked: KnnRequest, hosts: Sequence[str]) -> Query:
    if asked.text:
        return Query(texts={asked.text: 1.0})
    for param in ("image", "image_url"):
        if given := getattr(asked, param):
            try:
                return Query(images=((picture_bytes(given, hosts), 1.0),))
            except DataError as error:
                raise RefusedError(400, str(error), param) from error
    if asked.embedding_input:
        return Query(rows=((np.array(asked.embedding_input, np.float32), 1.0),))
    raise RefusedError(400, "expected one of text, image, image_url and embedding_input")


def _hits(index: Index, answer: Answer, shown: int) -> list[dict[str, Any]]:
    known = _known(index, [hit.id for hit in answer.hits[:shown]])
    return [{**known.get(hit.id, {}), "id": hit.id, "similarity": hit.score} for hit in answer.hits]


def _metadata(house: House, asked: MetadataRequest) -> list[Known]:
    _, searcher = house.searcher(asked.indice_name)
    ids = [str(one) for one in asked.ids]
    known = _known(searcher.index, ids)
    return [Known(id=one, metadata=known[one]) for one in ids if one in known]


def _known(index: Index, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    rows = index.rows(list(dict.fromkeys(ids)), _COLUMNS).to_pylist() if ids else []
    return {row["id"]: _metadata_of(row) for row in rows}


def _metadata_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A picture on the web by its address, any other by its thumbnail in base64, as clip-retrieval's page draws it."""
    told = {name: row[name] for name in ("caption", "tags", "width", "height")}
    if url := web_location(row["location"]):
        return {**told, "url": url}
    return {**told, "image": base64.b64encode(row["thumbnail"] or b"").decode()}
