"""The whole features service in this process, for the tests of what it writes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from redis.asyncio import Redis
from sqlalchemy import Table, func, select

from services.features import app as features
from services.features.reader import FeatureReader
from services.features.reading.cached import decode_history
from services.features.reading.history import load_history
from shared.actions import ActionTable
from shared.contracts.history import UserHistory
from shared.settings.load import Loaded
from shared.settings.roots import RedisSettings
from shared.storage import redis as redis_factory
from shared.storage.database import Database
from shared.storage.tables import items
from tests.asgi import running

PATIENCE_S = 20.0
NOW_S = int(time.time()) - 3600


@dataclass(frozen=True)
class Stores:
    """`reader` reads as the recommender does, `redis` looks behind the scenes."""

    reader: FeatureReader
    redis: Redis
    database: Database
    actions: ActionTable

    async def items_read(self, user_key: str) -> list[str]:
        """The history as the next request would see it, oldest first, by item id."""
        view = await self.reader.user(user_key, timeout_s=5)
        return self.names(view.history)

    async def in_redis(self, user_key: str) -> UserHistory | None:
        fields = await self.redis.hmget(f"silkrec:h1:{user_key}", "rev", "rows", "last")
        return decode_history(user_key, fields)

    def stored_history(self, user_key: str) -> UserHistory:
        with self.database.read() as connection:
            return load_history(connection, user_key, max_events=2048, actions=self.actions)

    def names(self, history: UserHistory) -> list[str]:
        with self.database.read() as connection:
            known = {row.item_index: row.item_id for row in connection.execute(select(items))}
        return [known[index] for index in history.rows["item"].tolist()]


@dataclass(frozen=True)
class Service(Stores):
    """`http` speaks to the routes."""

    http: httpx.AsyncClient

    async def send(self, *events: dict[str, Any], **body: Any) -> dict[str, Any]:
        answer = await self.http.post("/v1/events", json={"events": list(events), **body})
        assert answer.status_code == 202, answer.text
        found: dict[str, Any] = answer.json()
        return found


@contextlib.asynccontextmanager
async def stores(loaded: Loaded, database: Database) -> AsyncIterator[Stores]:
    """Without the service: nothing runs in the background."""
    settings = loaded.settings
    actions = ActionTable.from_schema(settings.data)
    redis = redis_factory.connect(settings.redis_url(), RedisSettings(), timeout_ms=1000)
    reader = FeatureReader(database, redis, settings.features, actions)
    try:
        yield Stores(reader, redis, database, actions)
    finally:
        await reader.close()
        await redis.aclose(close_connection_pool=True)


@contextlib.asynccontextmanager
async def service(loaded: Loaded, database: Database) -> AsyncIterator[Service]:
    async with stores(loaded, database) as own, running(features.build(loaded)) as http:
        yield Service(own.reader, own.redis, database, own.actions, http)


def run(loaded: Loaded, database: Database, test: Callable[[Service], Coroutine[Any, Any, None]]) -> None:
    async def inside() -> None:
        async with service(loaded, database) as one:
            await test(one)

    asyncio.run(inside())


def event(number: int, *, at_s: int | None = None, **fields: Any) -> dict[str, Any]:
    """A click of user ann on item i<number>, `number` seconds into the test's hour."""
    moment = datetime.fromtimestamp(NOW_S + number if at_s is None else at_s, UTC)
    known = {
        "event_id": f"e{number}",
        "event_type": "click",
        "item_id": f"i{number}",
        "occurred_at": moment.isoformat(),
    }
    who = {} if "visitor_id" in fields else {"user_id": "ann"}
    return {**known, **who, **fields}


async def until(check: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await check():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
        await asyncio.sleep(0.02)


def count(database: Database, table: Table) -> int:
    with database.read() as connection:
        return int(connection.scalar(select(func.count()).select_from(table)) or 0)
