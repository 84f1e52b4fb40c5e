from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection

from services.features.online.keys import REVISION, ROWS, history_key, profile_key
from services.features.reader import FeatureReader, Miss, UserView
from services.features.users.profile_cache import Profile
from shared.actions import ActionTable
from shared.contracts.history import UserHistory, pack
from shared.schema import Schema
from shared.settings.roots import DatabaseSettings, FeaturesSettings
from shared.storage.database import Database
from shared.storage.tables import events, metadata, user_state, users
from tests.unit.features.fakes import FakeHistories, FakeRedis

KEY = "u:ann"
PROFILE = Profile({"country": "at"}, ("gold",), 7)
TIMEOUT_S = 5.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'features.db'}", DatabaseSettings())
    metadata.create_all(database.engine)
    with database.write() as connection:
        connection.execute(user_state.insert().values(user_key=KEY, revision=3))
        connection.execute(
            users.insert().values(
                user_key=KEY, properties={"country": "at"}, segments=["gold"], created_at_us=1, updated_at_us=7
            )
        )
        _event(connection, KEY, "e1", item=5, at_s=100)
        _event(connection, KEY, "e2", item=6, at_s=101)
    yield database
    database.close()


def _event(
    connection: Connection, user_key: str, event_id: str, *, item: int | None, at_s: int, action: int = 2
) -> None:
    connection.execute(
        events.insert().values(
            event_id=event_id,
            occurred_day=0,
            user_key=user_key,
            item_index=item,
            action=action,
            occurred_at_us=at_s * 1_000_000,
            received_at_us=0,
        )
    )


class Reading:
    """A reader over a FakeRedis; `run` gives one event loop to a test's coroutine and closes the reader in it."""

    def __init__(self, database: Database) -> None:
        self.redis = FakeRedis()
        self.histories = FakeHistories()
        actions = ActionTable.from_schema(Schema())
        self.reader = FeatureReader(
            database, self.redis.client(), FeaturesSettings(), actions, histories=self.histories
        )

    async def user(self, user_key: str = KEY, timeout_s: float = TIMEOUT_S, **options: Any) -> UserView:
        return await self.reader.user(user_key, timeout_s=timeout_s, **options)

    def run(self, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def body() -> None:
            try:
                await test()
            finally:
                await self.reader.close()

        asyncio.run(body())


@pytest.fixture
def reading(database: Database) -> Reading:
    return Reading(database)


def history(revision: int = 3, *items: int) -> UserHistory:
    times = np.arange(100, 100 + len(items))
    return UserHistory(KEY, pack(items, np.full(len(items), 2), times), revision, "e9" if items else None, "redis")


def test_with_the_lease_redis_is_believed_and_the_database_is_not_asked(reading: Reading, database: Database) -> None:
    reading.redis.hold(KEY, history(2, 1, 2, 3), PROFILE)
    reading.redis.lease()
    reading.redis.values["extra"] = b"x"
    database.close()

    async def test() -> None:
        view = await reading.user(extra_keys=["extra", "none"])
        assert view.misses == ()
        assert view.history.rows["item"].tolist() == [1, 2, 3]
        assert (view.history.revision, view.history.last_event_id, view.history.source) == (2, "e9", "redis")
        assert (view.properties, view.segments) == ({"country": "at"}, ("gold",))
        assert view.extras == {"extra": b"x", "none": None}
        assert reading.redis.round_trips == 1

    reading.run(test)


def test_without_the_lease_rows_of_the_present_revision_are_believed(reading: Reading) -> None:
    reading.redis.hold(KEY, history(3, 1, 2, 3), PROFILE)

    async def test() -> None:
        view = await reading.user()
        assert view.misses == ()
        assert view.history.source == "redis"

    reading.run(test)


def test_without_the_lease_rows_of_an_old_revision_are_read_from_the_database(reading: Reading) -> None:
    reading.redis.hold(KEY, history(2, 1), Profile({"country": "de"}, (), 1))

    async def test() -> None:
        view = await reading.user()
        assert set(view.misses) == {Miss("redis", "history", "stale"), Miss("redis", "profile", "stale")}
        assert view.history.rows["item"].tolist() == [5, 6]
        assert (view.history.revision, view.history.last_event_id, view.history.source) == (3, "e2", "database")
        assert view.properties == {"country": "at"}

    reading.run(test)


def test_what_redis_lacks_is_read_from_the_database_and_written_back(reading: Reading) -> None:
    reading.redis.lease()

    async def test() -> None:
        view = await reading.user()
        assert set(view.misses) == {Miss("redis", "history", "absent"), Miss("redis", "profile", "absent")}
        assert view.history.rows["item"].tolist() == [5, 6]
        await reading.histories.written.wait()
        assert [(h.revision, h.rows["item"].tolist()) for h in reading.histories.replaced] == [(3, [5, 6])]

    reading.run(test)


def test_an_unknown_user_has_an_empty_view_and_no_database_miss(reading: Reading) -> None:
    async def test() -> None:
        view = await reading.user("v:nobody")
        assert len(view.history.rows) == 0
        assert (view.history.revision, dict(view.properties), view.segments) == (0, {}, ())
        assert {miss.store for miss in view.misses} == {"redis"}

    reading.run(test)


def test_a_deleted_user_is_empty_and_nothing_of_it_goes_back_to_redis(reading: Reading, database: Database) -> None:
    reading.redis.hold(KEY, history(3, 1, 2), PROFILE)
    with database.write() as connection:
        connection.execute(user_state.update().values(deleted_at_us=5, revision=4))

    async def test() -> None:
        view = await reading.user()
        assert len(view.history.rows) == 0
        assert (dict(view.properties), view.segments) == ({}, ())
        await reading.reader.close()
        assert reading.histories.replaced == []

    reading.run(test)


@pytest.mark.parametrize(
    "damage",
    [
        {ROWS: b"x" * 12},
        {REVISION: b"-1"},
        {REVISION: b"9" * 30},
        {REVISION: b""},
        {b"last": b"\xff"},
    ],
)
def test_a_damaged_history_is_a_miss(reading: Reading, damage: dict[bytes, bytes]) -> None:
    reading.redis.hold(KEY, history(3, 1, 2, 3), PROFILE)
    reading.redis.hashes[history_key(KEY)].update(damage)
    reading.redis.lease()

    async def test() -> None:
        view = await reading.user()
        assert view.misses == (Miss("redis", "history", "absent"),)
        assert view.history.rows["item"].tolist() == [5, 6]

    reading.run(test)


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b'{"properties":1,"segments":[]}', b'{"properties":{},"segments":[1]}']
)
def test_a_damaged_profile_is_a_miss(reading: Reading, value: bytes) -> None:
    reading.redis.hold(KEY, history(3, 1, 2, 3))
    reading.redis.values[profile_key(KEY)] = value
    reading.redis.lease()

    async def test() -> None:
        view = await reading.user()
        assert view.misses == (Miss("redis", "profile", "absent"),)
        assert view.properties == {"country": "at"}

    reading.run(test)


