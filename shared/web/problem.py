"""RFC 9457 problem details for everything that goes wrong, from the error tree's class attributes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from shared.errors import ClientError, Overloaded, SilkrecError, ValidationFailed
from shared.observability import context
from shared.observability.logging import get_logger

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:silkrec:problem:"
MAX_ERRORS = 100
_log = get_logger(__name__)


class UnsupportedMediaType(ClientError):
    status = 415
    code = "unsupported_media_type"
    title = "The body has the wrong media type"


class ProblemError(HTTPException):
    """A SilkrecError in the one shape that FastAPI lets through while it reads a body."""

    def __init__(self, error: SilkrecError) -> None:
        super().__init__(error.status, error.detail)
        self.error = error


def install(app: FastAPI) -> None:
    app.add_exception_handler(SilkrecError, _silkrec)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)


def of_error(error: SilkrecError) -> Response:
    """The answer for an error of the tree. A 5xx that nobody can retry shows no detail: it may name internals."""
    detail = error.detail if error.status < 500 or error.retryable else "see the log of the service for this request_id"
    errors = [fault.as_dict() for fault in error.errors[:MAX_ERRORS]]
    headers = {}
    if error.retry_after_s is not None or error.status in (429, 503):
        # Whole seconds, never 0: a client that retries at once makes an overload worse.
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1.0)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = 'Bearer realm="silkrec"'
    return response(error.status, error.code, error.title, detail, errors, headers)


def internal() -> Response:
    """For an exception outside the tree; the log has the traceback under the same request_id."""
    return response(500, SilkrecError.code, SilkrecError.title, "see the log of the service for this request_id")


def response(
    status: int,
    code: str,
    title: str,
    detail: str,
    errors: Sequence[Mapping[str, Any]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = {
        "type": TYPE_PREFIX + code,
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": context.current_request_id(),
        "errors": list(errors),
    }
    return Response(orjson.dumps(body), status, headers, MEDIA_TYPE)


async def _silkrec(_request: Request, error: Exception) -> Response:
    assert isinstance(error, SilkrecError)  # noqa: S101  (starlette types handlers by Exception)
    if error.status >= 500:
        if error.retryable:
            _log.warning("request failed", code=error.code, detail=error.detail)
        else:
            _log.error("request failed", code=error.code, detail=error.detail, exc_info=error)
    return of_error(error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    if isinstance(error, ProblemError):
        return of_error(error.error)
    status = HTTPStatus(error.status_code)
    detail = str(error.detail)
    if status is HTTPStatus.NOT_FOUND and detail == status.phrase:
        detail = f"there is no {request.url.path[:200]!a}"
    elif status is HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not possible here"
    code = status.phrase.lower().replace(" ", "_").replace("-", "_").replace("'", "")
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        code = Overloaded.code
    return response(status, code, status.phrase, detail, headers=error.headers)


async def _validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = [_fault(row, error.body) for row in error.errors()[:MAX_ERRORS]]
    first = faults[0]
    where = first["pointer"] or "the body"
    if "in" in first:
        where = f"{first['in']} parameter {first['pointer'][1:]}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return response(422, ValidationFailed.code, ValidationFailed.title, f"{where}: {first['message']}{more}", faults)


def _fault(row: Mapping[str, Any], body: Any) -> dict[str, Any]:
    """One pydantic error. Never its input: that may be a secret or a user's data."""
    source, *path = row["loc"]
    fault: dict[str, Any] = {}
    if source == "body":
        pointer = _pointer(_navigable(path, body, missing=row["type"] == "missing"))
    else:
        fault["in"] = source
        pointer = _pointer(path)
    message = str(row["msg"]).removeprefix("Value error, ")
    return fault | {"pointer": pointer, "message": message, "code": str(row["type"])}


def _navigable(path: Sequence[Any], body: Any, *, missing: bool) -> list[Any]:
    """Drops what pydantic puts between real steps: names of union branches and validators."""
    steps: list[Any] = []
    for place, step in enumerate(path):
        last = place == len(path) - 1
        in_object = isinstance(body, dict) and isinstance(step, str) and step in body
        in_list = isinstance(body, list) and isinstance(step, int) and 0 <= step < len(body)
        if in_object or in_list:
            body = body[step]
        elif not (missing and last):
            continue
        steps.append(step)
    return steps


def _pointer(path: Sequence[Any]) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)
