"""The page: static files of the package, by a fixed table of names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from clipdistill.serve.failures import RefusedError

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True)
class PageFile:
    """A file as it is sent."""

    data: bytes
    kind: str
    mark: str


def page_router() -> APIRouter:
    """Routes of the page, whose files are read once."""
    router, known = APIRouter(include_in_schema=False), _read_files()

    @router.get("/")
    async def index(request: Request) -> Response:
        return _send(known, "index.html", request)

    @router.get("/page/{name}")
    async def file(name: str, request: Request) -> Response:
        return _send(known, name, request)

    return router


def _read_files() -> dict[str, PageFile]:
    known = {}
    for path in (files("clipdistill.serve") / "page").iterdir():
        suffix = "." + path.name.rpartition(".")[2]
        if path.is_file() and suffix in _TYPES:
            data = path.read_bytes()
            known[path.name] = PageFile(data, _TYPES[suffix], f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return known


def _send(known: dict[str, PageFile], name: str, request: Request) -> Response:
    if name not in known:
        raise RefusedError(404, "the page has no such file")
    file = known[name]
    headers = {"ETag": file.mark, "Cache-Control": "no-cache"}
    if request.headers.get("if-none-match") == file.mark:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.kind, headers=headers)
