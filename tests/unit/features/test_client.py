from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from services.features.client import FeaturesClient, FeaturesUnavailable
from shared.errors import Conflict, DeadlineExceeded, Overloaded, SilkrecError, ValidationFailed
from shared.web import problem
from shared.web.problem import MEDIA_TYPE

Handler = Callable[[httpx.Request], httpx.Response]


def call(handler: Handler, work: Callable[[FeaturesClient], Awaitable[Any]]) -> Any:
    async def body() -> Any:
        transport = httpx.MockTransport(handler)
        async with FeaturesClient("http://features", api_key="sk_x", transport=transport) as client:
            return await work(client)

    return asyncio.run(body())


def problem_of(error: SilkrecError) -> Handler:
    made = problem.of_error(error)
    return lambda _request: httpx.Response(made.status_code, content=bytes(made.body), headers=dict(made.headers))


def test_ids_are_escaped_and_the_key_is_sent() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.raw_path == b"/v1/users/a%20%26%3Ab"
        assert request.headers["authorization"] == "Bearer sk_x"
        assert request.content == b'{"properties":{}}'
        return httpx.Response(200, json={"user_id": "a &:b"})

    assert call(handler, lambda c: c.put_user("a &:b", {"properties": {}})) == {"user_id": "a &:b"}


@pytest.mark.parametrize("kind", [ValidationFailed, Conflict, Overloaded])
def test_a_problem_becomes_the_error_it_was(kind: type[SilkrecError]) -> None:
    sent = kind("what went wrong", retry_after_s=3)
    with pytest.raises(kind) as caught:
        call(problem_of(sent), lambda c: c.get_user("ann"))
    assert caught.value.detail == "what went wrong"
    assert caught.value.retry_after_s == 3


def test_an_unknown_code_becomes_what_its_status_says() -> None:
    def answer(status: int) -> Handler:
        body = {"code": "of_a_later_release", "detail": "x", "status": status}
        headers = {"content-type": MEDIA_TYPE}
        return lambda _request: httpx.Response(status, json=body, headers=headers)

    with pytest.raises(SilkrecError) as caught:
        call(answer(418), lambda c: c.get_user("ann"))
    assert caught.value.responsibility == "client"
    with pytest.raises(FeaturesUnavailable):
        call(answer(500), lambda c: c.get_user("ann"))


def test_an_answer_that_is_not_the_services_own_is_unavailable() -> None:
    with pytest.raises(FeaturesUnavailable):
        call(lambda _request: httpx.Response(502, text="<html>"), lambda c: c.get_user("ann"))
    with pytest.raises(FeaturesUnavailable):
        call(lambda _request: httpx.Response(200, text="<html>"), lambda c: c.get_user("ann"))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(httpx.ConnectError, FeaturesUnavailable), (httpx.ReadTimeout, DeadlineExceeded)],
)
def test_no_answer_is_an_error_of_the_tree(raised: type[httpx.TransportError], expected: type[SilkrecError]) -> None:
    def handler(_request: httpx.Request) -> httpx.Response:
        raise raised("x")

    with pytest.raises(expected) as caught:
        call(handler, lambda c: c.send_events([]))
    assert caught.value.retryable
