"""When a request arrived: deadlines count from the moment its last byte was here, not from when a handler ran.

Behind nginx they count from when that sent it, so that what waited in the socket of a busy process has so much less
time left.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.recommender.routes.identities import REQUEST_START_HEADER, started_ms
from shared.web.middleware import header

_KEY = "silkrec_arrived"
_HEADER = REQUEST_START_HEADER.encode()
WINDOW_S = 30.0
STEP_S = 0.001
"""The header's."""
BELIEVED_S = 1.0


class OnTheWay:
    """How much longer than the fastest of the last minute a request was on its way, by two clocks that need not agree.

    The least difference of two clocks is their offset and the way itself; what a request has beyond it, it waited. Two
    windows, so that a clock that was set is forgotten after a minute. More than `BELIEVED_S` counts as nothing: such a
    request is late whatever is done, and a header may be wrong.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._least = self._before = float("inf")
        self._until = 0.0

    def waited_s(self, began_ms: int) -> float:
        now, age_s = self._clock(), self._wall() - began_ms / 1000
        if now >= self._until:
            self._before = self._least if now < self._until + WINDOW_S else float("inf")
            self._least, self._until = float("inf"), now + WINDOW_S
        self._least = min(self._least, age_s)
        waited = age_s - min(self._least, self._before) - STEP_S
        return waited if 0 < waited <= BELIEVED_S else 0.0


class ArrivalMiddleware:
    """Notes the monotonic time of the last body message: JSON parsing and validation count, a slow uplink does not."""

    def __init__(self, app: ASGIApp, on_the_way: OnTheWay | None = None) -> None:
        self.app = app
        self._on_the_way = on_the_way or OnTheWay()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began_ms = started_ms(header(scope, _HEADER))
        waited = 0.0 if began_ms is None else self._on_the_way.waited_s(began_ms)
        first = scope[_KEY] = time.monotonic() - waited

        async def receive_noting() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                # nginx has the whole body before it asks us, so the wait ended with the headers.
                scope[_KEY] = time.monotonic() if began_ms is None else first
            return message

        await self.app(scope, receive_noting, send)


def arrived(request: Request) -> float:
    """Monotonic seconds; now, for an application without the middleware."""
    at = request.scope.get(_KEY)
    return at if isinstance(at, float) else time.monotonic()
