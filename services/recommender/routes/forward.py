"""One public URL: writing routes go on to the features service as raw bytes (infra/decisions/0005-one-public-url.md).

`wiring` opens a `Forwarder` when `recommender.features_url` is set, yields it as `request.state.forwarder`, and the
application includes `router` then only. Keys are checked by the features service, which also owns the body's limit.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

import httpx
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Scope

from shared.errors import ConfigurationError, DeadlineExceeded, DependencyError
from shared.observability import context, tracing
from shared.settings.roots import Settings

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
PATHS = (
    "/v1/events",
    "/v1/feedback/{rest:path}",
    "/v1/items",
    "/v1/items/{item_id}",
    "/v1/users",
    "/v1/users:merge",
    "/v1/users/{user_id}",
    "/v1/users/{user_id}/export",
    "/v1/deletions/{deletion_id}",
)
# RFC 9110, 7.6.1, and what each hop writes anew; CORS is answered here, so `origin` ends here too.
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer")
)
_WRITTEN_ANEW = frozenset(
    ("transfer-encoding", "upgrade", "host", "content-length", "x-request-id", "traceparent", "expect", "origin")
)
_ANSWERED_ANEW = _HOP_BY_HOP | frozenset(("x-request-id", "date", "server", "transfer-encoding", "upgrade"))
_FORWARDED = re.compile(r"/v1/(events$|feedback/|items$|items/[^/]+$|users([/:]|$)|deletions/)")
# Longer than the features service's own: a group commit waits for a database statement (10 s by default) at most.
READ_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 1.0
POOL_TIMEOUT_S = 1.0
MAX_CONNECTIONS = 128
# Shorter answers are read whole, so that a break in them is a clean 503 and no half answer.
HELD_BYTES = 1024 * 1024


def is_forwarded(path: str) -> bool:
    return _FORWARDED.match(path) is not None


def body_limit(settings: Settings) -> int | Callable[[Scope], int]:
    """For `create_app(max_body_bytes=…)`: a forwarded body may be as long as the features service takes it."""
    own, features = settings.recommender.max_body_bytes, settings.features.max_body_bytes
    if not settings.recommender.features_url:
        return own
    return lambda scope: features if is_forwarded(scope["path"]) else own


class Forwarder:
    """A pool of connections to the features service. Close it with the application."""

    def __init__(self, features_url: str, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._base = httpx.URL(features_url)
        if self._base.scheme not in ("http", "https") or not self._base.host or self._base.path not in ("", "/"):
            raise ConfigurationError(
                f"recommender.features_url must be like http://127.0.0.1:8081, not {features_url!a}"
            )
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=POOL_TIMEOUT_S),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=32, keepalive_expiry=4.0),
            transport=transport,
            trust_env=False,  # a proxy from the environment has no business between two of our services
            follow_redirects=False,
        )

    async def forward(self, request: Request) -> Response:
        """Raises DependencyError (503) when the features service is down, DeadlineExceeded (504) when it is slow."""
        with tracing.calling("features"):
            return await self._forward(request)

    async def _forward(self, request: Request) -> Response:
        outgoing = self._client.build_request(
            request.method, self._target(request.scope), headers=_headers_on(request), content=await request.body()
        )
        try:
            incoming = await self._client.send(outgoing, stream=True)
            return await _answer(incoming)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise DependencyError(
                "the features service does not answer; nothing was written", retry_after_s=1.0
            ) from error
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(
                "the features service did not answer in time; it may still write, and a retry is harmless",
                retry_after_s=2.0,
            ) from error
        except httpx.TransportError as error:
            raise DependencyError(
                "the connection to the features service broke; a retry is harmless", retry_after_s=1.0
            ) from error

    async def close(self) -> None:
        await self._client.aclose()

    def _target(self, scope: Scope) -> httpx.URL:
        """The path as it was sent: decoding and encoding it again could make another id of it."""
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        query: bytes = scope["query_string"]
        return self._base.copy_with(raw_path=raw.partition(b"?")[0] + (b"?" + query if query else b""))


def _headers_on(request: Request) -> list[tuple[bytes, bytes]]:
    headers = _without(request.headers.raw, _HOP_BY_HOP | _WRITTEN_ANEW, request.headers.get("connection", ""))
    if "accept-encoding" not in request.headers:
        headers.append((b"accept-encoding", b"identity"))  # httpx would add its own, which the caller may not read
    if request.client is not None:
        known = request.headers.get("x-forwarded-for")
        headers = [pair for pair in headers if pair[0] != b"x-forwarded-for"]
        chain = f"{known}, {request.client.host}" if known else request.client.host
        headers.append((b"x-forwarded-for", chain.encode("latin-1", "replace")))
    ids: Mapping[str, str] = context.outgoing_headers()
    return headers + [(name.encode(), value.encode()) for name, value in ids.items()]


async def _answer(incoming: httpx.Response) -> Response:
    """Raw, so that a compressed answer goes back as it came. What is long (an export) is passed on while it comes."""
    kept = _without(incoming.headers.raw, _ANSWERED_ANEW, incoming.headers.get("connection", ""))
    headers = [(name.lower(), value) for name, value in kept]
    response: Response
    if int(incoming.headers.get("content-length", HELD_BYTES + 1)) > HELD_BYTES:
        response = StreamingResponse(_pieces(incoming), incoming.status_code)
    else:
        response = Response(b"".join([piece async for piece in _pieces(incoming)]), incoming.status_code)
    response.raw_headers = headers
    return response


async def _pieces(incoming: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in incoming.aiter_raw():
            yield piece
    finally:
        await incoming.aclose()


def _without(
    headers: Iterable[tuple[bytes, bytes]], names: frozenset[str], connection: str
) -> list[tuple[bytes, bytes]]:
    named = {name.strip().lower() for name in connection.split(",")}
    return [
        (name, value)
        for name, value in headers
        if (lower := name.decode("latin-1").lower()) not in names and lower not in named
    ]


async def _forward(request: Request) -> Response:
    forwarder: Forwarder = request.state.forwarder
    return await forwarder.forward(request)


def _router() -> APIRouter:
    routes = APIRouter()
    for path in PATHS:
        routes.add_api_route(path, _forward, methods=list(METHODS), include_in_schema=False)
    return routes


router = _router()
