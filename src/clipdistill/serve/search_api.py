"""The program's own interface: searches, the indexes, and thumbnails."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi import Query as Parameter
from fastapi.responses import Response

from clipdistill.errors import DataError, SearchError
from clipdistill.search.filters import Filter
from clipdistill.search.query import Answer, Hit, Options, Query
from clipdistill.serve.failures import RESPONSES, RefusedError
from clipdistill.serve.house import House
from clipdistill.serve.pictures import picture_bytes
from clipdistill.serve.schemas import (
    MOST_HITS,
    NEGATIVE,
    TEXT_LENGTH,
    Calibrated,
    HitBody,
    IndexBody,
    IndexesResponse,
    Name,
    Probability,
    SearchRequest,
    SearchResponse,
    WeightedText,
)
from clipdistill.serve.work import Work

#: Seconds that a browser keeps a thumbnail without asking: another index may come under the same name.
_KEPT = 3600


def search_router(house: House, work: Work) -> APIRouter:
    """Routes of searches."""
    router = APIRouter(responses=RESPONSES, tags=["search"])

    @router.post("/api/search")
    async def search(request: SearchRequest) -> SearchResponse:
        """Find pictures by texts, pictures, pictures of the index, or all of them together."""
        return await work.run(lambda: search_index(house, request))

    @router.get("/api/search")
    async def search_text(
        q: Annotated[str, Parameter(min_length=1, max_length=TEXT_LENGTH)],
        index: Name | None = None,
        k: Annotated[int, Parameter(ge=1, le=MOST_HITS)] = 20,
        where: Annotated[str | None, Parameter(max_length=TEXT_LENGTH)] = None,
        min_precision: Probability | None = None,
        distinct: bool = False,
    ) -> SearchResponse:
        """Find pictures by a text."""
        request = SearchRequest(
            texts=[q], index=index, k=k, where=where, min_precision=min_precision, distinct=distinct
        )
        return await work.run(lambda: search_index(house, request))

    @router.get("/api/indexes")
    def indexes() -> IndexesResponse:
        """Tell which indexes there are."""
        return IndexesResponse(indexes=[describe(house, name) for name in house.searchers])

    @router.get("/thumbnails/{index}/{name:path}", response_class=Response, responses=_JPEG)
    def thumbnail(index: str, name: str, request: Request, v: int | None = None) -> Response:
        """Give the small JPEG of a picture, from the index: never from the disk of the server."""
        found = house.searcher(index)[1].index
        data = found.thumbnail(name)
        if data is None:
            raise RefusedError(404, "the index has no thumbnail of such a picture")
        lasting = f"max-age={_KEPT}" if v == found.version else "no-cache"
        mark = hashlib.blake2b(data, digest_size=12).hexdigest()
        headers = {"Cache-Control": f"private, {lasting}", "ETag": f'"{mark}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type="image/jpeg", headers=headers)

    return router


_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"description": "The picture.", "content": {"image/jpeg": {"schema": {"type": "string"}}}}
}


def search_index(house: House, request: SearchRequest) -> SearchResponse:
    """Do what a request asks for; raises :class:`RefusedError` with the field that is wrong."""
    name, searcher = house.searcher(request.index)
    query = Query(texts=_texts(request), images=_images(request, house.settings.fetch), ids=_ids(request))
    options = Options(
        k=request.k,
        where=_filter(request.where),
        min_precision=request.min_precision,
        distinct=request.distinct,
        exact=request.exact,
    )
    with house.metrics.searching.labels(name).time():
        answer = searcher.search(query, options, through=house.towers)
    return _response(name, answer)


def describe(house: House, name: str) -> IndexBody:
    """Say what an index is."""
    searcher = house.searchers[name]
    index, runtime = searcher.index, searcher.runtime
    return IndexBody(
        name=name,
        count=index.count,
        version=index.version,
        model=house.name_of(runtime),
        fingerprint=runtime.fingerprint,
        width=runtime.width,
        sides=runtime.sides,
        calibrated=Calibrated(
            text=searcher.curve("text").fitted is not None, image=searcher.curve("image").fitted is not None
        ),
        examples=list(house.examples(name)),
    )


def thumbnail_path(index: str, name: str, version: int) -> str:
    """The address of a picture's thumbnail, which stays the same as long as the index does."""
    return f"/thumbnails/{quote(index, safe='')}/{quote(name, safe='')}?v={version}"


def web_location(location: str) -> str | None:
    """Where a picture is, if it is on the web: other places are the server's own, and part of a file has no address."""
    web = location.startswith(("http://", "https://"))
    return location if web and not any(map(str.isspace, location)) else None


def _response(name: str, answer: Answer) -> SearchResponse:
    return SearchResponse(
        index=name,
        version=answer.version,
        milliseconds=round(answer.seconds * 1000, 3),
        nothing_matches=answer.nothing_matches,
        calibrated=answer.calibrated,
        hits=[_hit(name, answer.version, hit) for hit in answer.hits],
    )


def _hit(index: str, version: int, hit: Hit) -> HitBody:
    return HitBody(
        id=hit.id,
        score=hit.score,
        probability=hit.probability,
        caption=hit.caption,
        tags=list(hit.tags),
        width=hit.width,
        height=hit.height,
        thumbnail=thumbnail_path(index, hit.id, version),
        location=web_location(hit.location),
    )


def _texts(request: SearchRequest) -> dict[str, float]:
    weights: dict[str, float] = {}
    for one in request.texts:
        text, weight = (one.text, one.weight) if isinstance(one, WeightedText) else (one, 1.0)
        weights[text] = weights.get(text, 0.0) + weight
    for one in request.negatives:
        text, weight = (one.text, one.weight) if isinstance(one, WeightedText) else (one, NEGATIVE)
        weights[text] = weights.get(text, 0.0) - weight
    return weights


def _images(request: SearchRequest, hosts: tuple[str, ...]) -> tuple[tuple[bytes, float], ...]:
    pairs = []
    for place, one in enumerate(request.images):
        text, weight = (one, 1.0) if isinstance(one, str) else (one.image, one.weight)
        try:
            pairs.append((picture_bytes(text, hosts), weight))
        except DataError as error:
            raise RefusedError(400, str(error), f"images.{place}") from error
    return tuple(pairs)


def _ids(request: SearchRequest) -> dict[str, float]:
    weights: dict[str, float] = {}
    for one in request.ids:
        name, weight = (one, 1.0) if isinstance(one, str) else (one.id, one.weight)
        weights[name] = weights.get(name, 0.0) + weight
    return weights


def _filter(text: str | None) -> Filter | None:
    if text is None or not text.strip():
        return None
    try:
        return Filter.parse(text)
    except SearchError as error:
        raise RefusedError(400, str(error), "where") from error
