"""What a server answers where it does not do what was asked: one shape for all, that of OpenAI's interface."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from clipdistill.errors import ClipdistillError, UnavailableError
from clipdistill.serve.schemas import LIST, OBJECT, STRING, Error, ErrorBody

log = logging.getLogger("clipdistill.serve")

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "method_not_allowed_error",
    413: "request_too_large_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}
#: Parts of where a fault is that are not in the request.
_FORMS = (STRING, LIST, OBJECT)
#: What the description of every route says of its failures.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be answered as it is."},
    "5XX": {"model": ErrorBody, "description": "The server cannot answer now."},
}


class RefusedError(Exception):
    """An answer with a status that is not a success; ``retry_after`` seconds it may go better."""

    def __init__(self, status: int, message: str, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.retry_after = status, param, retry_after


def failure(status: int, message: str, param: str | None = None, retry_after: float | None = None) -> JSONResponse:
    """Write the answer."""
    body = ErrorBody(error=Error(message=message, type=_KINDS.get(status, "server_error"), param=param))
    headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body.model_dump(), status, headers)


def answer_failures(app: FastAPI) -> None:
    """Have the app answer everything that a request can be refused for in the one shape."""
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(ClipdistillError, _own)
    app.add_exception_handler(UnavailableError, _unavailable)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusedError)
    return failure(error.status, str(error), error.param, error.retry_after)


async def _own(request: Request, error: Exception) -> JSONResponse:
    """A query or a picture is wrong; what the message says of the server's folders stays here."""
    return failure(400, request.app.state.house.hide(str(error)))


async def _unavailable(request: Request, error: Exception) -> JSONResponse:
    """What is wrong with a disk or a cluster is for whoever runs the server."""
    log.error("%s", error)
    return failure(503, "the index cannot be read just now; the server's log says why", retry_after=5)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = failure(error.status_code, f"{error.detail}: {request.method} {request.url.path}")
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    where, what = first_fault(error.errors(), start=1)  # it begins with "body" or "query"
    return failure(400, f"{where}: {what}" if where else what, where or None)


def first_fault(faults: Sequence[Any], start: int = 0) -> tuple[str, str]:
    """The field that is wrong first, as ``texts.0.weight``, and what is wrong with it."""
    if faults[0]["type"] == "json_invalid":
        return "", f"the body is not JSON: {faults[0]['ctx']['error']}"
    if tuple(faults[0]["loc"]) == ("body",) and faults[0]["type"] in ("missing", "model_attributes_type"):
        return "", "the body is not a JSON object; send one, with the header Content-Type: application/json"
    parts = [str(part) for part in faults[0]["loc"][start:] if part not in _FORMS]
    where = ".".join(part for part in parts if "[" not in part)  # that is the name of a type, not of a field
    return where, str(faults[0]["msg"]).removeprefix("Value error, ")
