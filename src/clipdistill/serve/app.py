"""Searches over HTTP: an index, its model, and everything around them, as one application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

from fastapi import APIRouter, FastAPI
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware

from clipdistill import __version__
from clipdistill.errors import ClipdistillError, ConfigError
from clipdistill.search.searcher import Searcher
from clipdistill.serve.clip_retrieval_api import clip_retrieval_router
from clipdistill.serve.failures import RESPONSES, RefusedError, answer_failures, log
from clipdistill.serve.guard import Guard
from clipdistill.serve.house import House
from clipdistill.serve.keys import Keys
from clipdistill.serve.metrics import Metrics
from clipdistill.serve.openai_api import openai_router
from clipdistill.serve.page_files import page_router
from clipdistill.serve.ranking_api import ranking_router
from clipdistill.serve.search_api import search_router
from clipdistill.serve.settings import Settings
from clipdistill.serve.work import Work

#: FastAPI tells a collector about requests if there is one; nothing is told about anybody here.
_SILENT: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


class Health(BaseModel):
    """The server is there."""

    status: Literal["ok"] = "ok"


def create_app(indexes: Mapping[str, Searcher], settings: Settings = Settings()) -> FastAPI:  # noqa: B008
    """Make the application of indexes by name, the first of which is searched by default.

    Raises :class:`ConfigError` for no index, and for a file of keys that cannot be read.
    """
    if not indexes:
        raise ConfigError("there is no index to serve. Make one with: clipdistill index PHOTOS --model MODEL --out OUT")
    keys = Keys(settings.keys) if settings.keys else None
    metrics = Metrics()
    house, work = House(indexes, settings, metrics), Work(settings.room, settings.seconds)
    metrics.inside.set_function(lambda: work.inside)
    app = FastAPI(
        title="clipdistill",
        version=__version__,
        docs_url=None,  # both would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # it would lead to whatever host the request names
        lifespan=_life(house, work, keys),
        telemetry=_SILENT,
    )
    app.state.house = house
    answer_failures(app)
    for router in (
        search_router(house, work),
        openai_router(house, work),
        clip_retrieval_router(house, work),
        ranking_router(house, work),
        _status_router(house, metrics),
        page_router(),
    ):
        app.include_router(router)
    app.add_middleware(Guard, settings=settings, metrics=metrics, keys=keys)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's client sends some of its own; no cookie is ever asked for
            expose_headers=["Retry-After"],
        )
    return app


def _life(house: House, work: Work, keys: Keys | None) -> Any:
    """What runs beside the requests, from the first to the last."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        beside = asyncio.create_task(_look_after(house, keys))
        yield
        beside.cancel()
        with suppress(asyncio.CancelledError):
            await beside
        await asyncio.to_thread(work.close)
        await asyncio.to_thread(house.close)

    return life


async def _look_after(house: House, keys: Keys | None) -> None:
    """Load the models, then look for new versions of the indexes and of the keys, for ever."""
    told = ""
    while True:
        try:
            await asyncio.to_thread(_renew, house, keys)
            told = ""
        except Exception as error:  # what was loaded before goes on being used
            if str(error) != told:
                log.error(
                    "what is served cannot be renewed: %s", error, exc_info=not isinstance(error, ClipdistillError)
                )
            told = str(error)
        await asyncio.sleep(house.settings.refresh)


def _renew(house: House, keys: Keys | None) -> None:
    """Keys come first: one that was taken back is so, whatever becomes of the indexes."""
    try:
        if keys:
            keys.refresh()
    finally:
        if not house.ready:
            house.warm()
        house.refresh()


def _status_router(house: House, metrics: Metrics) -> APIRouter:
    router = APIRouter(responses=RESPONSES, tags=["status"])

    @router.get("/health")
    async def health() -> Health:
        """Tell that the server is there."""
        return Health()

    @router.get("/ready")
    async def ready() -> Health:
        """Tell that the models are loaded: from now on no request waits for that."""
        if not house.ready:
            raise RefusedError(503, "the models are being loaded", retry_after=1)
        return Health()

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def numbers() -> Response:
        """Give all counters, for Prometheus."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router
