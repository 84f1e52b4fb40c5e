"""The sweeper: whoever stayed dirty is healed, and the lease exists only while nobody is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from redis.exceptions import RedisError
from sqlalchemy import insert, select, update

from services.features.ingest.marks import Mark, MarkCleaner, clear_marks
from services.features.ingest.publisher import HistoryPublisher
from services.features.metrics import SweepMetrics
from services.features.online.keys import SYNC_LEASE, profile_key
from services.features.online.store import HistoryStore
from services.features.online.sweeper import Sweeper
from shared.errors import DatabaseUnavailable
from shared.observability.metrics import Metrics
from shared.settings.load import Loaded
from shared.settings.roots import DatabaseSettings
from shared.storage.database import Database
from shared.storage.tables import user_state, users
from tests.conftest import SettingsFactory
from tests.integration.features.helpers import ACTIONS, SETTINGS, add_events
from tests.integration.features.helpers import add_item as put_item
from tests.integration.features.writing import NOW_S, Stores, stores

pytestmark = pytest.mark.integration


class Clock:
    """Seconds since 1970; tests move it."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def sweeper(suite: Stores, clock: Clock, database: Database | None = None, metrics: Metrics | None = None) -> Sweeper:
    found = database or suite.database
    histories = HistoryStore(suite.redis, SETTINGS.features.history)
    publisher = HistoryPublisher(
        found, histories, MarkCleaner(found), SETTINGS.features.history, ACTIONS, timeout_s=1.0, clock=clock
    )
    counted = SweepMetrics(metrics or Metrics("test"))
    return Sweeper(found, suite.redis, publisher, counted, interval_s=0.5, clock=clock)


def mark(database: Database, user_key: str, at_s: float) -> None:
    with database.write() as connection:
        dirty = update(user_state).where(user_state.c.user_key == user_key)
        connection.execute(dirty.values(dirty_since_us=int(at_s * 1_000_000)))


def alone(loaded: Loaded, database: Database, test: Callable[[Stores], Coroutine[Any, Any, None]]) -> None:
    async def inside() -> None:
        async with stores(loaded, database) as one:
            await test(one)

    asyncio.run(inside())


def test_a_user_dirty_for_longer_than_a_second_gets_history_and_profile_into_redis(
    database: Database, settings_factory: SettingsFactory
) -> None:
    async def test(suite: Stores) -> None:
        put_item(database, 1)
        add_events(database, "u:ann", 1, 1, start_s=NOW_S)
        with database.write() as connection:
            row = {"user_key": "u:ann", "properties": {"country": "at"}, "segments": []}
            connection.execute(insert(users), [{**row, "created_at_us": 1, "updated_at_us": 1}])
        clock = Clock()
        mark(database, "u:ann", clock.now - 2)
        assert await sweeper(suite, clock).sweep() == 1
        held = await suite.in_redis("u:ann")
        assert held is not None
        assert (held.revision, suite.names(held)) == (1, ["i1", "i1"])
        assert b"at" in (await suite.redis.get(profile_key("u:ann")) or b"")
        with database.read() as connection:
            assert connection.scalar(select(user_state.c.dirty_since_us)) is None
        assert await suite.redis.pttl(SYNC_LEASE) > 0

    alone(settings_factory(), database, test)


def test_a_fresh_mark_is_left_to_its_commit(database: Database, settings_factory: SettingsFactory) -> None:
    async def test(suite: Stores) -> None:
        put_item(database, 1)
        add_events(database, "u:ann", 1, start_s=NOW_S)
        clock = Clock()
        mark(database, "u:ann", clock.now - 0.5)
        assert await sweeper(suite, clock).sweep() == 0
        assert await suite.in_redis("u:ann") is None

    alone(settings_factory(), database, test)


def test_there_is_no_lease_while_more_users_are_dirty_than_a_sweep_takes(
    database: Database, settings_factory: SettingsFactory
) -> None:
    async def test(suite: Stores) -> None:
        clock = Clock()
        row = {"revision": 1, "dirty_since_us": int((clock.now - 5) * 1_000_000)}
        with database.write() as connection:
            connection.execute(insert(user_state), [{"user_key": f"u:{n}", **row} for n in range(501)])
        own = sweeper(suite, clock)
        await suite.redis.delete(SYNC_LEASE)
        assert await own.sweep() == 500
        assert not await suite.redis.exists(SYNC_LEASE)
        assert await own.sweep() == 1
        assert await suite.redis.exists(SYNC_LEASE)

    alone(settings_factory(), database, test)


def test_all_who_are_dirty_are_counted_not_a_batch_of_them_alone(
    database: Database, settings_factory: SettingsFactory
) -> None:
    async def test(suite: Stores) -> None:
        clock = Clock()
        row = {"revision": 1, "dirty_since_us": int((clock.now - 5) * 1_000_000)}
        with database.write() as connection:
            connection.execute(insert(user_state), [{"user_key": f"u:{n}", **row} for n in range(1200)])
        metrics = Metrics("features")
        own = sweeper(suite, clock, metrics=metrics)
        for waiting in (1200, 700, 200):
            await own.sweep()
            assert f"dirty_users {waiting}.0\n" in metrics.render().decode()

    alone(settings_factory(), database, test)


def test_outages_leave_marks_where_they_are(database: Database, settings_factory: SettingsFactory) -> None:
    async def without_redis(suite: Stores) -> None:
        put_item(database, 1)
        add_events(database, "u:ann", 1, start_s=NOW_S)
        clock = Clock()
        mark(database, "u:ann", clock.now - 5)
        with pytest.raises((RedisError, OSError)):
            await sweeper(suite, clock).sweep()
        away = Database("mysql+pymysql://nobody@127.0.0.1:1/none", DatabaseSettings())
        with pytest.raises(DatabaseUnavailable):
            await sweeper(suite, clock, away).sweep()
        away.close()
        with database.read() as connection:
            assert connection.scalar(select(user_state.c.dirty_since_us)) is not None

    alone(settings_factory(**{"redis.url": "redis://127.0.0.1:1/0"}), database, without_redis)


def test_a_mark_of_a_later_change_stays(database: Database) -> None:
    with database.write() as connection:
        states = [("u:a", 3, 70), ("u:b", 4, 70), ("u:c", 3, 71), ("u:d", 3, None)]
        rows = [{"user_key": key, "revision": rev, "dirty_since_us": dirty} for key, rev, dirty in states]
        connection.execute(insert(user_state), rows)
        clear_marks(connection, [Mark(key, 3, 70) for key in ("u:a", "u:b", "u:c", "u:d")])
        found = dict(map(tuple, connection.execute(select(user_state.c.user_key, user_state.c.dirty_since_us))))
    assert found == {"u:a": None, "u:b": 70, "u:c": 71, "u:d": None}
