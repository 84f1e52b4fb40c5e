"""Many users at once are read as one by one: trusted, stale, unknown, deleted, in Redis or not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import insert, update

from services.features.online.keys import SYNC_LEASE
from shared.errors import DatabaseUnavailable
from shared.settings.roots import DatabaseSettings
from shared.storage.database import Database
from shared.storage.tables import user_state, users
from tests.integration.features.helpers import Suite, add_events, suite

pytestmark = pytest.mark.integration
NO_REDIS = "unix:///nonexistent/redis.sock"
NO_DATABASE = "mysql+pymysql://nobody@127.0.0.1:1/none"
PEOPLE = ("u:held", "u:stale", "u:cold", "u:gone", "u:nobody", "v:profile")


def put_people(database: Database) -> None:
    for key in ("u:held", "u:stale", "u:cold", "u:gone"):
        add_events(database, key, 1, 2, 3)
    with database.write() as connection:
        profile = {"properties": {"age": 7}, "segments": ["vip"], "created_at_us": 1, "updated_at_us": 1}
        connection.execute(insert(users).values(user_key="v:profile", **profile))
        connection.execute(insert(users).values(user_key="u:cold", **profile))


def plain(view: Any) -> tuple[Any, ...]:
    history = view.history
    return (history.user_key, history.rows.tobytes(), history.revision, history.last_event_id, view.properties)


@pytest.mark.parametrize("lease", [True, False], ids=["lease", "no lease"])
def test_many_are_read_as_one_by_one(database: Database, redis_url: str, lease: bool) -> None:
    put_people(database)

    async def scenario() -> None:
        async with suite(database, redis_url) as parts:
            for key in ("u:held", "u:stale"):
                await parts.reader.user(key, timeout_s=5)
            async with asyncio.timeout(10):
                while len([key async for key in parts.redis.scan_iter()]) < 4:  # two histories, two profiles
                    continue
            add_events(database, "u:stale", 9, start_s=2000)
            with database.write() as connection:
                connection.execute(update(user_state).where(user_state.c.user_key == "u:gone").values(deleted_at_us=1))
            if lease:
                await parts.redis.set(SYNC_LEASE, b"1", px=60_000)
            held_before = {key async for key in parts.redis.scan_iter()}
            many = await parts.reader.users(PEOPLE)
            assert {key async for key in parts.redis.scan_iter()} == held_before
            assert [plain(view) for view in many] == [plain(await parts.reader.user(k, timeout_s=5)) for k in PEOPLE]
            assert many[1].history.rows["item"].tolist() == ([1, 2, 3] if lease else [1, 2, 3, 9])
            assert [view.segments for view in many] == [(), (), ("vip",), (), (), ("vip",)]

    asyncio.run(scenario())


def test_the_database_alone_is_enough_and_nothing_less_is(database: Database, redis_url: str) -> None:
    put_people(database)

    async def of(parts: Suite) -> list[int]:
        return [len(view.history.rows) for view in await parts.reader.users(PEOPLE)]

    async def scenario() -> None:
        async with suite(database, NO_REDIS) as parts:
            assert await of(parts) == [3, 3, 3, 3, 0, 0]
        away = Database(NO_DATABASE, DatabaseSettings(connect_timeout_s=0.2))
        try:
            async with suite(away, redis_url) as parts:
                with pytest.raises(DatabaseUnavailable):
                    await of(parts)
        finally:
            away.close()

    asyncio.run(scenario())
