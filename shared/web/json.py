"""Strict JSON: RFC 8259 with orjson. NaN, infinities, lone surrogates and bad UTF-8 are refused with their position.

Of a repeated name the last one counts, everywhere: one parser reads a body, so no two parts can read it differently.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse

from shared.errors import ClientError, FieldError
from shared.web.problem import ProblemError, UnsupportedMediaType

# orjson writes 254 levels and reads 1,024: whatever we accept must also fit into an answer.
MAX_DEPTH = 64
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z
RouteHandler = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonResponse(JSONResponse):
    """The default answer of every route."""

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=_OPTIONS)


def parse(body: bytes) -> Any:
    """The value of a JSON text. Raises ClientError (400) that says what is wrong, and in which line and column."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        detail = f"the body is not valid JSON: {error.msg}, line {error.lineno} column {error.colno}"
        fault = FieldError("", error.msg, "malformed_json", error.pos)
        raise ClientError(detail, errors=[fault]) from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        fault = FieldError("", f"more than {MAX_DEPTH} levels", "too_deep")
        raise ClientError(f"the body nests deeper than {MAX_DEPTH} levels; flatten it", errors=[fault])
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = (
            [
                child
                for parent in level
                for child in (parent.values() if isinstance(parent, dict) else parent)
                if isinstance(child, dict | list)
            ]
            if isinstance(level[0], dict | list)
            else []
        )
        if not level:
            return False
    return True


class StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                self._json = parse(body)
            except ClientError as error:
                # FastAPI turns anything but an HTTPException into a bare "error parsing the body".
                raise ProblemError(error) from None
        return self._json


class StrictRoute(APIRoute):
    """Routes made on the application itself; those of included routers become strict by `make_strict`."""

    def get_route_handler(self) -> RouteHandler:
        return _strict(super().get_route_handler(), reads_body=self.body_field is not None)


def make_strict(route: APIRoute) -> None:
    """Gives a route of somebody's plain APIRouter the strict body, through FastAPI's hook for custom requests."""
    if isinstance(route, StrictRoute) or "get_route_handler" in vars(route):
        return
    build = route.get_route_handler

    def get_route_handler() -> RouteHandler:
        return _strict(build(), reads_body=route.body_field is not None)

    vars(route)["get_route_handler"] = get_route_handler


def _strict(handler: RouteHandler, *, reads_body: bool) -> RouteHandler:
    if not reads_body:
        return handler

    async def strict(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            raise UnsupportedMediaType(f"the body is {kind[:64]!a}; send application/json")
        if not kind:
            headers = [*request.scope["headers"], (b"content-type", b"application/json")]
            request.scope["headers"] = [pair for pair in headers if pair[0] != b"content-type" or pair[1]]
        return await handler(StrictRequest(request.scope, request.receive))

    return strict
