"""What every request passes before anything is read of it, and what every answer carries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipdistill.serve.buckets import Buckets
from clipdistill.serve.failures import RefusedError, failure, log
from clipdistill.serve.keys import Keys
from clipdistill.serve.metrics import Metrics
from clipdistill.serve.settings import Settings

#: Anybody may see these: they say nothing about the pictures.
OPEN = ("/", "/health", "/ready", "/openapi.json", "/favicon.ico")
PAGE = "/page/"
#: A page of hits asks for as many thumbnails, which cost little: they are not counted.
_FREE = (*OPEN, "/metrics")
_FREE_FOLDERS = (PAGE, "/thumbnails/")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """Refuses what may not ask, asks too much or takes too long; counts all; hides what goes wrong inside."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, keys: Keys | None) -> None:
        self.app, self._settings, self._metrics, self._keys = app, settings, metrics, keys
        self._buckets = Buckets(settings.rate) if settings.rate else None
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            await self._pass(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def begin(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            self._check(scope)
            with self._room(scope["path"]), anyio.fail_after(self._settings.seconds):
                await self.app(scope, _limited(receive, self._settings.body), begin)
            return
        except RefusedError as error:
            refusal = failure(error.status, str(error), error.param, error.retry_after)
        except TimeoutError:
            refusal = failure(504, f"the answer takes more than {self._settings.seconds:g} seconds", retry_after=1)
        except Exception:
            log.exception("%s %r failed", scope["method"], scope["path"])
            refusal = failure(500, "something went wrong in the server; its log says what")
        if not begun:
            await refusal(scope, receive, send)

    @contextmanager
    def _room(self, path: str) -> Iterator[None]:
        """Take a request in: bodies that are being read take memory, however slowly they come.

        What is free takes no room either: whoever has no key could fill it, and would keep out those who have one.
        """
        if _is_free(path):
            yield
            return
        if self._inside >= self._settings.room:
            raise RefusedError(429, f"the server is busy with {self._inside} requests; try again soon", retry_after=1)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers.get("host", ""))
        self._check_caller(scope, headers)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._settings.body:
            raise _too_large(self._settings.body)

    def _check_host(self, host: str) -> None:
        """A name that its owner lets lead to this machine makes a web page of theirs look like ours to a browser."""
        allowed = self._settings.hosts
        if allowed is None:
            return
        name = host[1 : host.find("]")] if host.startswith("[") else host.split(":")[0]
        if name.lower() not in allowed:
            raise RefusedError(403, f"the host is '{name[:100]}'; this server answers for {', '.join(allowed)} alone")

    def _check_caller(self, scope: Scope, headers: Headers) -> None:
        """Count a request against its key, or where there is none that is known against its address."""
        path: str = scope["path"]
        caller = f"address {(scope.get('client') or ('', 0))[0]}"
        name = self._name(headers) if self._keys else None
        wanted = self._keys is not None and name is None and path not in OPEN and not path.startswith(PAGE)
        if self._buckets and (wanted or not _is_free(path)):
            wait = self._buckets.wait(f"key {name}" if name else caller)
            if wait:
                raise RefusedError(429, f"more than {self._buckets.rate} requests a minute", retry_after=wait)
        if wanted:
            raise RefusedError(
                401, "a key is needed, as the header Authorization: Bearer KEY; found none that is known"
            )

    def _name(self, headers: Headers) -> str | None:
        kind, _, key = headers.get("authorization", "").partition(" ")
        assert self._keys is not None
        return self._keys.name_of(key.strip()) if kind.lower() == "bearer" else None


def _is_free(path: str) -> bool:
    return path in _FREE or path.startswith(_FREE_FOLDERS)


def _limited(receive: Receive, most: int) -> Receive:
    """Count a body while it comes, whatever its headers say of its length."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message: dict[str, Any] = dict(await receive())
        seen += len(message.get("body", b""))
        if seen > most:
            error = _too_large(most)
            raise HTTPException(error.status, str(error))  # the one kind that the reader of bodies lets through
        return message

    return limited


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"the request has more than {most >> 20} MB")
