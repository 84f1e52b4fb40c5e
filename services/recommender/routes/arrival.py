"""When a request arrived: deadlines count from the moment its last byte was here, not from when a handler ran."""

from __future__ import annotations

import time

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_KEY = "silkrec_arrived"


class ArrivalMiddleware:
    """Notes the monotonic time of the last body message: JSON parsing and validation count, a slow uplink does not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope[_KEY] = time.monotonic()

        async def receive_noting() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                scope[_KEY] = time.monotonic()
            return message

        await self.app(scope, receive_noting, send)


def arrived(request: Request) -> float:
    """Monotonic seconds; now, for an application without the middleware."""
    at = request.scope.get(_KEY)
    return at if isinstance(at, float) else time.monotonic()
