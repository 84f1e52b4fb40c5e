"""From when a request's deadline counts, with clocks that the test owns."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from services.recommender.routes.arrival import BELIEVED_S, STEP_S, WINDOW_S, ArrivalMiddleware, OnTheWay, arrived

START_MS = 1_700_000_000_000


class Clocks:
    """`offset_s`: how far the recommender's clock is before the proxy's."""

    def __init__(self, offset_s: float) -> None:
        self.now, self.offset_s = 100.0, offset_s
        self.on_the_way = OnTheWay(lambda: self.now, lambda: START_MS / 1000 + self.now + self.offset_s)

    def waited_s(self, way_s: float) -> float:
        """Of a request that the proxy sent `way_s` ago."""
        return self.on_the_way.waited_s(round(START_MS + 1000 * (self.now - way_s)))


@pytest.mark.parametrize("offset_s", [0.0, 0.4, -0.4])
def test_what_a_request_waited_beyond_the_fastest_is_found_whatever_the_clocks_say(offset_s: float) -> None:
    clocks = Clocks(offset_s)
    assert clocks.waited_s(0.001) == 0.0
    assert clocks.waited_s(0.051) == pytest.approx(0.050 - STEP_S, abs=1e-6)
    assert clocks.waited_s(0.001) == 0.0
    assert clocks.waited_s(BELIEVED_S + 1) == 0.0


def test_a_clock_that_was_set_is_forgotten_after_two_windows() -> None:
    clocks = Clocks(0.0)
    clocks.waited_s(0.001)
    clocks.offset_s = 0.3
    assert clocks.waited_s(0.001) == pytest.approx(0.3 - STEP_S, abs=1e-6)
    clocks.now += WINDOW_S
    assert clocks.waited_s(0.001) > 0.0
    clocks.now += WINDOW_S
    assert clocks.waited_s(0.001) == 0.0


def test_the_fastest_is_remembered_when_a_window_ends() -> None:
    clocks = Clocks(0.0)
    clocks.waited_s(0.001)
    clocks.now += WINDOW_S
    assert clocks.waited_s(0.031) == pytest.approx(0.030 - STEP_S, abs=1e-6)


def at(*headers: tuple[bytes, bytes], on_the_way: OnTheWay | None = None) -> float:
    """When a request with these headers arrived, in seconds before its handler ran."""
    found: list[float] = []

    async def handler(scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        found.append(time.monotonic() - arrived(Request(scope)))

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Message) -> None:
        raise AssertionError("nothing is answered here")

    scope: dict[str, Any] = {"type": "http", "headers": list(headers)}
    asyncio.run(ArrivalMiddleware(handler, on_the_way)(scope, receive, send))
    return found[0]


def test_a_deadline_counts_from_the_proxy_s_word_and_without_one_from_the_last_byte() -> None:
    clocks = Clocks(0.0)
    clocks.waited_s(0.001)
    sent_s = (START_MS + 1000 * (clocks.now - 0.901)) / 1000
    assert at((b"x-request-start", f"t={sent_s:.3f}".encode()), on_the_way=clocks.on_the_way) > 0.89
    assert 0.0 <= at(on_the_way=clocks.on_the_way) < 0.5
    assert 0.0 <= at((b"x-request-start", b"yesterday"), on_the_way=clocks.on_the_way) < 0.5
