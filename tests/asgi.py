"""A real application in this process: its lifespan runs, and httpx speaks ASGI to it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send


@contextlib.asynccontextmanager
async def running(app: FastAPI, *, base_url: str = "http://testserver") -> AsyncIterator[httpx.AsyncClient]:
    """A client of `app`; unexpected exceptions are answered, as a server would, and not raised."""
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] = dict(state or {})
            await app(scope, receive, send)

        transport = httpx.ASGITransport(app=with_state, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
            yield client


async def call(app: Any, scope: Scope, body: list[bytes]) -> list[Message]:
    """One request by hand, for what httpx would not send."""
    pending = [
        {"type": "http.request", "body": chunk, "more_body": place < len(body) - 1} for place, chunk in enumerate(body)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return pending.pop(0) if pending else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent
