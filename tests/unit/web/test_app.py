from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.asgi import running
from tests.unit.web.example import build


def ask(*paths: str, headers: dict[str, str] | None = None, method: str = "GET", **options: Any) -> httpx.Response:
    """The answer to the last of `paths`, asked one after another."""

    async def main() -> httpx.Response:
        async with running(build(**options)) as client:
            for path in paths:
                answer = await client.request(method, path, headers=headers)
            return answer

    return asyncio.run(main())


def test_a_request_id_that_was_sent_comes_back() -> None:
    assert ask("/health", headers={"x-request-id": "abc-1:2.3_4"}).headers.get_list("x-request-id") == ["abc-1:2.3_4"]


@pytest.mark.parametrize("bad", ["a b", "x" * 129, "", 'a"b', "a,b"])
def test_a_request_id_that_cannot_be_is_replaced(bad: str) -> None:
    got = ask("/health", headers={"x-request-id": bad}).headers["x-request-id"]
    assert got != bad
    assert len(got) == 32


def test_readiness_decides_the_status_and_dependencies_only_inform() -> None:
    up, down = ask("/ready"), ask("/ready", ready=False)
    assert (up.status_code, down.status_code) == (200, 503)
    assert up.json() == {"ready": True, "dependencies": {"redis": "down"}}
    assert "retry-after" in down.headers


def test_metrics_are_counted_by_route_template_and_never_by_path() -> None:
    text = ask("/v1/items/secret-id", "/v1/nowhere/secret-id", "/v1/items/x/secret-id", "/metrics").text
    assert 'silkrec_example_http_requests_total{method="GET",route="/v1/items/{item_id}",status="200"} 1.0' in text
    assert 'silkrec_example_http_requests_total{method="GET",route="unrouted",status="404"} 2.0' in text
    assert 'silkrec_example_http_request_duration_seconds_count{route="/v1/items/{item_id}"} 1.0' in text
    assert "secret-id" not in text


def test_a_configured_origin_may_call_and_read_problems() -> None:
    origin = {"origin": "https://shop.example"}
    good = ask("/v1/errors/unexpected", headers=origin, origins=("https://shop.example",))
    assert good.status_code == 500
    assert good.headers["access-control-allow-origin"] == "https://shop.example"
    other = ask("/health", headers={"origin": "https://evil.example"}, origins=("https://shop.example",))
    assert "access-control-allow-origin" not in other.headers


def test_a_preflight_is_answered() -> None:
    headers = {
        "origin": "https://shop.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,authorization",
    }
    answer = ask("/v1/echo", method="OPTIONS", headers=headers, origins=("https://shop.example",))
    assert answer.status_code == 200
    assert "POST" in answer.headers["access-control-allow-methods"]


def test_every_operation_documents_its_problems_and_keys() -> None:
    document = ask("/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert len(operations) >= 8
    for operation in operations:
        for status in ("4XX", "5XX"):
            assert "application/problem+json" in operation["responses"][status]["content"]
        assert "422" not in operation["responses"]
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert set(document["components"]["securitySchemes"]) == {"bearer", "api_key"}
