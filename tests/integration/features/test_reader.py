from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from sqlalchemy import update

from services.features.online.keys import REVISION, SYNC_LEASE, history_key, profile_key
from services.features.reader import FeatureReader, Miss
from services.features.reading.daily import read_daily_actions
from services.features.reading.training import read_training_events
from shared.settings.roots import DatabaseSettings, RedisSettings
from shared.storage import redis as redis_factory
from shared.storage.database import Database
from shared.storage.tables import events, item_daily, items, user_state
from tests.integration.features.helpers import ACTIONS, CLICK, SETTINGS, Suite, add_events, add_item, suite

pytestmark = pytest.mark.integration
NO_REDIS = "unix:///nonexistent/redis.sock"
NO_DATABASE = "mysql+pymysql://nobody@127.0.0.1:1/none"


def run(database: Database, redis_url: str, test: Callable[[Suite], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        async with suite(database, redis_url) as parts:
            await test(parts)

    asyncio.run(body())


async def written_back(parts: Suite, user_key: str) -> None:
    async with asyncio.timeout(10):
        while not await parts.redis.exists(profile_key(user_key)):
            continue


def test_a_miss_is_read_from_the_database_and_then_held_by_redis_with_a_ttl(database: Database, redis_url: str) -> None:
    add_events(database, "u:ann", 1, 2, 3)

    async def test(parts: Suite) -> None:
        first = await parts.reader.user("u:ann", timeout_s=5)
        assert first.history.source == "database"
        await written_back(parts, "u:ann")
        second = await parts.reader.user("u:ann", timeout_s=5)
        assert (second.history.source, second.misses) == ("redis", ())
        assert second.history.rows.tobytes() == first.history.rows.tobytes()
        assert (second.history.revision, second.history.last_event_id) == (1, first.history.last_event_id)
        ttls = [await parts.redis.ttl(key) async for key in parts.redis.scan_iter()]
        assert len(ttls) == 2
        assert min(ttls) > 0

    run(database, redis_url, test)


def test_with_the_lease_gone_a_stale_revision_is_read_from_the_database(database: Database, redis_url: str) -> None:
    add_events(database, "u:ann", 1)

    async def test(parts: Suite) -> None:
        await parts.reader.user("u:ann", timeout_s=5)
        await written_back(parts, "u:ann")
        add_events(database, "u:ann", 2, start_s=2000)
        await parts.redis.set(SYNC_LEASE, b"1", px=60_000)
        trusted = await parts.reader.user("u:ann", timeout_s=5)
        assert trusted.history.rows["item"].tolist() == [1]
        await parts.redis.delete(SYNC_LEASE)
        checked = await parts.reader.user("u:ann", timeout_s=5)
        assert checked.history.rows["item"].tolist() == [1, 2]
        assert checked.misses == (Miss("redis", "history", "stale"),)
        async with asyncio.timeout(10):
            while await parts.redis.hget(history_key("u:ann"), REVISION.decode()) != b"2":
                continue

    run(database, redis_url, test)


def test_a_dead_redis_answers_from_the_database(database: Database) -> None:
    add_events(database, "u:ann", 1, 2)

    async def test(parts: Suite) -> None:
        for _ in range(10):
            view = await parts.reader.user("u:ann", extra_keys=["silkrec:x"], timeout_s=5)
            assert view.history.rows["item"].tolist() == [1, 2]
            assert view.extras == {"silkrec:x": None}
            assert Miss("redis", "history", "unavailable") in view.misses

    run(database, NO_REDIS, test)


def test_a_dead_database_answers_from_redis(database: Database, redis_url: str) -> None:
    add_events(database, "u:ann", 1, 2)
    gone = Database(NO_DATABASE, DatabaseSettings())

    async def test(parts: Suite) -> None:
        await parts.reader.user("u:ann", timeout_s=5)
        await written_back(parts, "u:ann")
        reader = FeatureReader(gone, parts.redis, SETTINGS.features, ACTIONS)
        for _ in range(8):
            view = await reader.user("u:ann", timeout_s=5)
            assert view.history.rows["item"].tolist() == [1, 2]
            assert view.misses == (Miss("database", "history", "unavailable"),)
        await reader.close()

    run(database, redis_url, test)
    gone.close()


def test_with_both_dead_the_view_is_empty_and_says_why() -> None:
    gone = Database(NO_DATABASE, DatabaseSettings())

    async def test() -> None:
        redis = redis_factory.connect(NO_REDIS, RedisSettings(), timeout_ms=20)
        reader = FeatureReader(gone, redis, SETTINGS.features, ACTIONS)
        loop = asyncio.get_running_loop()
        for _ in range(20):
            started = loop.time()
            view = await reader.user("u:ann", timeout_s=0.1)
            assert loop.time() - started < 0.4
            assert len(view.history.rows) == 0
            assert {(miss.store, miss.what) for miss in view.misses} == {
                (store, what) for store in ("redis", "database") for what in ("history", "profile")
            }
        await reader.close()
        await redis.aclose(close_connection_pool=True)

    asyncio.run(test())
    gone.close()


@pytest.mark.parametrize("value", [b"text", 5])
def test_a_key_of_another_type_is_a_miss(database: Database, redis_url: str, value: Any) -> None:
    add_events(database, "u:ann", 1)

    async def test(parts: Suite) -> None:
        await parts.redis.set(history_key("u:ann"), value, ex=60)
        await parts.redis.rpush(profile_key("u:ann"), b"a")
        view = await parts.reader.user("u:ann", timeout_s=5)
        assert view.history.rows["item"].tolist() == [1]
        assert Miss("redis", "history", "absent") in view.misses
        assert Miss("redis", "profile", "absent") in view.misses

    run(database, redis_url, test)


def test_changed_items_come_by_revision_and_a_revision_is_never_cut(database: Database, redis_url: str) -> None:
    for item_index in range(1, 10):
        add_item(database, item_index)
    with database.write() as connection:
        connection.execute(update(items).where(items.c.item_index.in_([2, 5, 6, 7])).values(revision=20))
        connection.execute(update(items).where(items.c.item_index == 9).values(revision=21, deleted_at_us=1))

    async def test(parts: Suite) -> None:
        seen: list[tuple[int, int]] = []
        since = 3
        while page := await asyncio.to_thread(parts.reader.changed_items, since, 3):
            seen += [(row.revision, row.item_index) for row in page]
            since = page[-1].revision
        assert seen == [(4, 4), (8, 8), (20, 2), (20, 5), (20, 6), (20, 7), (21, 9)]
        last = parts.reader.changed_items(20)[0]
        assert (last.item_id, last.known, last.categories, last.deleted) == ("i9", True, ("a",), True)

    run(database, redis_url, test)


def test_training_events_are_sorted_by_user_and_time_and_leave_deleted_users_out(database: Database) -> None:
    add_events(database, "u:bob", 7, 8, start_s=2000)
    add_events(database, "u:ann", 1, 2, start_s=3000)
    add_events(database, "u:bob", 9, start_s=1000)
    add_events(database, "u:gone", 5, start_s=1)
    with database.write() as connection:
        connection.execute(update(user_state).where(user_state.c.user_key == "u:gone").values(deleted_at_us=1))
        connection.execute(
            update(events).where(events.c.item_index == 8).values(action=ACTIONS.by_name["impression"].code)
        )
    with database.read() as connection:
        for chunk in (1, 2, 100):
            columns = read_training_events(connection, ACTIONS, chunk)
            assert columns.user_keys == ["u:ann", "u:bob"]
            assert columns.user.tolist() == [0, 0, 1, 1]
            assert columns.item.tolist() == [1, 2, 9, 7]
            assert columns.time.tolist() == [3000, 3001, 1000, 2000]
            assert columns.action.tolist() == [CLICK] * 4
    kinds = [columns.user.dtype, columns.item.dtype, columns.action.dtype, columns.time.dtype]
    assert kinds == [np.int32, np.int32, np.int8, np.int64]


def test_an_empty_database_gives_empty_columns(database: Database) -> None:
    with database.read() as connection:
        assert len(read_training_events(connection, ACTIONS).user) == 0
        assert len(read_daily_actions(connection).events) == 0


def test_daily_actions_are_the_same_whatever_the_page(database: Database) -> None:
    rows = [(day, item, action) for day in range(4) for item in range(3) for action in (2, 5)]
    with database.write() as connection:
        for place, (day, item, action) in enumerate(rows):
            connection.execute(
                item_daily.insert().values(occurred_day=day, item_index=item, action=action, events=place)
            )
    with database.read() as connection:
        for page in (1, 5, 24, 100):
            daily = read_daily_actions(connection, None, page)
            assert list(zip(daily.occurred_day, daily.item_index, daily.action, strict=True)) == rows
            assert daily.events.tolist() == list(range(len(rows)))


def test_daily_actions_read_again_are_the_same_object_until_a_day_changed(database: Database) -> None:
    def put(day: int, item: int, count: int) -> None:
        with database.write() as connection:
            connection.execute(
                item_daily.insert().values(occurred_day=day, item_index=item, action=CLICK, events=count)
            )

    def told(before: Any = None) -> Any:
        with database.read() as connection:
            return read_daily_actions(connection, before)

    for day in range(3):
        put(day, 7, day + 1)
    first = told()
    assert told(first) is first
    put(1, 3, 5)
    with database.write() as connection:
        connection.execute(item_daily.update().where(item_daily.c.occurred_day == 2).values(events=9))
        connection.execute(item_daily.delete().where(item_daily.c.occurred_day == 0))
    second = told(first)
    whole = told()
    for name in ("occurred_day", "item_index", "action", "events"):
        assert getattr(second, name).tolist() == getattr(whole, name).tolist()
        assert getattr(second, name).dtype == getattr(whole, name).dtype
    assert second.events.tolist() == [5, 2, 9]
    assert told(second) is second
