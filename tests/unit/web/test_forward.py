from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.recommender.routes import forward
from shared.errors import ConfigurationError
from shared.observability.metrics import Metrics
from shared.settings.roots import FeaturesSettings, RecommenderSettings, Settings
from shared.web.app import create_app
from shared.web.health import Readiness
from tests.asgi import running

SETTINGS = Settings(
    recommender=RecommenderSettings(features_url="http://features:1", max_body_bytes=1024),
    features=FeaturesSettings(max_body_bytes=4096),
)
Handler = Callable[[httpx.Request], httpx.Response]


def build(handler: Handler) -> FastAPI:
    """A recommender whose features service is `handler`."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        forwarder = forward.Forwarder("http://features:1", transport=httpx.MockTransport(handler))
        yield {"forwarder": forwarder}
        await forwarder.close()

    app = create_app(
        title="t",
        lifespan=lifespan,
        settings=SETTINGS,
        service="recommender",
        metrics=Metrics("recommender"),
        max_body_bytes=forward.body_limit(SETTINGS),
        ready=lambda: Readiness(True),
    )
    app.include_router(forward.router)
    return app


def ask(handler: Handler, method: str, path: str, **options: Any) -> httpx.Response:
    async def main() -> httpx.Response:
        async with running(build(handler)) as client:
            return await client.request(method, path, **options)

    return asyncio.run(main())


def answering(status: int, body: bytes, **headers: str) -> httpx.Response:
    """Unread, as it comes from a socket."""
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    named += [("content-length", str(len(body)))]
    return httpx.Response(status, headers=named, stream=httpx.ByteStream(body))


class Upstream:
    """Remembers what it was sent."""

    def __init__(self, answer: httpx.Response | None = None) -> None:
        self.seen: list[httpx.Request] = []
        self.answer = answer or answering(202, b'{"accepted": 1}')

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        return self.answer


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/events"),
        ("PUT", "/v1/feedback/ann/item-1/like"),
        ("POST", "/v1/items"),
        ("PATCH", "/v1/items/item-1"),
        ("GET", "/v1/users/ann/export"),
        ("POST", "/v1/users:merge"),
        ("GET", "/v1/deletions/d1?x=1&y=%20"),
        ("PUT", "/v1/items/a%3Ab%20c"),
    ],
)
def test_a_writing_route_reaches_the_features_service_as_it_was_sent(method: str, path: str) -> None:
    upstream = Upstream()
    answer = ask(upstream, method, path, content=b'{"raw": NaN}')
    assert answer.status_code == 202
    assert answer.json() == {"accepted": 1}
    (sent,) = upstream.seen
    assert (sent.method, sent.url.raw_path.decode(), sent.content) == (method, path, b'{"raw": NaN}')
    assert forward.is_forwarded(path.partition("?")[0])


@pytest.mark.parametrize("path", ["/v1/items/a/similar", "/v1/recommend", "/v1/events/x", "/v1/eventsx"])
def test_other_routes_stay_here(path: str) -> None:
    upstream = Upstream()
    assert ask(upstream, "GET", path).status_code == 404
    assert not upstream.seen
    assert not forward.is_forwarded(path)


def test_ids_and_keys_go_along_and_hop_by_hop_headers_do_not() -> None:
    upstream = Upstream()
    headers = {
        "x-request-id": "r-1",
        "authorization": "Bearer sk_server_x",
        "connection": "close, x-private",
        "x-private": "1",
        "te": "trailers",
        "x-forwarded-for": "9.9.9.9",
        "content-type": "text/plain",
    }
    answer = ask(upstream, "POST", "/v1/events", headers=headers, content=b"{}")
    sent = upstream.seen[0].headers
    assert sent["x-request-id"] == "r-1"
    assert sent["authorization"] == "Bearer sk_server_x"
    assert sent["content-type"] == "text/plain"
    assert sent["traceparent"].startswith("00-")
    assert sent["x-forwarded-for"] == "9.9.9.9, 127.0.0.1"
    assert sent["host"] == "features:1"
    assert "x-private" not in sent
    assert "te" not in sent
    assert answer.headers.get_list("x-request-id") == ["r-1"]


def test_an_answer_comes_back_with_its_status_headers_and_raw_body() -> None:
    kind = "application/problem+json"
    problem = answering(503, b"{}", content_type=kind, retry_after="7", connection="close")
    answer = ask(Upstream(problem), "POST", "/v1/events", content=b"{}")
    assert (answer.status_code, answer.content, answer.headers["retry-after"]) == (503, b"{}", "7")
    assert answer.headers["content-type"] == kind
    assert "connection" not in answer.headers


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (httpx.ConnectError("refused"), 503, "dependency_unavailable"),
        (httpx.PoolTimeout("full"), 503, "dependency_unavailable"),
        (httpx.RemoteProtocolError("gone"), 503, "dependency_unavailable"),
        (httpx.ReadTimeout("slow"), 504, "deadline_exceeded"),
    ],
)
def test_a_features_service_that_fails_is_a_problem_with_retry_after(
    error: httpx.TransportError, status: int, code: str
) -> None:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise error

    answer = ask(fail, "POST", "/v1/events", content=b"{}")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert int(answer.headers["retry-after"]) >= 1


def test_the_body_limit_of_a_forwarded_route_is_that_of_the_features_service() -> None:
    assert ask(Upstream(), "POST", "/v1/events", content=b" " * 4096).status_code == 202
    assert ask(Upstream(), "POST", "/v1/events", content=b" " * 4097).status_code == 413
    assert ask(Upstream(), "POST", "/v1/recommend", content=b" " * 1025).status_code == 413


def test_without_a_features_url_every_route_has_the_limit_of_the_recommender() -> None:
    assert forward.body_limit(Settings()) == RecommenderSettings().max_body_bytes


@pytest.mark.parametrize("url", ["features:8081", "ftp://features", "http://", "http://features/prefix"])
def test_a_features_url_that_cannot_work_stops_the_start(url: str) -> None:
    with pytest.raises(ConfigurationError, match="features_url"):
        forward.Forwarder(url)


def test_an_answer_without_a_length_is_passed_on_while_it_comes() -> None:
    class Pieces(httpx.AsyncByteStream):
        closed = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"one "
            yield b"two"

        async def aclose(self) -> None:
            self.closed = True

    pieces = Pieces()
    answer = ask(Upstream(httpx.Response(200, stream=pieces)), "GET", "/v1/users/ann/export")
    assert (answer.status_code, answer.content) == (200, b"one two")
    assert pieces.closed


def test_a_short_answer_that_breaks_is_a_clean_503() -> None:
    class Broken(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"one "
            raise httpx.ReadError("gone")

    broken = httpx.Response(200, headers={"content-length": "8"}, stream=Broken())
    answer = ask(Upstream(broken), "GET", "/v1/users/ann")
    assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