def test_a_dead_redis_answers_from_the_database_and_is_soon_asked_no_more(reading: Reading) -> None:
    reading.redis.state = "dead"

    async def test() -> None:
        for _ in range(20):
            view = await reading.user(extra_keys=["extra"])
            assert view.history.rows["item"].tolist() == [5, 6]
            assert Miss("redis", "history", "unavailable") in view.misses
            assert Miss("redis", "extras", "unavailable") in view.misses
            assert view.extras == {"extra": None}
        assert reading.redis.round_trips < 10
        assert reading.histories.replaced == []

    reading.run(test)


def test_a_hung_redis_leaves_the_database_half_of_the_time(reading: Reading) -> None:
    reading.redis.state = "hung"

    async def test() -> None:
        view = await reading.user(timeout_s=0.5)
        assert view.history.rows["item"].tolist() == [5, 6]
        assert Miss("redis", "history", "timeout") in view.misses

    reading.run(test)


class _Unreachable(Database):
    """Takes a thread for as long as a test wants, like a database behind a cable that was pulled."""

    def __init__(self, url: str) -> None:
        super().__init__(url, DatabaseSettings())
        self.release = threading.Event()

    async def run(self, work: Callable[..., Any], *args: Any) -> Any:
        def hang() -> Any:
            self.release.wait(30)
            return work(*args)

        return await super().run(hang)


def test_with_both_stores_hung_the_view_is_empty_and_in_time(tmp_path: Path) -> None:
    database = _Unreachable(f"sqlite:///{tmp_path / 'x.db'}")
    reading = Reading(database)
    reading.redis.state = "hung"

    async def test() -> None:
        started = time.perf_counter()
        view = await reading.user(timeout_s=0.04, extra_keys=["extra"])
        assert time.perf_counter() - started < 0.3
        assert len(view.history.rows) == 0
        assert view.extras == {"extra": None}
        assert set(view.misses) == {
            Miss("redis", "history", "timeout"),
            Miss("redis", "profile", "timeout"),
            Miss("redis", "extras", "timeout"),
            Miss("database", "history", "timeout"),
            Miss("database", "profile", "timeout"),
        }
        database.release.set()

    reading.run(test)
    database.close()


def test_with_a_dead_database_what_redis_holds_is_used_and_the_miss_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    database = Database(f"sqlite:///{folder / 'x.db'}", DatabaseSettings())
    shutil.rmtree(folder)
    reading = Reading(database)
    reading.redis.hold(KEY, history(2, 1, 2, 3), PROFILE)

    async def test() -> None:
        for _ in range(8):
            view = await reading.user()
            assert view.history.rows["item"].tolist() == [1, 2, 3]
            assert view.properties == {"country": "at"}
            assert view.misses == (Miss("database", "history", "unavailable"),)

    reading.run(test)
    database.close()


def test_only_the_newest_rows_of_history_actions_are_read(reading: Reading, database: Database) -> None:
    with database.write() as connection:
        _event(connection, "u:bob", "late", item=9, at_s=50)
        _event(connection, "u:bob", "seen", item=9, at_s=60, action=1)
        _event(connection, "u:bob", "search", item=None, at_s=61)
        for place in range(20):
            _event(connection, "u:bob", f"b{place}", item=place, at_s=100 + place // 4)
        connection.execute(user_state.insert().values(user_key="u:bob", revision=9))
    small = FeaturesSettings.model_validate({"history": {"max_events": 16}})
    reader = FeatureReader(
        database, reading.redis.client(), small, ActionTable.from_schema(Schema()), histories=reading.histories
    )

    async def test() -> None:
        view = await reader.user("u:bob", timeout_s=TIMEOUT_S)
        assert view.history.rows["item"].tolist() == list(range(4, 20))
        assert view.history.rows["time"].tolist() == [100 + place // 4 for place in range(4, 20)]
        assert view.history.last_event_id == "b19"
        await reader.close()

    reading.run(test)
